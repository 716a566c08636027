"""Prompt-to-Prompt: the edited picture reads the source's attention maps in the early steps (Hertz et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ....attention import (
    AttentionMaps,
    Capture,
    Chain,
    Control,
    Site,
    heights,
    map_height,
    refine_mapper,
    swap_mapper,
    tokens_of,
)
from ....errors import EditbookError
from ....masks import LocalBlend, PasteSourceRow
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Blend, Schedule, whole_steps
from ...base import Card, InvertingMethod, Request, finish, sample_back


class PromptToPromptControl(Control):
    """Replaces the target rows' attention by the source row's, as far and as long as asked.

    Row 0 is the source; every other conditional row is a target of the same prompt. Each row keeps its own values V.

    Args:
        mapper: (source tokens, target tokens), from `swap_mapper` or `refine_mapper`.
        cross_replace: tau_c: cross-attention is replaced in this first fraction of the steps.
        self_replace: tau_s: the same for self-attention.
        self_limit: Self-attention is replaced where the feature map has at most this height.
        weights: c_j for each target token, (target tokens,); 1 leaves it alone.
        own_until: Fraction of the steps for each target token, (target tokens,), instead of `cross_replace`.
    """

    def __init__(
        self,
        mapper: torch.Tensor,
        *,
        cross_replace: float,
        self_replace: float,
        self_limit: int,
        weights: torch.Tensor,
        own_until: torch.Tensor,
    ) -> None:
        self.mapper, self.weights = mapper, weights
        self.cross_replace, self.self_replace, self.self_limit = cross_replace, self_replace, self_limit
        self.until = own_until
        # Columns of new tokens are empty: those tokens keep the map that they have.
        self.known = (mapper.sum(0) > 0).float()

    def wants(self, site: Site) -> bool:
        """All cross-attention; self-attention up to the limit."""
        return site.kind == "cross" or site.resolution <= self.self_limit

    def active(self, site: Site) -> bool:
        """Cross-attention always (weights act in every step), self-attention until tau_s."""
        return site.kind == "cross" or self.step < whole_steps(self.self_replace, self.total)

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Source row untouched, target rows edited: P2P's Eq. for P-hat."""
        source, target = probabilities[:1], probabilities[1:]
        if site.kind == "self":
            return torch.cat([source, source.expand_as(target)])
        mapper, weights, known = (x.to(source) for x in (self.mapper, self.weights, self.known))
        injected = (source @ mapper) + (1 - known) * target
        # The official code counts S + 1 steps here; a token is held while i < floor(tau (S + 1)).
        gate = (self.step < (self.until * (self.total + 1)).round(decimals=9).floor()).to(source)
        return torch.cat([source, gate * injected * weights + (1 - gate) * target])


@dataclass
class PromptToPrompt(InvertingMethod):
    """Hertz, Mokady, Tenenbaum, Aberman, Pritch and Cohen-Or 2023.

    Where a word acts is written in the cross-attention map; what it paints is in the values. Source and target are
    sampled side by side from the same noise, and the target reads the source's maps during the early steps.

    Args:
        edit: "swap" (equally many words), "refine" (words added or dropped), or "auto" to choose by the word counts.
        cross_replace: tau_c in [0, 1], the fraction of steps in which cross-attention is taken from the source.
        self_replace: tau_s in [0, 1], the same for self-attention: how firmly the shape is kept.
        self_limit: Height of the largest feature map whose self-attention is taken; None is half the latent's side, at
            most 16, as in the official notebook.
        reweight: Factors for words of the target prompt, e.g. {"golden": 3}; the survey says that the editing branch's
            map is scaled, paper and code scale the *source's* map that is injected.
        word_replace: Own tau_c for words of the target prompt, e.g. {"fox": 0.4}.
        blend: LocalBlend: a word whose region may change (the same in both prompts), or a pair (source word, target
            word). None changes the whole picture.
        blend_threshold: See `LocalBlend`.
        source_guidance_scale: w of the source row. None is what the inversion needs to repeat the picture (1 for DDIM
            inversion), and `guidance_scale` for a generated one, as in the paper.

    A generated source (`image=None`) needs no inversion.
    """

    card: ClassVar[Card] = Card(
        id="prompt-to-prompt",
        title="Prompt-to-Prompt Image Editing with Cross-Attention Control",
        authors="Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or",
        year=2023,
        venue="ICLR",
        paper="2208.01626",
        branch="tuning_free/attention",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "style", "object addition"),
    )
    generates: ClassVar[bool] = True
    edit: str = option("auto", among=("auto", "swap", "refine"))
    cross_replace: float = fraction(0.8)
    self_replace: float = fraction(0.4)
    self_limit: int | None = None
    reweight: Mapping[str, float] = field(default_factory=dict)
    word_replace: Mapping[str, float] = field(default_factory=dict)
    blend: str | tuple[str, str] | None = None
    blend_threshold: float = 0.3
    source_guidance_scale: float | None = option(None, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.reweight, Mapping) and isinstance(self.word_replace, Mapping)):
            raise EditbookError("reweight and word_replace map words to numbers, e.g. reweight={'golden': 3}.")
        for word, number in {**self.reweight, **self.word_replace}.items():
            if not isinstance(number, int | float):
                raise EditbookError(f"The factor or fraction of {word!r} must be a number, got {number!r}.")
        words = (self.blend,) if not isinstance(self.blend, Sequence) or isinstance(self.blend, str) else self.blend
        if self.blend is not None and (len(words) > 2 or not all(isinstance(word, str) for word in words)):
            raise EditbookError(f"blend is a word, or a source and a target word, got {self.blend!r}.")
        for word, value in self.word_replace.items():
            if not 0 <= value <= 1:
                raise EditbookError(f"word_replace of {word!r} is a fraction of the steps in [0, 1], got {value!r}.")

    def control(self, tokenizer: Any, source: str, target: str, latent_side: int) -> PromptToPromptControl:
        """The attention control for a pair of prompts."""
        same_length = len(source.split()) == len(target.split())
        swap = self.edit == "swap" or (self.edit == "auto" and same_length)
        mapper = (swap_mapper if swap else refine_mapper)(tokenizer, source, target)
        weights = torch.ones(mapper.shape[1])
        # float64: in a smaller format tau (S + 1) may fall just below a whole number of steps.
        until = torch.full((mapper.shape[1],), float(self.cross_replace), dtype=torch.float64)
        for word, factor in self.reweight.items():
            weights[tokens_of(tokenizer, target, word)] = float(factor)
        for word, share in self.word_replace.items():
            until[tokens_of(tokenizer, target, word)] = float(share)
        return PromptToPromptControl(
            mapper,
            cross_replace=self.cross_replace,
            self_replace=self.self_replace,
            self_limit=min(16, latent_side // 2) if self.self_limit is None else self.self_limit,
            weights=weights,
            own_until=until,
        )

    def __call__(self, model: Model, request: Request) -> Edit:
        """Sample source and target together, from the inverted picture or from the seed."""
        prompts = [request.source, request.target]
        schedule = Schedule(model.scheduler, self.steps)
        model.embed(prompts)  # before the inversion: prompts that cannot be used should cost no walk
        side = model.latent_shape[1]
        levels, coarse = heights(model.unet, side), map_height(model.unet, side, below_finest=True)
        controls: list[Control] = [self.control(model.tokenizer, request.source, request.target, side)]
        blends: list[Blend] = []
        local = None
        if self.blend is not None:
            words = (self.blend, self.blend) if isinstance(self.blend, str) else tuple(self.blend)
            local = LocalBlend(model.tokenizer, prompts, words, [coarse], threshold=self.blend_threshold)
            controls.append(local)
            blends.append(local)
        if request.mask is not None:
            blends.append(PasteSourceRow(request.mask))
        capture = Capture(resolutions=[r for r in levels if r <= 32][:2] or levels[-1:])
        # What each place attends to, for the explorer: at one level, and in ten of the steps, for it is large.
        places = Capture(["self"], [coarse], range(0, self.steps, -(-self.steps // 10)))

        inversion = self.invert(model, request, schedule)
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            self.guidance_scale,
            source_scale=self.source_guidance_scale,
            attention=Chain([*controls, capture, places]),
            blends=blends,
            callbacks=request.callbacks,
        )
        mask = request.mask
        if local is not None and local.mask is not None:
            mask = local.mask if request.mask is None else local.mask * request.mask
        return finish(
            model,
            request,
            inversion,
            z_0,
            mask=mask,
            attention=AttentionMaps({**capture.records, **places.records}, model.tokenizer, prompts),
        )
