"""Cross-Image Attention: the structure of one picture, the appearance of another (Alaluf et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....attention import Chain, CrossImageAttention, finest_levels
from ....errors import EditbookError
from ....masks import AdaIN, PasteSourceRow
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Guidance, Schedule
from ...base import Card, InvertingMethod, Request, finish, sample_back
from ...side_by_side import SideBySide


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

    Step ranges are fractions of the steps that run, in which we read the official code's numbers of 100. Not all run:
    the default inversion leaves out the noisiest 36 of 100, its own default (`skip=0.32` is the official code's 32).
    The official masks are k-means segments of the self-attention; here they are where `word` acts (ours). FreeU is left
    out.

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
    mask_threshold: float = option(0.3, above=0, below=1)
    swap_scale: float = option(3.5, low=0)
    strength: float = option(1.67, low=0)
    levels: int = 2
    start: float = fraction(0.1)
    stop_finest: float = fraction(0.9)
    stop: float = fraction(0.7)
    mixed: float = fraction(0.4)
    adain: float = fraction(0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start > min(self.stop, self.stop_finest):
            raise EditbookError(f"start must not lie behind stop and stop_finest, got {self.start!r}.")

    def __call__(self, model: Model, request: Request) -> Edit:
        """Sample structure, appearance and output side by side."""
        own = self.reference is not None
        target = request.target or request.source
        appearance = (self.reference_prompt or request.source) if own else target
        words = None if self.word is None else [self.word, self.word, None]
        rows = SideBySide(
            model, request, [request.source, appearance, target], self.reference, words, self.mask_threshold
        )
        finest, *others = finest_levels(model.unet, model.latent_shape[1], self.levels)
        spans = {finest: (self.start, self.stop_finest), **dict.fromkeys(others, (self.start, self.stop))}
        control = CrossImageAttention(spans, (0, 1, 2), self.strength, self.mixed)

        inversion, z_T, blends = rows.invert(self, Schedule(model.scheduler, self.steps))
        blends.append(AdaIN(2, 1, (self.adain, 1.0), rows.masks))
        if request.mask is not None:
            blends.append(PasteSourceRow(request.mask))
        moves = len(inversion.moves)
        scales = [self.swap_scale * (1 - 0.5 * i / max(moves - 1, 1)) for i in range(moves)]
        free = inversion.guidance(model, rows.prompts, [1.0, self.guidance_scale])
        z_0 = sample_back(
            model,
            inversion,
            rows.prompts,
            self.guidance_scale,
            z_T=z_T,
            guidance=SwapGuidance(free, control, scales),
            attention=Chain([control, *rows.controls]),
            blends=blends,
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
