"""DiffEdit: a mask from two noise estimates, DDIM encoding, and decoding that keeps the encoded latents outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from ....errors import EditbookError, unknown
from ....masks import KeepSource, MaskShape, Subject, at_side
from ....masks.find import DiffEditMask
from ....model import Model
from ....result import Edit
from ....sampling import Schedule
from ...base import Card, InvertingMethod, Request, finish, sample_back


@dataclass
class DiffEdit(InvertingMethod):
    """Couairon, Verbeek, Schwenk and Cord 2023: where two texts ask for different noise, the picture has to change.

    1. The mask: noise estimates under the target and the source prompt, at half of the noise, differ most where the
       edit has to be (`masks.DiffEditMask`). A mask that is given takes its place.
    2. Encode: DDIM inversion under the empty prompt, up to a fraction of the steps. The more steps, the freer the edit.
    3. Decode under the target prompt. Outside the mask, the encoded latent of the same level is pasted after every
       step, and z_0 after the last: there the picture is what the autoencoder makes of it, exactly.

    Blended Latent Diffusion pastes freshly noised latents instead. Encoded ones carry the picture's own content, also
    inside the mask where decoding begins.

    No official code is known. diffusers' pipeline differs in that it pastes the latent of the level that the step has
    just *left* (`timing="diffusers"`), one level too noisy, the last one included; that it encodes with guidance 7.5 by
    default, which does not come back; and that it clamps the difference by the mean over a whole *batch* of pictures.
    The survey says that the target text serves as the query matrix of cross-attention: text gives keys and values, and
    "query" is the paper's word for the text of the edit.

    Args:
        encoding_ratio: How far up the picture is encoded, as a fraction of the steps in (0, 1]; the paper explores 0.3
            to 0.8.
        encode_with: The prompt of the encoding: "empty" (the paper), or "source".
        timing: Which encoded latent is pasted after a step: that of the level where it arrives ("paper"), or of the one
            that it left ("diffusers").
        maps: Noises that the mask averages, see `masks.find.DiffEditMask` for this and the next four.
        mask_strength: Noise level at which texts are compared.
        clamp_ratio: Where the difference is cut, in means.
        mask_threshold: Of the normalised difference.
        reference: What the target prompt is compared with: "source", "empty", or "auto".
    """

    card: ClassVar[Card] = Card(
        id="diffedit",
        title="DiffEdit: Diffusion-based Semantic Image Editing with Mask Guidance",
        authors="Couairon, Verbeek, Schwenk, Cord",
        year=2023,
        venue="ICLR",
        paper="2210.11427",
        branch="tuning_free/mask",
        inputs=("source prompt (optional)", "target prompt", "mask (optional)"),
        edit_types=("texture", "style", "object removal", "object addition"),
    )
    encoding_ratio: float = 0.8
    encode_with: str = "empty"
    timing: str = "paper"
    maps: int = 10
    mask_strength: float = 0.5
    clamp_ratio: float = 3.0
    mask_threshold: float = 0.5
    reference: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in {"encode_with": ("empty", "source"), "timing": ("paper", "diffusers")}.items():
            if getattr(self, name) not in known:
                raise unknown(f"{name} of diffedit", getattr(self, name), known)
        if not 0 < self.encoding_ratio <= 1:
            raise EditbookError(f"encoding_ratio is a fraction of the steps in (0, 1], got {self.encoding_ratio!r}.")
        self.finder = DiffEditMask(self.mask_threshold, self.maps, self.mask_strength, self.clamp_ratio, self.reference)
        self.shape = MaskShape(self.mask_threshold)

    def mask(self, model: Model, request: Request) -> torch.Tensor:
        """Step 1, (1, 1, h, w); it may be empty, where the texts ask for the same."""
        assert request.image is not None
        heat = self.finder(model, Subject(request.image, request.source, request.target, seed=request.seed), "")
        mask: np.ndarray = at_side(self.shape(heat), model.latent_shape[1])
        return torch.from_numpy(mask)[None, None].to(model.random_latent(0))

    def __call__(self, model: Model, request: Request) -> Edit:
        """Find the mask, encode, decode."""
        if self.encode_with == "source" and not request.source.strip():
            raise EditbookError("encode_with='source' of diffedit needs a source prompt.")
        encoded = request.source if self.encode_with == "source" else ""
        return encode_and_decode(
            self,
            model,
            replace(request, source=encoded),
            lambda: self.mask(model, request),
            encoding_ratio=self.encoding_ratio,
            timing=self.timing,
        )


def encode_and_decode(
    editor: InvertingMethod,
    model: Model,
    request: Request,
    find: Callable[[], torch.Tensor],
    *,
    encoding_ratio: float,
    timing: str = "paper",
) -> Edit:
    """Steps 2 and 3 of DiffEdit, with any mask: that of the request, or else the one that is found.

    Args:
        editor: Whose steps, guidance and inversion are taken.
        model: The model.
        request: The picture; its source prompt is the one to encode under.
        find: Makes the mask, (1, 1, h, w); called when all else is known to be right, as it may be expensive.
        encoding_ratio: How far up to encode, in (0, 1].
        timing: "paper" or "diffusers", see `DiffEdit`.
    """
    name = editor.card.id
    if request.image is None:
        raise EditbookError(f"{name} needs a picture.")
    schedule = Schedule(model.scheduler, editor.steps).part(encoding_ratio)
    if not schedule.timesteps:
        raise EditbookError(f"encoding_ratio {encoding_ratio} of {editor.steps} steps is no step: raise either.")
    prompts = [request.source, request.target]
    model.embed(prompts)  # before any walk: a prompt that is too long should cost nothing
    mask = find() if request.mask is None else request.mask
    inversion = editor.invert(model, request, schedule)
    path = inversion.latents[1:] if timing == "paper" else inversion.latents[:-1]
    z_0 = sample_back(
        model,
        inversion,
        prompts,
        editor.guidance_scale,
        blends=[KeepSource(path, mask, slice(1, None))],
        callbacks=request.callbacks,
    )
    return finish(model, request, inversion, z_0, mask=mask)
