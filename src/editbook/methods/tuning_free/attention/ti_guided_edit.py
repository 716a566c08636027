"""TI-Guided-Edit: an appearance path and a structure path, each a picture or a text (Wang, Liu and Xu 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ....attention import Chain, InjectFeatures, IntegratedAttention, Site, WordForeground, injection_place, map_height
from ....errors import EditbookError, unknown
from ....images import as_image, fit
from ....inversion import Inversion
from ....masks import AdaIN, KeepSource, PasteSourceRow
from ....model import Model
from ....result import Edit
from ....sampling import Attention, Blend, Schedule, Step
from ...base import Card, InvertingMethod, Request, finish, sample_back
from .masactrl import decoder_levels
from .plug_and_play import whole_steps

Masks = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From the latents of all rows, which give the size, to the masks of two rows, bool (h, w) each."""


def invert_reference(
    method: InvertingMethod, model: Model, request: Request, schedule: Schedule, reference: Any, prompt: str
) -> Inversion:
    """A second picture, handled and inverted as the one to edit is.

    Args:
        method: Whose inversion is used.
        model: The model.
        request: Seed and callbacks.
        schedule: The steps.
        reference: A PIL picture, an array or a file; any size.
        prompt: Describes it.
    """
    picture = fit(as_image(reference), model.image_size)
    return method.invert(model, replace(request, image=picture, source=prompt), schedule)


def masks_of(foreground: WordForeground, structure: int, appearance: int) -> Masks:
    """The masks of two rows at a latent's size, from where a word acts in the step that was just made."""

    def masks(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = z.shape[-2:]
        found = foreground(Site("cross", "up", height, 0, height, width))
        assert found is not None  # the U-Net has just run
        return found[structure].view(height, width), found[appearance].view(height, width)

    return masks


class KeepPart:
    """A blend: for the first steps the target's latent outside, or inside, the structure's mask is the structure's.

    Args:
        part: "background" or "object".
        stop: The step before which it ends.
        masks: Gives the structure's mask first.
    """

    def __init__(self, part: str, stop: int, masks: Masks) -> None:
        self.part, self.stop, self.masks = part, stop, masks

    def __call__(self, step: Step) -> torch.Tensor:
        """The structure is row 0, the target the last."""
        if step.i >= self.stop:
            return step.z_next
        inside, _ = self.masks(step.z_next)
        z = step.z_next.clone()
        z[-1] = torch.where(inside == (self.part == "object"), z[0], z[-1])
        return z


@dataclass
class TIGuidedEdit(InvertingMethod):
    """Wang, Liu and Xu 2024 (the survey's [29]): one target run between two helper runs.

    An *appearance* path says what things look like, a *structure* path where they are. Each is an inverted picture,
    which is put back on its path after every step, or a run that a text guides. The target takes the structure's
    features, as in Plug-and-Play, and its self-attention joins both; see `IntegratedAttention`. Three modes:

    - "image": the picture is the structure, the reference the appearance. AdaIN sets the colours in between.
    - "rigid": the picture is the structure, a run under the target prompt the appearance: new looks.
    - "non-rigid": the picture is the appearance, a run under the target prompt the structure: new poses.

    The paper's text was read in part only; what is written here follows the official code, but for two of its slips:
    there contrast's mean is taken over heads instead of keys, and the logarithm that balances the halves is to the base
    2, so they are not balanced (`contrast_over="heads", base="2"` bring both back). Ours, not the paper's: masks are
    those of the current step instead of one step of the inversion; text runs are guided from the empty prompt instead
    of a list of bad qualities, and each target's null row attends to itself.

    Args:
        reference: The picture with the appearance: a PIL picture, an array or a file; any size. None edits by text.
        mode: "image", "rigid", "non-rigid", or "auto": image with a reference, else rigid.
        reference_prompt: Describes the reference; empty takes the source prompt.
        word: The object, a word of the prompts of both pictures: where AdaIN acts ("image"), or what `keep` is about.
            None lets AdaIN act everywhere.
        mask_threshold: Above this share of its range a cell of the word's map is object, in (0, 1). The code has 0.05,
            and 0.02 to 0.15 by hand.
        keep: In rigid mode: the "background" or the "object" keeps the structure's latent for the first 80 % of steps;
            needs `word`. "none" keeps nothing.
        path_scale: w of a helper run that a text guides.
        feature_steps: The fraction of steps in which the structure's features are injected; 40 of 50.
        appearance_start: The fraction of steps after which the appearance acts; 4 of 50.
        appearance_stop: Where it ends; 40 of 50.
        structure_stop: Where the structure's queries and keys end; 25 of 50, and 30 in the example with a reference.
        adain_start: Where AdaIN begins; 10 of 50.
        adain_stop: Where it ends; 30 of 50.
        strength: Of the contrast; 1 is none.
        contrast_over: What contrast's mean is taken over: "keys" or "heads".
        base: Of the balancing logarithm: "e" or "2".
        levels: The decoder's so many finest levels, where the appearance acts; 2 are the paper's layers 10 to 15.
        resolution: Height of the level where the structure begins, as in `PlugAndPlay`.
    """

    card: ClassVar[Card] = Card(
        id="ti-guided-edit",
        title="Unified Diffusion-Based Rigid and Non-Rigid Editing with Text and Image Guidance",
        authors="Wang, Liu, Xu",
        year=2024,
        venue="arXiv",
        paper="2401.02126",
        branch="tuning_free/attention",
        inputs=("source prompt", "target prompt", "reference image (optional)"),
        edit_types=("texture", "shape", "non-rigid"),
    )
    guidance_scale: float = 5.0
    reference: Any = None
    mode: str = "auto"
    reference_prompt: str = ""
    word: str | None = None
    mask_threshold: float = 0.05
    keep: str = "none"
    path_scale: float = 7.5
    feature_steps: float = 0.8
    appearance_start: float = 0.08
    appearance_stop: float = 0.8
    structure_stop: float = 0.5
    adain_start: float = 0.2
    adain_stop: float = 0.6
    strength: float = 1.67
    contrast_over: str = "keys"
    base: str = "e"
    levels: int = 2
    resolution: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "mode": ("auto", "image", "rigid", "non-rigid"),
            "keep": ("none", "background", "object"),
            "contrast_over": ("keys", "heads"),
            "base": ("e", "2"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(f"{name} of ti-guided-edit", getattr(self, name), known)
        for name in ("feature_steps", "appearance_start", "appearance_stop", "structure_stop", "adain_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise EditbookError(f"{name} is a fraction of the steps in [0, 1], got {getattr(self, name)!r}.")
        for begin, end in (("appearance_start", "appearance_stop"), ("adain_start", "adain_stop")):
            if not getattr(self, begin) <= getattr(self, end) <= 1:
                raise EditbookError(f"{end} must lie between {begin} and 1, got {getattr(self, end)!r}.")
        for name in ("path_scale", "strength"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise EditbookError(f"{name} must be a finite number of at least 0, got {getattr(self, name)!r}.")
        if (self.reference is None) == (self.effective_mode == "image"):
            raise EditbookError(
                "mode='image' needs a reference: a picture, an array or a file."
                if self.reference is None
                else f"mode={self.mode!r} uses no reference: leave it out, or take mode='image'."
            )
        if self.keep != "none" and (self.word is None or self.effective_mode != "rigid"):
            raise EditbookError("keep needs a word, and acts in rigid mode only; leave it at 'none'.")
        if self.word is not None and (not isinstance(self.word, str) or self.effective_mode == "non-rigid"):
            raise EditbookError(f"word is a word of the prompts, for the modes image and rigid, got {self.word!r}.")

    @property
    def effective_mode(self) -> str:
        """The mode that "auto" means."""
        if self.mode != "auto":
            return self.mode
        return "rigid" if self.reference is None else "image"

    def control(self, model: Model) -> list[Attention]:
        """Features and integrated attention, for the rows photo, other helper, target."""
        structure, appearance = (1, 0) if self.effective_mode == "non-rigid" else (0, 1)
        height, first = injection_place(model.unet, model.latent_shape[1:], self.resolution)
        return [
            InjectFeatures(height, stop=whole_steps(self.feature_steps, self.steps), row=structure, into=2),
            IntegratedAttention(
                decoder_levels(model, self.levels),
                first,
                (self.appearance_start, self.appearance_stop),
                (0.0, self.structure_stop),
                (structure, appearance, 2),
                always=self.effective_mode == "image",
                structure_alone=self.effective_mode != "non-rigid",
                strength=self.strength,
                over=self.contrast_over,
                base=self.base,
            ),
        ]

    def __call__(self, model: Model, request: Request) -> Edit:
        """Sample the picture, the other helper and the target side by side."""
        by_image = self.effective_mode == "image"
        other = (self.reference_prompt or request.source) if by_image else request.target
        prompts = [request.source, other, request.target]
        model.embed(prompts)  # what cannot be used should cost no walk
        controls = self.control(model)
        blends: list[Blend] = []
        if self.word is not None:
            coarse = map_height(model.unet, model.latent_shape[1], below_finest=True)
            words = [self.word, self.word if by_image else None, None]
            found = WordForeground(model.tokenizer, prompts, words, coarse, self.mask_threshold)
            controls.append(found)
        masks = None if self.word is None else masks_of(found, 0, 1)
        schedule = Schedule(model.scheduler, self.steps)
        if by_image:
            as_image(self.reference)  # raises

        inversion = self.invert(model, request, schedule)
        z_T = inversion.z_T.repeat(3, 1, 1, 1)
        blends.append(KeepSource(inversion.latents[1:], 0.0, slice(0, 1)))
        if by_image:
            second = invert_reference(self, model, request, schedule, self.reference, other)
            z_T[1] = second.z_T[0]
            blends.append(KeepSource(second.latents[1:], 0.0, slice(1, 2)))
            blends.append(AdaIN(2, 1, (self.adain_start, self.adain_stop), masks))
        elif self.keep != "none" and masks is not None:
            blends.append(KeepPart(self.keep, whole_steps(0.8, self.steps), masks))
        if request.mask is not None:
            blends.append(PasteSourceRow(request.mask))
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            [1.0 if by_image else self.path_scale, self.guidance_scale],
            z_T=z_T,
            attention=Chain(controls),
            blends=blends,
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
