"""AdaIN on latents: the colours of one region become those of another (Huang and Belongie 2017)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..sampling import Step


def adain(z: torch.Tensor, reference: torch.Tensor, inside: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """A latent whose mean and standard deviation, by channel and inside a mask, are a reference's inside its own.

    A mask of fewer than two cells has no standard deviation: the latent is then returned as it is.

    Args:
        z: (channels, h, w).
        reference: (channels, h, w).
        inside: Where z changes, bool (h, w).
        there: Where the reference is read, bool (h, w).
    """
    if inside.sum() < 2 or there.sum() < 2:
        return z
    own, other = z[:, inside], reference[:, there]
    scaled = (own - own.mean(1, keepdim=True)) / own.std(1, keepdim=True).clamp_min(1e-6)
    changed = z.clone()
    changed[:, inside] = scaled * other.std(1, keepdim=True) + other.mean(1, keepdim=True)
    return changed


class AdaIN:
    """`adain` of one row of a batch towards another, as a blend.

    Args:
        row: The row that changes.
        reference: The row whose statistics it gets.
        span: Fractions of the steps, from the first to before the last.
        masks: Gives both rows' masks at the latent's size, bool (h, w) each, when a step is done; None is everywhere.
    """

    def __init__(
        self,
        row: int,
        reference: int,
        span: tuple[float, float],
        masks: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        self.row, self.reference, self.span, self.masks = row, reference, span, masks

    def __call__(self, step: Step) -> torch.Tensor:
        """The latents to go on with."""
        if not round(self.span[0] * step.total, 9) <= step.i < round(self.span[1] * step.total, 9):
            return step.z_next
        z = step.z_next.clone()
        everywhere = torch.ones(z.shape[-2:], dtype=torch.bool, device=z.device)
        inside, there = (everywhere, everywhere) if self.masks is None else self.masks(z)
        z[self.row] = adain(z[self.row], z[self.reference], inside, there)
        return z
