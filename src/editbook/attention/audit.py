"""What controls really change: every layer and step at which something came out of a control other than it went in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from . import control as control_module
from .control import Control, Projected, Site
from .features import Block, Features

WHAT = ("query", "key", "value", "mask", "scores", "map", "output", "features")


@dataclass(frozen=True)
class Touch:
    """One change.

    Args:
        control: Class of the control.
        what: One of `WHAT`: what went into attention, its scores, its map, its output, or a residual block's features.
        kind: "cross", "self", or "residual".
        side: "down", "mid" or "up".
        resolution: Height of the feature map.
        step: Of the walk, from 0.
        total: Steps of the walk.
    """

    control: str
    what: str
    kind: str
    side: str
    resolution: int
    step: int
    total: int


@contextmanager
def audit() -> Iterator[list[Touch]]:
    """A context in which all controls are watched; yields the list to which their changes are written.

    Changes are compared by value, so a control that puts back what it found is not there: the list says what a method
    does, not what its code says that it would do. Nested contexts each get everything.
    """
    found: list[Touch] = []
    processors, hook = control_module._processors, Features._hook

    def watched(unet: Any, latent_size: tuple[int, int], rows: int, controls: Sequence[Control]) -> Any:
        return processors(unet, latent_size, rows, [_Watched(control, found) for control in controls])

    def watched_hook(self: Features, block: Block, rows: int) -> Any:
        inner = hook(self, block, rows)

        def outer(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            changed: torch.Tensor = inner(module, inputs, output)
            if _differ(changed, output):
                where = ("residual", block.side, block.resolution, self.step, self.total)
                found.append(Touch(type(self).__name__, "features", *where))
            return changed

        return outer

    control_module._processors, Features._hook = watched, watched_hook  # type: ignore[assignment, method-assign]
    try:
        yield found
    finally:
        control_module._processors, Features._hook = processors, hook  # type: ignore[method-assign]


def _differ(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is not other
    return one is not other and not torch.equal(one, other)


class _Watched(Control):
    """A control, and beside it what it changes."""

    def __init__(self, inner: Control, found: list[Touch]) -> None:
        self.inner, self.found = inner, found
        self.name: str = inner.name if isinstance(inner, _Watched) else type(inner).__name__
        # The layers ask the instance: what the class says is for controls that are written out.
        self.reads_scores = inner.reads_scores  # type: ignore[misc]
        self.reads_probabilities = inner.reads_probabilities  # type: ignore[misc]
        self.reads_outputs = inner.reads_outputs  # type: ignore[misc]

    def wants(self, site: Site) -> bool:
        return self.inner.wants(site)

    def active(self, site: Site) -> bool:
        return self.inner.active(site)

    def exchange(self, projected: Projected, site: Site, rows: int) -> Projected:
        changed = self.inner.exchange(projected, site, rows)
        for what in Projected._fields:
            self._note(what, getattr(changed, what), getattr(projected, what), site)
        return changed

    def rescore(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        return self._note("scores", self.inner.rescore(scores, site), scores, site)

    def apply(self, probabilities: torch.Tensor, site: Site) -> torch.Tensor:
        return self._note("map", self.inner.apply(probabilities, site), probabilities, site)

    def observe(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        return self._note("output", self.inner.observe(output, site), output, site)

    def _note(self, what: str, after: Any, before: Any, site: Site) -> Any:
        if _differ(after, before):
            step = _clock(self.inner)
            self.found.append(Touch(self.name, what, site.kind, site.side, site.resolution, step.step, step.total))
        return after


def _clock(control: Control) -> Control:
    """The control whose step the sampler sets: the innermost."""
    return _clock(control.inner) if isinstance(control, _Watched) else control


def span(steps: Sequence[int], total: int) -> str:
    """Steps in words: "all", "first 40 %", "from step 4", or "steps 4 to 39"; gaps are left out."""
    first, last = min(steps), max(steps)
    if first == 0:
        return "all" if last == total - 1 else f"first {100 * (last + 1) / total:.0f} %"
    return f"from step {first}" if last == total - 1 else f"steps {first} to {last}"


def table(touches: Sequence[Touch]) -> list[tuple[str, str, str, str]]:
    """The changes of one edit, gathered: (what of which attention, sides, heights, steps) for each kind of change.

    Attention's inputs that change together stand in one row, e.g. "self: key, value".
    """
    parts: dict[tuple[str, str], list[Touch]] = {}
    for touch in touches:
        parts.setdefault((touch.kind, touch.what), []).append(touch)
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for (kind, what), found in sorted(parts.items(), key=lambda item: (item[0][0], WHAT.index(item[0][1]))):
        sides = ", ".join(side for side in ("down", "mid", "up") if side in {touch.side for touch in found})
        heights = ", ".join(str(height) for height in sorted({touch.resolution for touch in found}, reverse=True))
        steps = span([touch.step for touch in found], found[0].total)
        rows.setdefault((kind, sides, heights, steps), []).append(what)
    return [(f"{kind}: {', '.join(what)}", *where) for (kind, *where), what in rows.items()]  # type: ignore[misc]
