"""Attention across pictures: one row asks, a reference's pixels answer, and contrast makes the answers decided."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch

from ..errors import EditbookError, unknown
from ..sampling import Span, within
from .control import Control, Projected, Site


def contrast(probabilities: torch.Tensor, strength: float, over: str = "keys") -> torch.Tensor:
    """A <- clip((A - mu) strength + mu), in [0, 1] (Alaluf et al. 2024, Eq. 5).

    Queries of one picture find no sure answer among the keys of another: attention is spread thin, and values average
    out to grey. Contrast takes from the keys below the mean and gives to those above. Before the clip each row still
    sums to 1, after it to more, the more keys were clipped at 0.

    Args:
        probabilities: (..., heads, pixels, keys).
        strength: 1 changes nothing.
        over: What mu is the mean of: the "keys" (always 1 / keys), or the "heads", as TI-Guided-Edit's code has it.
    """
    mean = probabilities.mean(-1 if over == "keys" else -3, keepdim=True)
    return torch.lerp(mean, probabilities, strength).clamp(0, 1)


class CrossImageAttention(Control):
    """The output asks with its own queries; keys and values are the appearance's; contrast after the softmax.

    Queries say where a place is in the structure, keys where it is in the appearance. They meet because self-attention
    compares parts by what they mean (Alaluf et al. 2024). In every fifth of the early steps the structure answers
    instead, which keeps the shape.

    Args:
        spans: The fractions of the steps for each height of a decoder's feature map.
        rows: Conditional rows: the structure, the appearance, and the output.
        strength: Of the contrast.
        mixed: Below this fraction every fifth step reads the structure.
    """

    def __init__(self, spans: Mapping[int, Span], rows: tuple[int, int, int], strength: float, mixed: float) -> None:
        self.spans, self.rows, self.strength, self.mixed = dict(spans), rows, strength, mixed
        self.enabled = True
        """Off, it does nothing: swap guidance needs both estimates."""

    @property
    def acts(self) -> bool:
        """Whether this step is in any span."""
        return any(within(span, self.step, self.total) for span in self.spans.values())

    def wants(self, site: Site) -> bool:
        """Self-attention of the decoder at these heights."""
        return site.kind == "self" and site.side == "up" and site.resolution in self.spans

    def active(self, site: Site) -> bool:
        """In the span of the height."""
        return self.enabled and within(self.spans[site.resolution], self.step, self.total)

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """The output's keys and values."""
        structure, appearance, output = (len(projected.key) - rows + row for row in self.rows)
        order = list(range(len(projected.key)))
        fifth = self.step % 5 == 0 and within((0, self.mixed), self.step, self.total)
        order[output] = structure if fifth else appearance
        return projected._replace(key=projected.key[order], value=projected.value[order])

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Contrast in the output's row."""
        changed = probabilities.clone()
        changed[self.rows[2]] = contrast(probabilities[self.rows[2]], self.strength)
        return changed


class IntegratedAttention(Control):
    """TI-Guided-Edit's self-attention: the target attends to the appearance and to itself, along the structure's map.

    Where both spans hold, with scores S = Q K^T / sqrt(d) and the target's own Q, K and V,

        A_s = contrast(softmax(Q_s K_s^T / sqrt(d)))      which places of the structure belong together
        B   = A_s (Q K_a^T / sqrt(d))                     the scores of the appearance, smoothed along it
        C   = log(sum exp S) - log(sum exp B)             so that each half weighs the same
        out = contrast(softmax([B + C, S])) [V_a, V]

    In the appearance's span alone the target reads it by plain mutual attention, or, with `always`, by both halves with
    B = Q K_a^T / sqrt(d) and C = 0. In the structure's span alone it takes over its queries and keys, or, with
    `structure_alone` False, nothing. Only the target's conditional row changes.

    Args:
        levels: Heights of the decoder's feature maps where the appearance acts.
        first: First transformer block, by `Site.index`, where the structure acts.
        appearance: Its span.
        structure: Its span.
        rows: Conditional rows: the structure, the appearance, and the target.
        always: Keep both halves also where the structure has ended.
        structure_alone: Take the structure's queries and keys where only it acts.
        strength: Of the contrast.
        over: What contrast's mean is taken over, see `contrast`.
        base: Of C's logarithm: "e"; or "2", as the official code has it, where the halves differ in weight.

    Raises:
        EditbookError: `over` or `base` is unknown, or a span does not lie in order in [0, 1].
    """

    reads_scores: ClassVar[bool] = True

    def __init__(
        self,
        levels: Iterable[int],
        first: int,
        appearance: Span,
        structure: Span,
        rows: tuple[int, int, int],
        *,
        always: bool = False,
        structure_alone: bool = True,
        strength: float = 1.67,
        over: str = "keys",
        base: str = "e",
    ) -> None:
        self.levels, self.first = set(levels), first
        self.appearance, self.structure, self.rows = appearance, structure, rows
        self.always, self.structure_alone, self.strength = always, structure_alone, strength
        self.over, self.base = over, base
        if over not in ("keys", "heads"):
            raise unknown("mean of contrast", over, ("keys", "heads"))
        if base not in ("e", "2"):
            raise unknown("base of the logarithm", base, ("e", "2"))
        for span in (appearance, structure):
            if not 0 <= span[0] <= span[1] <= 1:
                raise EditbookError(f"A span of steps is two fractions in [0, 1], in order, got {span!r}.")

    def _acts(self, site: Site) -> tuple[bool, bool]:
        return site.resolution in self.levels, site.index >= self.first

    def wants(self, site: Site) -> bool:
        """The decoder's self-attention where one of them ever acts."""
        return site.kind == "self" and site.side == "up" and any(self._acts(site))

    def phase(self, site: Site) -> str:
        """What happens in this step at a layer: "both", "halves", "appearance", "structure", or nothing: ""."""
        near, along = self._acts(site)
        near = near and within(self.appearance, self.step, self.total)
        along = along and within(self.structure, self.step, self.total)
        if near:
            return "both" if along else "halves" if self.always else "appearance"
        return "structure" if along and self.structure_alone else ""

    def active(self, site: Site) -> bool:
        """Where anything happens."""
        return bool(self.phase(site))

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """The appearance's keys and values for the target, in place of its own or before them."""
        batch, phase = len(projected.key), self.phase(site)
        structure, appearance, target = (batch - rows + row for row in self.rows)
        order = list(range(batch))
        order[target] = structure if phase == "structure" else appearance
        query, key, value, _ = projected
        if phase == "structure":
            return projected._replace(query=query[order], key=key[order])
        if phase == "appearance":
            return projected._replace(key=key[order], value=value[order])
        # All rows need equally many keys: the others get their own twice, which changes no average.
        return projected._replace(key=torch.cat([key[order], key], 2), value=torch.cat([value[order], value], 2))

    def rescore(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        """B + C in the target's first half."""
        if self.phase(site) != "both":
            return scores
        structure, _, target = self.rows
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        far, own = exact[target].chunk(2, -1)
        along = contrast(exact[structure].chunk(2, -1)[1].softmax(-1), self.strength, self.over)
        smooth = along @ far
        level = own.logsumexp(-1, keepdim=True) - smooth.logsumexp(-1, keepdim=True)
        changed = scores.clone()
        changed[target] = torch.cat([smooth + level / (1 if self.base == "e" else math.log(2)), own], -1).to(scores)
        return changed

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Contrast in the target's row, where it reads both halves."""
        if self.phase(site) not in ("both", "halves"):
            return probabilities
        changed = probabilities.clone()
        changed[self.rows[2]] = contrast(probabilities[self.rows[2]], self.strength, self.over)
        return changed
