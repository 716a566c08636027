"""A second picture beside the one to edit: what methods share that take looks from one, and places from the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..attention import Control, Site, WordForeground
from ..images import as_image, fit
from ..inversion import Inversion
from ..masks import KeepSource
from ..model import Model
from ..sampling import Blend, Schedule
from .base import InvertingMethod, Request

Masks = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From latents, which give the size, to the masks of the first two rows, bool (h, w) each."""


class SideBySide:
    """Rows that are sampled together: the picture, a second picture or a run in its place, and the target.

    A picture is inverted, and put back on its path after every step. What cannot be used is known before any walk.

    Args:
        model: The model.
        request: The picture to edit, seed and callbacks.
        prompts: One for each row.
        reference: The second picture: a PIL picture, an array or a file; any size. None lets row 1 run freely.
        words: The object's word in each prompt, or None where a row has none; None is no word at all.
        threshold: See `WordForeground`.

    Raises:
        EditbookError: A prompt, a word or the reference cannot be used.
    """

    def __init__(
        self,
        model: Model,
        request: Request,
        prompts: Sequence[str],
        reference: Any = None,
        words: Sequence[str | None] | None = None,
        threshold: float = 0.1,
    ) -> None:
        model.embed(list(prompts))
        self.model, self.request, self.prompts = model, request, list(prompts)
        self.reference = None if reference is None else fit(as_image(reference), model.image_size)
        self.foreground = None if words is None else WordForeground.of(model, prompts, words, threshold)

    @property
    def controls(self) -> list[Control]:
        """What has to watch attention: where the word acts, if there is one."""
        return [] if self.foreground is None else [self.foreground]

    @property
    def masks(self) -> Masks | None:
        """Where the word acts in rows 0 and 1, in the step that was just made; None without a word."""
        return None if self.foreground is None else self._masks

    def _masks(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = z.shape[-2:]
        assert self.foreground is not None
        found = self.foreground(Site("cross", "up", height, 0, height, width))
        assert found is not None  # the U-Net has just run
        return found[0].view(height, width), found[1].view(height, width)

    def invert(self, method: InvertingMethod, schedule: Schedule) -> tuple[Inversion, torch.Tensor, list[Blend]]:
        """Invert the picture, and the reference alike.

        Args:
            method: Whose inversion is used.
            schedule: The steps.

        Returns:
            The picture's inversion; where each row starts, (rows, channels, height, width), rows without a picture from
            the first one's z_T; and the blends that keep the pictures on their paths.
        """
        requests = [self.request]
        if self.reference is not None:
            requests.append(replace(self.request, image=self.reference, source=self.prompts[1]))
        pictures = [method.invert(self.model, request, schedule) for request in requests]
        starts = [picture.z_T for picture in pictures] + [pictures[0].z_T] * (len(self.prompts) - len(pictures))
        blends: list[Blend] = [
            KeepSource(picture.latents[1:], 0.0, slice(row, row + 1)) for row, picture in enumerate(pictures)
        ]
        return pictures[0], torch.cat(starts), blends
