"""Prompt-to-Prompt's LocalBlend: a mask from the cross-attention of a word, sharpened step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ..attention import Control, Site, tokens_of
from ..errors import EditbookError
from ..sampling import Step, whole_steps
from .blend import paste_source_row


class LocalBlend(Control):
    """Keeps the source outside the places where the blend words act, in source or target.

    It is a control (it sums the cross-attention of all steps so far) and a blend (it pastes the source row's latent
    outside the mask after each step). Put it last in a `Chain`: it then sees the maps that the edit really used, as
    the official code does.

    Args:
        tokenizer: Gives the tokens of the words.
        prompts: The source prompt, then the target prompts, one for each row.
        words: The word, or run of words, of each prompt whose region may change.
        resolutions: Heights of the feature maps to sum; choose those where an object has a few cells (16 of SD's 64,
            8 of the pocket model's 16).
        threshold: A cell belongs to the mask if its value is above this fraction of the largest.
        start: Blending begins at this fraction of the steps.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[str],
        words: Sequence[str],
        resolutions: Sequence[int],
        *,
        threshold: float = 0.3,
        start: float = 0.2,
    ) -> None:
        if not 0 < threshold < 1:
            raise EditbookError(f"The blend threshold must lie between 0 and 1, got {threshold!r}.")
        if len(words) != len(prompts):
            raise EditbookError(f"LocalBlend needs one word for each of the {len(prompts)} prompts, got {len(words)}.")
        self._tokens = [tokens_of(tokenizer, prompt, word) for prompt, word in zip(prompts, words, strict=True)]
        self.threshold, self.start, self.resolutions = threshold, start, resolutions
        self._sum: dict[int, torch.Tensor] = {}
        self.mask: torch.Tensor | None = None
        """The mask of the last step, (1, 1, h, w) of 0 and 1, at the latent's size; None before the first."""
        self.masks: list[torch.Tensor] = []

    def wants(self, site: Site) -> bool:
        """Cross-attention on the way down and up, at the chosen resolutions."""
        return site.kind == "cross" and site.side != "mid" and site.resolution in self.resolutions

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Add this layer's maps of the words to the sum; change nothing."""
        rows = [probabilities[row][:, :, tokens].sum(-1).mean(0) for row, tokens in enumerate(self._tokens)]
        heat = torch.stack(rows).unflatten(1, (site.height, site.width))
        self._sum[site.resolution] = self._sum.get(site.resolution, 0) + heat
        return probabilities

    def __call__(self, step: Step) -> torch.Tensor:
        """The blended z_next."""
        size = step.z_next.shape[-2:]
        heat = torch.stack(
            [
                functional.interpolate(functional.max_pool2d(heat[:, None], 3, 1, 1), size=size, mode="nearest")
                for heat in self._sum.values()
            ]
        ).mean(0)
        heat = heat / heat.amax((2, 3), keepdim=True).clamp_min(1e-12)
        self.mask = (heat > self.threshold).any(0, keepdim=True).to(step.z_next)
        self.masks.append(self.mask)
        if step.i < whole_steps(self.start, step.total):
            return step.z_next
        return paste_source_row(step, self.mask)
