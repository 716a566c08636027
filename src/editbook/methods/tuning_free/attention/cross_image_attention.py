"""Cross-Image Attention: the structure of one picture, the appearance of another (Alaluf et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....attention import Chain, Control, CrossImageAttention, WordForeground, map_height
from ....errors import EditbookError
from ....images import as_image
from ....masks import AdaIN, KeepSource, PasteSourceRow
from ....model import Model
from ....result import Edit
from ....sampling import Blend, Guidance, Schedule
from ...base import Card, InvertingMethod, Request, finish, sample_back
from .masactrl import decoder_levels
from .ti_guided_edit import invert_reference, masks_of


class SwapGuidance:
    """eps = eps_no + s (eps_swap - eps_no): the U-Net runs with and without the control, and s goes beyond it.

    Args:
        inner: What makes an estimate.
        control: Switched off for eps_no.
        scales: s of each step.
    """

    def __init__(self, inner: Guidance, control: CrossImageAttention, scales: Sequence[float]) -> None:
        self.inner, self.control, self.scales = inner, control, scales

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The guided estimate; rows that the control does not change keep theirs."""
        swapped = self.inner(model, z_t, t, i)
        if not self.control.acts:
            return swapped
        self.control.enabled = False
        try:
            free = self.inner(model, z_t, t, i)
        finally:
            self.control.enabled = True
        return torch.lerp(free, swapped, self.scales[i])


@dataclass
class CrossImage(InvertingMethod):
    """Alaluf, Garibi, Patashnik, Averbuch-Elor and Cohen-Or 2024 (the survey's [53]): appearance transfer.

    The output starts as the structure. In the decoder's self-attention it keeps its own queries, and the appearance's
    keys and values answer: the cat's ear asks, and the tiger's ear says what it looks like. Contrast sharpens the
    answers, swap guidance goes beyond them, and AdaIN brings over the colours. Text guides nothing; all prompts only
    describe the pictures.

    Step ranges are fractions of the steps that run, in which we read the official code's numbers of 100. The official
    masks are k-means segments of the self-attention; here they are where `word` acts (ours). FreeU is left out.

    Args:
        reference: The picture with the appearance: a PIL picture, an array or a file; any size. None (ours) takes a run
            under the target prompt, from the source's noise.
        reference_prompt: Describes the reference; empty takes the source prompt.
        word: The object, a word of both pictures' prompts: where AdaIN acts. None is everywhere.
        mask_threshold: As in `WordForeground`.
        swap_scale: s at the first step; it falls linearly to its half.
        strength: Of the contrast; 1 is none.
        levels: The decoder's so many finest levels: 2 are 64 and 32 cells in Stable Diffusion.
        start: The fraction of steps after which the appearance answers.
        stop_finest: Where it ends at the finest level.
        stop: Where it ends at the others.
        mixed: Below this fraction every fifth step reads the structure instead.
        adain: The fraction of steps after which AdaIN acts; 1 never.
    """

    card: ClassVar[Card] = Card(
        id="cross-image-attention",
        title="Cross-Image Attention for Zero-Shot Appearance Transfer",
        authors="Alaluf, Garibi, Patashnik, Averbuch-Elor, Cohen-Or",
        year=2024,
        venue="SIGGRAPH",
        paper="2311.03335",
        branch="tuning_free/attention",
        inputs=("source prompt", "reference image (optional)"),
        edit_types=("texture",),
    )
    steps: int = 100
    guidance_scale: float = 1.0
    inversion: str = "edit-friendly-ddpm"
    reference: Any = None
    reference_prompt: str = ""
    word: str | None = None
    mask_threshold: float = 0.3
    swap_scale: float = 3.5
    strength: float = 1.67
    levels: int = 2
    start: float = 0.1
    stop_finest: float = 0.9
    stop: float = 0.7
    mixed: float = 0.4
    adain: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start", "stop_finest", "stop", "mixed", "adain"):
            if not 0 <= getattr(self, name) <= 1:
                raise EditbookError(f"{name} is a fraction of the steps in [0, 1], got {getattr(self, name)!r}.")
        if self.start > min(self.stop, self.stop_finest):
            raise EditbookError(f"start must not lie behind stop and stop_finest, got {self.start!r}.")
        for name in ("swap_scale", "strength"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise EditbookError(f"{name} must be a finite number of at least 0, got {getattr(self, name)!r}.")
        if self.word is not None and not isinstance(self.word, str):
            raise EditbookError(f"word is a word of both prompts, or None, got {self.word!r}.")

    def __call__(self, model: Model, request: Request) -> Edit:
        """Sample structure, appearance and output side by side."""
        own = self.reference is not None
        target = request.target or request.source
        appearance = (self.reference_prompt or request.source) if own else target
        prompts = [request.source, appearance, target]
        model.embed(prompts)  # what cannot be used should cost no walk
        finest, *others = decoder_levels(model, self.levels)
        spans = {finest: (self.start, self.stop_finest), **dict.fromkeys(others, (self.start, self.stop))}
        control = CrossImageAttention(spans, (0, 1, 2), self.strength, self.mixed)
        controls: list[Control] = [control]
        masks = None
        if self.word is not None:
            coarse = map_height(model.unet, model.latent_shape[1], below_finest=True)
            words = [self.word, self.word, None]
            found = WordForeground(model.tokenizer, prompts, words, coarse, self.mask_threshold)
            controls.append(found)
            masks = masks_of(found, 0, 1)
        schedule = Schedule(model.scheduler, self.steps)
        if own:
            as_image(self.reference)  # raises

        inversion = self.invert(model, request, schedule)
        z_T = inversion.z_T.repeat(3, 1, 1, 1)
        blends: list[Blend] = [KeepSource(inversion.latents[1:], 0.0, slice(0, 1))]
        if own:
            second = invert_reference(self, model, request, schedule, self.reference, appearance)
            z_T[1] = second.z_T[0]
            blends.append(KeepSource(second.latents[1:], 0.0, slice(1, 2)))
        blends.append(AdaIN(2, 1, (self.adain, 1.0), masks))
        if request.mask is not None:
            blends.append(PasteSourceRow(request.mask))
        moves = len(inversion.moves)
        scales = [self.swap_scale * (1 - 0.5 * i / max(moves - 1, 1)) for i in range(moves)]
        free = inversion.guidance(model, prompts, [1.0, self.guidance_scale])
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            self.guidance_scale,
            z_T=z_T,
            guidance=SwapGuidance(free, control, scales),
            attention=Chain(controls),
            blends=blends,
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
