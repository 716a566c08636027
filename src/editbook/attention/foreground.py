"""What is object and what is background, at the grid of any attention layer: given, or read from the words' maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ..errors import EditbookError
from ..model import Model
from .align import tokens_of
from .control import Control, Site, map_height


def at_grid(masks: torch.Tensor, site: Site) -> torch.Tensor:
    """Masks (n, h, w) at a layer's grid, (n, pixels), by the nearest cell."""
    return functional.interpolate(masks[:, None], size=(site.height, site.width), mode="nearest")[:, 0].flatten(1)


class Foreground:
    """Known masks, one for each conditional row.

    Args:
        masks: (n, h, w) in [0, 1]; above 0.5 is object.
    """

    def __init__(self, masks: torch.Tensor) -> None:
        self.masks = masks

    def __call__(self, site: Site) -> torch.Tensor:
        """Bool (n, pixels)."""
        return at_grid(self.masks, site) > 0.5


class WordForeground(Control):
    """Masks from where words act: their cross-attention at one resolution, in this step, in the layers so far.

    MasaCtrl's recipe: the mean over heads and layers, summed over the word's tokens, stretched to [0, 1] in each row,
    above a threshold. It is a control, so put it into the `Chain` beside the one that asks it.

    Args:
        tokenizer: Gives the tokens of the words.
        prompts: One for each conditional row.
        words: The word, or run of words, of each prompt; None for a row that has no object.
        resolution: Height of the feature map, see `control.map_height`.
        threshold: In (0, 1).

    Raises:
        EditbookError: A word is not in its prompt, or the threshold is not between 0 and 1.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[str],
        words: Sequence[str | None],
        resolution: int,
        threshold: float = 0.1,
    ) -> None:
        if not 0 < threshold < 1:
            raise EditbookError(f"mask_threshold must lie between 0 and 1, got {threshold!r}.")
        self._tokens = [
            [] if word is None else tokens_of(tokenizer, prompt, word)
            for prompt, word in zip(prompts, words, strict=True)
        ]
        self.resolution, self.threshold = resolution, threshold
        self._heat: torch.Tensor | None = None

    @classmethod
    def of(
        cls, model: Model, prompts: Sequence[str], words: Sequence[str | None], threshold: float = 0.1
    ) -> WordForeground:
        """The same for a model, read at the `control.map_height` below its finest level, as on Stable Diffusion."""
        resolution = map_height(model.unet, model.latent_shape[1], below_finest=True)
        return cls(model.tokenizer, prompts, words, resolution, threshold)

    def wants(self, site: Site) -> bool:
        """Cross-attention of the one resolution."""
        return site.kind == "cross" and site.resolution == self.resolution

    def begin_step(self, i: int, total: int) -> None:
        """Forget the maps of the step before."""
        super().begin_step(i, total)
        self._heat = None

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Add this layer's maps of the words; change nothing."""
        heat = torch.stack([probabilities[row][..., tokens].sum(-1).mean(0) for row, tokens in enumerate(self._tokens)])
        heat = heat.unflatten(1, (site.height, site.width))
        self._heat = heat if self._heat is None else self._heat + heat
        return probabilities

    def __call__(self, site: Site) -> torch.Tensor | None:
        """Bool (n, pixels); None before the first map of the step."""
        if self._heat is None:
            return None
        low, high = self._heat.amin((1, 2), keepdim=True), self._heat.amax((1, 2), keepdim=True)
        return at_grid((self._heat - low) / (high - low).clamp_min(1e-12), site) > self.threshold
