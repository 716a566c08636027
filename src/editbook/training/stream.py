"""Training scenes, drawn on the fly: an endless, deterministic stream that can be taken up again after a kill."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..pocket import PHRASINGS, sample


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
    """

    def __init__(self, seed: int, batch_size: int, *, size: int = 64, reuse: int = 4, pool: int = 2048) -> None:
        if batch_size % reuse:
            raise ValueError(f"batch_size must be a multiple of reuse, got {batch_size} and {reuse}.")
        self.batch_size, self.size, self.fresh = batch_size, size, batch_size // reuse
        self._first = seed * 1_000_000_000
        self._drawn = 0
        self._rng = np.random.default_rng([seed, 21])
        self._pictures = torch.zeros(pool, 3, size, size, dtype=torch.uint8)
        self._captions: list[list[str]] = [[""] * PHRASINGS for _ in range(pool)]
        self._fill(pool)

    def _fill(self, count: int) -> torch.Tensor:
        slots = [(self._drawn + k) % len(self._captions) for k in range(count)]
        for k, slot in enumerate(slots):
            scene = sample(self._first + self._drawn + k)
            self._pictures[slot] = torch.from_numpy(scene.array(self.size)).permute(2, 0, 1)
            self._captions[slot] = [scene.caption(phrasing) for phrasing in range(PHRASINGS)]
        self._drawn += count
        return torch.tensor(slots)

    def advance(self) -> torch.Tensor:
        """Draw the next fresh scenes into the pool; returns their slots."""
        return self._fill(self.fresh)

    def choose(self) -> torch.Tensor:
        """The slots of the next batch."""
        return torch.from_numpy(self._rng.integers(len(self._captions), size=self.batch_size))

    def pictures(self, slots: torch.Tensor) -> torch.Tensor:
        """Pictures of these slots, float32 (n, 3, size, size) in [-1, 1]."""
        return self._pictures[slots].float() / 127.5 - 1

    def captions(self, slots: torch.Tensor) -> list[str]:
        """A caption for each slot: the canonical phrasing half the time, else any."""
        phrasing = np.where(self._rng.random(len(slots)) < 0.5, 0, self._rng.integers(PHRASINGS, size=len(slots)))
        return [self._captions[slot][k] for slot, k in zip(slots.tolist(), phrasing, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"drawn": self._drawn, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a stream of the same arguments stood."""
        self._drawn = state["drawn"] - len(self._captions)
        self._fill(len(self._captions))
        self._rng.bit_generator.state = state["rng"]
