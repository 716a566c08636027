"""Capturing attention, and turning it into pictures: one map for a word, a resolution, a span of steps.

Aggregation recipes and the layers to use: Hertz et al. 2022 (Prompt-to-Prompt), Tang et al. 2023 (DAAM), Chefer et al.
2023 (Attend-and-Excite); the survey's Eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..errors import EditbookError
from .align import tokens_of
from .control import Control, Site


class Capture(Control):
    """Keeps attention probabilities, averaged over heads, as float32 on the CPU.

    Args:
        kinds: "cross", "self" or both.
        resolutions: Heights of feature maps to keep; None keeps all.
        steps: Indices of the steps to keep; None keeps all.
        rows: Conditional rows to keep; None keeps all.

    In a `Chain`, a capture before a control keeps the layer's own maps, one behind it the edited maps.
    """

    def __init__(
        self,
        kinds: Iterable[str] = ("cross",),
        resolutions: Iterable[int] | None = None,
        steps: Iterable[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        self.kinds = set(kinds)
        self.resolutions = None if resolutions is None else set(resolutions)
        self.steps = None if steps is None else set(steps)
        self.rows = rows
        self.records: dict[tuple[Site, int], torch.Tensor] = {}
        """(site, step) -> (rows, pixels, tokens)."""

    def wants(self, site: Site) -> bool:
        """The layers of the kinds and resolutions asked for."""
        return site.kind in self.kinds and (self.resolutions is None or site.resolution in self.resolutions)

    def active(self, site: Site) -> bool:
        """Only in the steps asked for."""
        return self.steps is None or self.step in self.steps

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Keep the mean over heads; change nothing."""
        kept = probabilities if self.rows is None else probabilities[list(self.rows)]
        self.records[site, self.step] = kept.mean(1).float().cpu()
        return probabilities

    def maps(self, tokenizer: Any, prompts: Sequence[str]) -> AttentionMaps:
        """The records together with the prompts that they belong to, one for each kept row."""
        return AttentionMaps(self.records, tokenizer, prompts)


class MeanMaps(Control):
    """Mean attention over heads, layers and calls, of one resolution for each kind; keeps the graph where there is one.

    Args:
        resolutions: Height of the feature map by kind, e.g. {"cross": 16, "self": 32}.
    """

    def __init__(self, resolutions: Mapping[str, int]) -> None:
        self.resolutions = resolutions
        self.clear()

    def clear(self) -> None:
        """Forget all calls."""
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def wants(self, site: Site) -> bool:
        """The layers of the resolutions asked for."""
        return self.resolutions.get(site.kind) == site.resolution

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Add the mean over heads of the last row; change nothing."""
        self.size = (site.height, site.width)
        self._sums[site.kind] = self._sums.get(site.kind, 0) + probabilities[-1].mean(0)
        self._counts[site.kind] = self._counts.get(site.kind, 0) + 1
        return probabilities

    def mean(self, kind: str = "cross") -> torch.Tensor:
        """(height, width, tokens), where the tokens of "self" are the pixels that are attended to."""
        mean = self._sums[kind] / self._counts[kind]
        height = self.resolutions[kind]
        return mean.unflatten(0, (height, -1))


def smooth(maps: torch.Tensor) -> torch.Tensor:
    """Attend-and-Excite's 3 x 3 Gaussian over maps (n, height, width): its "sigma 0.5" gives weights 1 and 1/e."""
    line = torch.tensor([math.exp(-1), 1, math.exp(-1)], dtype=maps.dtype, device=maps.device)
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(maps[:, None], (1, 1, 1, 1), mode="reflect")
    return functional.conv2d(padded, kernel[None, None])[:, 0]


class AttentionMaps:
    """Captured attention by (kind, resolution, step, token), with the words of the prompts.

    Args:
        records: (site, step) -> probabilities (rows, pixels, tokens), as `Capture` keeps them.
        tokenizer: Gives the tokens of a word.
        prompts: The prompt of each row.
    """

    def __init__(self, records: dict[tuple[Site, int], torch.Tensor], tokenizer: Any, prompts: Sequence[str]) -> None:
        if not records:
            raise EditbookError("No attention was captured: no step was run, or none of those asked for.")
        rows = len(next(iter(records.values())))
        if rows != len(prompts):
            raise EditbookError(f"{rows} rows of attention were captured for {len(prompts)} prompts.")
        self.records, self.tokenizer, self.prompts = records, tokenizer, list(prompts)

    @property
    def resolutions(self) -> list[int]:
        """Heights of the captured feature maps, largest first."""
        return sorted({site.resolution for site, _ in self.records}, reverse=True)

    @property
    def steps(self) -> list[int]:
        """Indices of the captured steps, 0 the noisiest."""
        return sorted({step for _, step in self.records})

    def mean(
        self,
        kind: str = "cross",
        resolution: int | None = None,
        steps: Iterable[int] | None = None,
        sides: Iterable[str] = ("down", "mid", "up"),
    ) -> torch.Tensor:
        """Mean over layers and steps of one resolution: (rows, height, width, tokens), each pixel's tokens sum to 1.

        Args:
            kind: "cross" or "self"; for "self" the tokens are the pixels that are attended to.
            resolution: Height of the feature map; the largest captured if None.
            steps: Indices of steps; all captured if None.
            sides: Which parts of the U-Net to average.
        """
        resolution = self.resolutions[0] if resolution is None else resolution
        wanted = None if steps is None else set(steps)
        chosen = [
            (site, record)
            for (site, step), record in self.records.items()
            if site.kind == kind
            and site.resolution == resolution
            and site.side in set(sides)
            and (wanted is None or step in wanted)
        ]
        if not chosen:
            raise EditbookError(
                f"No {kind}-attention of resolution {resolution} was captured for these steps and sides."
            )
        site = chosen[0][0]
        stacked = torch.stack([record for _, record in chosen]).mean(0)
        return stacked.unflatten(1, (site.height, site.width))

    def map(
        self,
        word: str,
        *,
        row: int = 0,
        resolution: int | None = None,
        steps: Iterable[int] | None = None,
        sides: Iterable[str] = ("down", "mid", "up"),
        size: int | None = None,
    ) -> np.ndarray:
        """Where a word acts: float32 (height, width), its smallest value 0 and its largest 1.

        Args:
            word: A word or run of words of the row's prompt; several tokens are averaged.
            row: Which prompt.
            size: Resize (bicubic) to this side before normalising; None keeps the layer's resolution.
            resolution: See `mean`; None averages all captured resolutions at the size of the largest.
            steps: See `mean`.
            sides: See `mean`.
        """
        tokens = tokens_of(self.tokenizer, self.prompts[row], word)
        levels = [resolution] if resolution is not None else self.resolutions
        side = size or max(levels)
        layers = []
        for level in levels:
            heat = self.mean("cross", level, steps, sides)[row, :, :, tokens].mean(-1)
            ratio = heat.shape[1] / heat.shape[0]
            heat = functional.interpolate(
                heat[None, None], size=(side, round(side * ratio)), mode="bicubic", align_corners=False
            )
            layers.append(heat[0, 0])
        heat = torch.stack(layers).mean(0)
        heat = heat - heat.min()
        return (heat / heat.max().clamp_min(1e-12)).numpy()

    def show(self, word: str, image: Any = None, **options: Any) -> Any:
        """Draw the map of a word, over a picture if one is given; `options` as in `map`."""
        from ..plot import heat

        return heat(self.map(word, **options), image, title=word)
