"""Controls that exchange queries, keys or values before attention runs, which stays one fused call.

Self-attention draws each pixel as a mixture of the values of other pixels. Whose keys and values those are is a seam of
its own: let the target row read the source's, and it rearranges the source's texture (MasaCtrl); give it the source's
queries and keys, and it takes over the layout (Plug-and-Play); take keys and values from the inversion's walk, and the
source cannot drift (TIC, KV Inversion).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch

from ..errors import EditbookError, unknown
from .control import Control, Projected, Site, source_of


class Swap(Control):
    """Changes query, key and value of self-attention layers. Subclasses override `exchange`.

    Unlike other controls it sees the *whole* batch: with guidance the null rows come first (all of them, or those of
    the guided rows only, see `ClassifierFreeGuidance`), then the n conditional rows, of which the first is the source.

    It can stand in a `Chain` beside controls that read probabilities. At a layer which both want, all exchanges come
    first, so the others see the attention of the exchanged queries and keys.

    Args:
        resolutions: Heights of the feature maps; None takes all.
        sides: Parts of the U-Net: "down", "mid", "up". The decoder is "up".
        start: First step, counted from 0.
        stop: Step before which it ends; None goes to the last.

    Raises:
        EditbookError: A side is unknown, or the steps are not in order.
    """

    reads_probabilities: ClassVar[bool] = False

    def __init__(
        self,
        resolutions: Iterable[int] | None = None,
        sides: Iterable[str] = ("down", "mid", "up"),
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self.resolutions = None if resolutions is None else set(resolutions)
        self.sides, self.start, self.stop = set(sides), start, stop
        for side in self.sides:
            if side not in ("down", "mid", "up"):
                raise unknown("side of the U-Net", side, ("down", "mid", "up"))
        if start < 0 or (stop is not None and stop < start):
            raise EditbookError(f"A swap runs from step {start} to step {stop}: they must be 0 or more, and in order.")

    def wants(self, site: Site) -> bool:
        """Self-attention at the places asked for."""
        fits = self.resolutions is None or site.resolution in self.resolutions
        return site.kind == "self" and site.side in self.sides and fits

    def active(self, site: Site) -> bool:
        """Between the first and the last step."""
        return self.start <= self.step and (self.stop is None or self.step < self.stop)

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """The query, key and value to go on with.

        Args:
            projected: Of the whole batch; not to be changed in place (`projected._replace(key=...)`). There may be more
                or fewer keys afterwards, each with its value, but as many in every row. A mask may be added.
            site: The layer.
            rows: n, the number of conditional rows, which are the last ones: `key[-rows:]`.
        """
        raise NotImplementedError

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        """Never called: a swap forms no probabilities."""
        return probabilities


class MutualSelfAttention(Swap):
    """MasaCtrl's control: every target asks with its own queries, and the source's pixels answer.

    Queries carry the layout, keys and values the content; so the target draws its own layout with what the source has.
    The first steps and the encoder are left alone, because there the layout is still to be found (Cao et al. 2023).

    With `foreground`, like looks at like: what is object in the target sees the source's object only, and its
    background the source's background. The paper runs attention twice, with log m and log(1 - m) added to the scores,
    and puts the outputs together by the target's mask; each pixel takes one of the two, so it is one call with one mask
    here. A pixel that would see nothing, because the source's side is empty at this grid, sees everything; the official
    code fails there in half precision.

    Which row is the source for a null row: see `control.source_of`. Under a negative prompt that is the source's own
    (ProxEdit) both of its rows are the same.

    Args:
        resolutions: As in `Swap`; the paper's layers 10 to 15 are the decoder's two finest (32 and 64 in SD).
        sides: As in `Swap`.
        start: The first step of the control; 4 of 50 in the paper.
        stop: As in `Swap`.
        inject: What conditional rows attend to: the "source", "joint" (both at once), or "none" (themselves).
        inject_null: The same for null rows.
        foreground: What is object at a layer's grid: bool (n, pixels), a row for each conditional row, or None where
            that is not known yet; see `foreground.Foreground`.
    """

    MODES: ClassVar[tuple[str, ...]] = ("source", "joint", "none")

    def __init__(
        self,
        resolutions: Iterable[int] | None = None,
        sides: Iterable[str] = ("up",),
        start: int = 4,
        stop: int | None = None,
        inject: str = "source",
        inject_null: str = "source",
        foreground: Callable[[Site], torch.Tensor | None] | None = None,
    ) -> None:
        super().__init__(resolutions, sides, start, stop)
        self.inject, self.inject_null, self.foreground = inject, inject_null, foreground
        for mode in (inject, inject_null):
            if mode not in self.MODES:
                raise unknown("injection", mode, self.MODES)

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        """The source's keys and values for everyone, or both, half by half."""
        batch = len(projected.key)
        source = source_of(batch, rows)
        modes = [self.inject_null] * (batch - rows) + [self.inject] * rows
        own = list(range(batch))
        first = [row if mode != "source" else other for row, other, mode in zip(own, source, modes, strict=True)]
        second = [row if mode == "none" else other for row, other, mode in zip(own, source, modes, strict=True)]
        # All rows need equally many keys. A row that attends to one picture gets it twice, which changes no average.
        read = [first] if first == second else [first, second]
        key, value = (torch.cat([part[chosen] for chosen in read], dim=2) for part in projected[1:3])
        free = [row for row in own if source[row] == row or modes[row] == "none"]
        return projected._replace(key=key, value=value, mask=self._like_to_like(site, batch, rows, read, free))

    def _like_to_like(
        self, site: Site, batch: int, rows: int, read: list[list[int]], free: list[int]
    ) -> torch.Tensor | None:
        """Which keys each pixel may see, bool (batch, 1, pixels, keys); rows that are free see all."""
        inside = None if self.foreground is None else self.foreground(site)
        if inside is None:
            return None
        # Null rows are those of the last conditional rows, or of all.
        inside = torch.cat([inside[2 * rows - batch :], inside])
        keys = torch.cat([inside[chosen] for chosen in read], dim=1)
        seen = inside[:, :, None] == keys[:, None, :]
        seen[free] = True
        return (seen | ~seen.any(-1, keepdim=True))[:, None]
