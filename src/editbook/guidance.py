"""Guidance with more than two predictions; classifier-free guidance itself stands in `editbook.sampling`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .errors import EditbookError
from .model import Model


@dataclass
class InstructGuidance:
    """InstructPix2Pix's two scales (Brooks et al. 2023, Eq. 3), for a U-Net that sees the source picture c.

    eps = eps(0, 0) + s_I [eps(c, 0) - eps(0, 0)] + s_T [eps(c, T) - eps(c, 0)], where 0 stands for a picture of zeros
    and for the empty instruction: s_I pulls towards the source, s_T towards what the instruction T adds to it.

    Args:
        image: c, from `Model.condition`, (1 or n, channels, height, width).
        text: Embedding of the instruction, (1 or n, tokens, width).
        null: Embedding of the empty or of a negative instruction, (1, tokens, width).
        image_scale: s_I, at least 0.
        text_scale: s_T, at least 0.

    Of the U-Net's batch the n rows of eps(c, T) are the last, as controls of attention expect.
    """

    image: torch.Tensor
    text: torch.Tensor
    null: torch.Tensor
    image_scale: float = 1.5
    text_scale: float = 7.5

    def __post_init__(self) -> None:
        for name, value in (("image_scale", self.image_scale), ("text_scale", self.text_scale)):
            if not (math.isfinite(value) and value >= 0):
                raise EditbookError(f"{name} must be a finite number of at least 0, got {value!r}.")

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The guided noise estimate, shaped like z_t.

        Raises:
            EditbookError: The model's U-Net does not take a picture.
        """
        neither, image, both = self.predictions(model, z_t, t)
        return neither + self.image_scale * (image - neither) + self.text_scale * (both - image)

    def predictions(self, model: Model, z_t: torch.Tensor, t: int) -> tuple[torch.Tensor, ...]:
        """eps(0, 0), eps(c, 0) and eps(c, T), each shaped like z_t."""
        c, null = self.image, self.null
        return self._noise(model, z_t, t, [(torch.zeros_like(c), null), (c, null), (c, self.text)])

    def with_image(self, model: Model, z_t: torch.Tensor, t: int) -> tuple[torch.Tensor, ...]:
        """eps(c, 0) and eps(c, T) alone: their difference is where the instruction acts."""
        return self._noise(model, z_t, t, [(self.image, self.null), (self.image, self.text)])

    def _noise(
        self, model: Model, z_t: torch.Tensor, t: int, conditions: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, ...]:
        if not model.takes_image:
            raise EditbookError(
                f"The U-Net of {model.name or 'this model'} does not see the source picture: load "
                "'pocket-instruct-pix2pix' or 'timbrooks/instruct-pix2pix'."
            )
        n = len(z_t)
        seen = torch.cat([torch.cat([z_t, c.expand(n, -1, -1, -1)], 1) for c, _ in conditions])
        texts = torch.cat([text.expand(n, -1, -1) for _, text in conditions])
        return model.noise(seen, t, texts).chunk(len(conditions))
