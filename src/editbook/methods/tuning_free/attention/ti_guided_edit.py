"""TI-Guided-Edit: an appearance path and a structure path, each a picture or a text (Wang, Liu and Xu 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....attention import Chain, InjectFeatures, IntegratedAttention, finest_levels, injection_place
from ....errors import EditbookError
from ....masks import AdaIN, PasteSourceRow
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Attention, Schedule, Step, whole_steps
from ...base import Card, InvertingMethod, Request, finish, sample_back
from ...side_by_side import Masks, SideBySide


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
    mode: str = option("auto", among=("auto", "image", "rigid", "non-rigid"))
    reference_prompt: str = ""
    word: str | None = None
    mask_threshold: float = option(0.05, above=0, below=1)
    keep: str = option("none", among=("none", "background", "object"))
    path_scale: float = option(7.5, low=0)
    feature_steps: float = fraction(0.8)
    appearance_start: float = fraction(0.08)
    appearance_stop: float = fraction(0.8)
    structure_stop: float = fraction(0.5)
    adain_start: float = fraction(0.2)
    adain_stop: float = fraction(0.6)
    strength: float = option(1.67, low=0)
    contrast_over: str = option("keys", among=("keys", "heads"))
    base: str = option("e", among=("e", "2"))
    levels: int = 2
    resolution: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for begin, end in (("appearance_start", "appearance_stop"), ("adain_start", "adain_stop")):
            if getattr(self, begin) > getattr(self, end):
                raise EditbookError(f"{end} must not lie before {begin}, got {getattr(self, end)!r}.")
        if (self.reference is None) == (self.effective_mode == "image"):
            raise EditbookError(
                "mode='image' needs a reference: a picture, an array or a file."
                if self.reference is None
                else f"mode={self.mode!r} uses no reference: leave it out, or take mode='image'."
            )
        if self.keep != "none" and (self.word is None or self.effective_mode != "rigid"):
            raise EditbookError("keep needs a word, and acts in rigid mode only; leave it at 'none'.")
        if self.word is not None and self.effective_mode == "non-rigid":
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
            InjectFeatures(
                height, stop=whole_steps(self.feature_steps, self.walk_length(model)), row=structure, into=2
            ),
            IntegratedAttention(
                finest_levels(model.unet, model.latent_shape[1], self.levels),
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
        words = None if self.word is None else [self.word, self.word if by_image else None, None]
        rows = SideBySide(
            model, request, [request.source, other, request.target], self.reference, words, self.mask_threshold
        )
        controls = [*self.control(model), *rows.controls]

        inversion, z_T, blends = rows.invert(self, Schedule(model.scheduler, self.steps))
        if by_image:
            blends.append(AdaIN(2, 1, (self.adain_start, self.adain_stop), rows.masks))
        elif self.keep != "none" and rows.masks is not None:
            blends.append(KeepPart(self.keep, whole_steps(0.8, len(inversion.moves)), rows.masks))
        if request.mask is not None:
            blends.append(PasteSourceRow(request.mask))
        z_0 = sample_back(
            model,
            inversion,
            rows.prompts,
            [1.0 if by_image else self.path_scale, self.guidance_scale],
            z_T=z_T,
            attention=Chain(controls),
            blends=blends,
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
