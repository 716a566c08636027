"""MasaCtrl: the target draws its own layout with the source's keys and values (Cao et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ....attention import Chain, Foreground, MutualSelfAttention, WordForeground, finest_levels
from ....errors import EditbookError
from ....masks import PasteSourceRow, latent_mask
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Attention, Schedule, whole_steps
from ...base import Card, InvertingMethod, Request, finish, sample_back


@dataclass
class MasaCtrl(InvertingMethod):
    """Cao, Wang, Qi, Shan, Qie and Zheng 2023: mutual self-attention control.

    Source and target are sampled side by side from the same noise. For a few steps the target builds its own layout
    from its own prompt. Then its self-attention in the decoder asks with its own queries, and the source's keys and
    values answer: the new pose is filled with what the old one looked like. Cross-attention is left alone.

    A picture is inverted under the empty prompt, as in the paper: the source row runs under it too, and guidance cannot
    pull it away. Automatic masks need the word in the source row, so with `word` it has its prompt. The authors
    recommend to put the source row back on its path after each step: that is `inversion="pnp-inversion"`.

    The official union of both pictures' keys crashes (issue 49: heads are split twice); `keys="joint"` is what the
    paper describes. For the official masks see `MutualSelfAttention`. The survey's Table 1 files the method under
    fine-tuning, and its text says that the masks act in cross-attention; nothing is tuned, and they only come from it.

    Args:
        start: The fraction of steps after which the target reads the source; 0.08 is the paper's 4 of 50. 1 never.
        levels: The decoder's so many finest levels; 2 are the paper's layers 10 to 15 (32 and 64 in SD).
        keys: What the target attends to: the "source", or "joint" (source and itself at once).
        invert_with: The prompt of inversion and source row: "empty", "source", or "auto": empty for DDIM inversion
            without `word`, else the source prompt, which other inversions are made for. A generated source has its own.
        word: The object, for automatic masks: a word of both prompts, or a pair (source word, target word).
        mask_threshold: Above this share of its range a cell of a word's map is object.
        source_mask: Where the source's object is: an array or picture, instead of `word`; goes with `target_mask`.
        target_mask: Where the target's object shall be.
        source_guidance_scale: w of the source row; None is what the inversion needs to repeat the picture, and
            `guidance_scale` for a generated one.

    A generated source (`image=None`) needs no inversion.
    """

    card: ClassVar[Card] = Card(
        id="masactrl",
        title="MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing",
        authors="Cao, Wang, Qi, Shan, Qie, Zheng",
        year=2023,
        venue="ICCV",
        paper="2304.08465",
        branch="tuning_free/attention",
        inputs=("source prompt", "target prompt"),
        edit_types=("non-rigid",),
    )
    generates: ClassVar[bool] = True
    start: float = fraction(0.08)
    levels: int = 2
    keys: str = option("source", among=("source", "joint"))
    invert_with: str = option("auto", among=("auto", "empty", "source"))
    word: str | tuple[str, str] | None = None
    mask_threshold: float = option(0.1, above=0, below=1)
    source_mask: Any = None
    target_mask: Any = None
    source_guidance_scale: float | None = option(None, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.word, list):
            self.word = tuple(self.word)  # as it comes back from JSON
        words = self.word if isinstance(self.word, tuple) else (self.word, self.word)
        if self.word is not None and (len(words) != 2 or not all(isinstance(word, str) for word in words)):
            raise EditbookError(f"word is a word of both prompts, or a source and a target word, got {self.word!r}.")
        if (self.source_mask is None) != (self.target_mask is None):
            raise EditbookError("source_mask and target_mask go together: give both, or neither.")
        if self.word is not None and self.source_mask is not None:
            raise EditbookError("Masks come from word or from source_mask and target_mask: give one of them.")
        if self.word is not None and self.invert_with == "empty":
            raise EditbookError("invert_with='empty' leaves the source row without the word that word asks for.")

    def foreground(self, model: Model, prompts: list[str]) -> Foreground | WordForeground | None:
        """The masks, if any: given, or found in the cross-attention of each step."""
        if self.source_mask is not None:
            latent = model.random_latent(0)
            return Foreground(
                torch.cat([latent_mask(mask, latent)[:, 0] for mask in (self.source_mask, self.target_mask)])
            )
        if self.word is None:
            return None
        words = self.word if isinstance(self.word, tuple) else (self.word, self.word)
        return WordForeground.of(model, prompts, words, self.mask_threshold)

    def control(self, model: Model, prompts: list[str]) -> Attention:
        """Mutual self-attention for a source and a target row, with what its masks need."""
        foreground = self.foreground(model, prompts)
        mutual = MutualSelfAttention(
            finest_levels(model.unet, model.latent_shape[1], self.levels),
            start=whole_steps(self.start, self.walk_length(model), nearest=True),
            inject=self.keys,
            inject_null=self.keys,
            foreground=foreground,
        )
        return Chain([foreground, mutual]) if isinstance(foreground, WordForeground) else mutual

    def __call__(self, model: Model, request: Request) -> Edit:
        """Sample source and target together, from the inverted picture or from the seed."""
        empty = self.invert_with == "empty" or (
            self.invert_with == "auto" and self.word is None and self.inversion == "ddim-inversion"
        )
        if empty and request.image is not None:
            request = replace(request, source="")
        prompts = [request.source, request.target]
        schedule = Schedule(model.scheduler, self.steps)
        model.embed(prompts)  # before the inversion: prompts that cannot be used should cost no walk
        control = self.control(model, prompts)
        inversion = self.invert(model, request, schedule)
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            self.guidance_scale,
            source_scale=self.source_guidance_scale,
            attention=control,
            blends=[] if request.mask is None else [PasteSourceRow(request.mask)],
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
