"""Training scenes, drawn on the fly: endless, deterministic streams that can be taken up again after a kill."""

from __future__ import annotations

import multiprocessing
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch

from ..pocket import PHRASINGS, sample, sample_edit


def _draw_scene(number: int, size: int) -> tuple[np.ndarray, list[str]]:
    """The picture (size, size, 3) of scene `number`, and its caption in every phrasing."""
    scene = sample(number)
    return scene.array(size), [scene.caption(phrasing) for phrasing in range(PHRASINGS)]


def _draw_edit(number: int, size: int) -> tuple[np.ndarray, list[str]]:
    """The pictures before and after edit `number` (2, size, size, 3), and its instruction."""
    before, after, instruction = sample_edit(number)
    return np.stack([before.array(size), after.array(size)]), [instruction]


class SceneStream:
    """Batches of scenes from a rolling pool.

    Drawing a scene costs as much as training a small network on it, so each one is used `reuse` times on average
    before a new one takes its place. Scene number k of a stream is always the same scene.

    Args:
        seed: Which stream.
        batch_size: Scenes in a batch, a multiple of `reuse`.
        size: Side of the pictures in pixels.
        reuse: How often a scene is used on average.
        pool: Scenes held at a time.
        workers: Processes that draw ahead; 0 draws in this one. The stream is the same whatever their number.
    """

    _draw: ClassVar[staticmethod[[int, int], tuple[np.ndarray, list[Any]]]] = staticmethod(_draw_scene)
    _shape: tuple[int, ...] = ()  # of one item, before (3, size, size)
    _rng_key = 21

    def __init__(
        self, seed: int, batch_size: int, *, size: int = 64, reuse: int = 4, pool: int = 2048, workers: int = 0
    ) -> None:
        if batch_size % reuse:
            raise ValueError(f"batch_size must be a multiple of reuse, got {batch_size} and {reuse}.")
        self.batch_size, self.size, self.fresh = batch_size, size, batch_size // reuse
        self.pool, self._first = pool, seed * 1_000_000_000
        self._drawn = 0
        self._rng = np.random.default_rng([seed, self._rng_key])
        # Spawned, not forked: a fork copies torch's locks in whatever state its threads hold them.
        context = multiprocessing.get_context("spawn")
        self._workers = ProcessPoolExecutor(workers, context) if workers else None
        self._ahead: deque[Future[tuple[np.ndarray, list[Any]]]] = deque()
        self._pictures = torch.zeros(pool, *self._shape, 3, size, size, dtype=torch.uint8)
        self._notes: list[list[Any]] = [[]] * pool
        self._fill(pool)

    def _next(self, count: int) -> list[tuple[np.ndarray, list[Any]]]:
        """The next `count` items, in order."""
        number = self._first + self._drawn
        self._drawn += count
        if self._workers is None:
            return [self._draw(number + k, self.size) for k in range(count)]
        for k in range(len(self._ahead), count + 8 * self.fresh):
            self._ahead.append(self._workers.submit(self._draw, number + k, self.size))
        return [self._ahead.popleft().result() for _ in range(count)]

    def _fill(self, count: int) -> torch.Tensor:
        slots = [(self._drawn + k) % len(self._notes) for k in range(count)]
        for slot, (picture, notes) in zip(slots, self._next(count), strict=True):
            self._pictures[slot] = torch.from_numpy(np.moveaxis(picture, -1, -3))
            self._notes[slot] = notes
        return torch.tensor(slots)

    def advance(self) -> torch.Tensor:
        """Draw the next fresh scenes into the pool; returns their slots."""
        return self._fill(self.fresh)

    def choose(self) -> torch.Tensor:
        """The slots of the next batch."""
        return torch.from_numpy(self._rng.integers(len(self._notes), size=self.batch_size))

    def pictures(self, slots: torch.Tensor) -> torch.Tensor:
        """Pictures of these slots, float32 (n, 3, size, size) in [-1, 1]."""
        return self._pictures[slots].float() / 127.5 - 1

    def captions(self, slots: torch.Tensor) -> list[str]:
        """A caption for each slot: the canonical phrasing half the time, else any."""
        phrasing = np.where(self._rng.random(len(slots)) < 0.5, 0, self._rng.integers(PHRASINGS, size=len(slots)))
        return [self._notes[slot][k] for slot, k in zip(slots.tolist(), phrasing, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"drawn": self._drawn, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a stream of the same arguments stood."""
        self._ahead.clear()
        self._drawn = state["drawn"] - len(self._notes)
        self._fill(len(self._notes))
        self._rng.bit_generator.state = state["rng"]


class EditStream(SceneStream):
    """The same for edits: pictures are pairs, before and after, (n, 2, 3, size, size); captions are instructions."""

    _draw = staticmethod(_draw_edit)
    _shape = (2,)
    _rng_key = 22

    def captions(self, slots: torch.Tensor) -> list[str]:
        """The instruction of each slot."""
        return [self._notes[slot][0] for slot in slots.tolist()]
