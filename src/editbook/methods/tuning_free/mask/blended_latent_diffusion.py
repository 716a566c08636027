"""Blended Latent Diffusion: the noised source around the mask at every step, the text inside (Avrahami et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from ....clip_guidance import load_clip_distance
from ....errors import EditbookError, unknown
from ....masks import BACKGROUNDS, KeepSource, at_side, mask_array, noised_path, restore_background, shrinking_masks
from ....model import Model
from ....ranking import ranked
from ....result import Edit
from ....sampling import Move, Schedule, add_noise, follow
from ...base import Card, Method, Request, guided


@dataclass
class BlendedLatentDiffusion(Method):
    """Avrahami, Fried and Lischinski 2023: Blended Diffusion's blend, in the latents of a model that reads text.

    Inside the mask the latent is denoised under the target prompt; outside, after every step, it becomes the source's,
    noised in one jump to the same level. The next step sees one picture, and makes what it draws fit to what is around.
    The text guides as in sampling: no gradient of CLIP, as Blended Diffusion needs it.

    After the last step the source's own latent is pasted, so outside the mask the result is what the autoencoder makes
    of the source, exactly. That is diffusers' `StableDiffusionInpaintPipeline` with a U-Net of four channels. The
    authors' two codes differ (`timing`): the first blends before each step, so the last step's own drawing stays; the
    scripts for Stable Diffusion blend after it, with the level that the step has just *left*, and the result keeps that
    noise. They also start from pure noise.

    The survey's text claims replacement and removal as well; its Table 1 ticks neither. For removal the prompt has to
    say what is *behind* the object.

    Args:
        strength: Where to start: 1 is the first step; 0.75 leaves out a quarter of them, as the authors' scripts do.
        start: From the "source", noised, or from "noise" alone.
        timing: "matched", or the authors' "ldm" or "script", see above.
        noise: Whether all levels have the "same" noise, or each "fresh" noise, as in the authors' codes.
        mask_resize: How the mask comes to the latent's grid: "max", where a cell is as open as its most open pixel, or
            "nearest", as in the authors' code, which may lose what is thinner than a cell.
        binarise: Whether cells above one half are open and others closed. False blends in proportion, which, step after
            step, closes half-open cells.
        dilations: n: the mask begins dilated by n cells on each side, and shrinks to itself in n + 1 stages; the
            paper's answer to thin masks, see `masks.shrinking_masks`.
        background: What is done about the background that the autoencoder changes, see `masks.restore_background`:
            "none", "paste", "poisson", "decoder" or "latents".
        candidates: How many are made, with the noise of `seed`, `seed + 1`, ...; CLIP picks one by its masked part.
        clip: Which CLIP, where there are several candidates: "pocket", a folder or a hub id.
    """

    card: ClassVar[Card] = Card(
        id="blended-latent-diffusion",
        title="Blended Latent Diffusion",
        authors="Avrahami, Fried, Lischinski",
        year=2023,
        venue="ACM Transactions on Graphics (SIGGRAPH)",
        paper="2206.02779",
        branch="tuning_free/mask",
        inputs=("target prompt", "mask"),
        edit_types=("texture", "object addition"),
    )
    guidance_scale: float = 5.0
    strength: float = 1.0
    start: str = "source"
    timing: str = "matched"
    noise: str = "same"
    mask_resize: str = "max"
    binarise: bool = True
    dilations: int = 0
    background: str = "none"
    candidates: int = 1
    clip: str = "pocket"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "start": ("source", "noise"),
            "timing": ("matched", "ldm", "script"),
            "noise": ("same", "fresh"),
            "mask_resize": ("max", "nearest"),
            "background": BACKGROUNDS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(f"{name} of {self.card.id}", getattr(self, name), known)
        if self.candidates < 1:
            raise EditbookError(f"candidates of {self.card.id} must be at least 1, got {self.candidates!r}.")
        if self.dilations < 0:
            raise EditbookError(f"dilations of {self.card.id} must be at least 0, got {self.dilations!r}.")

    def latent_mask(self, model: Model, mask: np.ndarray) -> torch.Tensor:
        """The mask at the latent's size, (1, 1, h, w).

        Raises:
            EditbookError: Nothing is left of it there.
        """
        side = model.latent_shape[1]
        if self.mask_resize == "max":
            cells = at_side(mask, side)
        else:
            cells = np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
        if self.binarise:
            cells = (cells > 0.5).astype(np.float32)
        if not cells.any():
            raise EditbookError(
                f"No cell of the {side} x {side} latent is inside the mask: draw it wider, raise its values above one "
                "half, or use mask_resize='max'."
            )
        return torch.from_numpy(cells.copy())[None, None].to(model.random_latent(0))

    def noises(self, model: Model, seeds: Sequence[int], count: int) -> list[torch.Tensor]:
        """So many noises (n, channels, h, w), the row of each seed from a generator of its own."""
        if self.noise == "same":
            return [torch.cat([model.random_latent(seed) for seed in seeds])] * count
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        draws = [[torch.randn(model.latent_shape, generator=one) for one in generators] for _ in range(count)]
        return [torch.stack(rows).to(model.device, model.dtype) for rows in draws]

    def keep(self, z_0: torch.Tensor, noises: list[torch.Tensor], path: list[Move], mask: torch.Tensor) -> KeepSource:
        """The blend of every step."""
        masks: list[torch.Tensor | float] = list(shrinking_masks(mask, self.dilations, len(path)))
        if self.timing == "script":
            left = [add_noise(z_0, noise, move.alpha_from) for noise, move in zip(noises, path, strict=True)]
            return KeepSource(left, masks)
        if self.timing == "ldm":
            masks[-1] = 1.0  # blending before a step is blending after the one before; the last has none after it
        return KeepSource(noised_path(z_0, noises, path), masks)

    def draw(self, model: Model, request: Request) -> list[Image.Image]:
        """Every candidate, in the order of the seeds."""
        if request.image is None or request.pixel_mask is None:
            raise EditbookError(f"{self.card.id} needs a picture and a mask.")
        path = Schedule(model.scheduler, self.steps).sampling(self.strength)
        if not path:
            raise EditbookError(f"strength {self.strength} of {self.steps} steps leaves no step to take; raise either.")
        mask, z_0 = self.latent_mask(model, request.pixel_mask), model.encode(request.image)
        first, *later = self.noises(model, range(request.seed, request.seed + self.candidates), len(path) + 1)
        z = follow(
            model,
            first if self.start == "noise" else add_noise(z_0, first, path[0].alpha_from),
            path,
            guided(model, [request.target] * self.candidates, self.guidance_scale),
            blend=self.keep(z_0, later, path, mask),
            callbacks=request.callbacks,
        )
        return model.decode_batch(z)

    def runs(self, model: Model, request: Request) -> list[tuple[float | None, Image.Image]]:
        """Every candidate with CLIP's distance of its masked part, the best first; a single one is not measured."""
        clip = load_clip_distance(self.clip, str(model.device)) if self.candidates > 1 else None
        pictures = self.draw(model, request)
        order: list[tuple[float | None, int]] = [(None, 0)]
        if clip is not None:
            order = [*ranked(pictures, request.target, clip, request.pixel_mask)]
        return [(distance, pictures[k]) for distance, k in order]

    def __call__(self, model: Model, request: Request) -> Edit:
        """Make the candidates, take the best, and put back its background."""
        (_, best), *_ = self.runs(model, request)
        assert request.image is not None
        assert request.pixel_mask is not None
        return Edit(
            restore_background(model, best, request.image, request.pixel_mask, self.background),
            request.image,
            reconstruction=model.decode(model.encode(request.image)),
            mask=mask_array(self.latent_mask(model, request.pixel_mask)),
        )
