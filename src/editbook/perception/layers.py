"""Layers that the scene reader and the segmenter share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """Two convolutions beside the identity.

    Args:
        width: Channels, a multiple of 8.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return x + self.layers(x)


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Each cell as four: (n, channels, h, w) to (n, channels, 2 h, 2 w)."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def mean_under(features: torch.Tensor, weights: torch.Tensor, floor: float = 0.0) -> torch.Tensor:
    """Mean of features under each of several masks.

    Args:
        features: (n, channels, h, w).
        weights: Masks of the same cells, (n, masks, h, w), at least 0.
        floor: Cells that are added to a mask's area: with it the mean of an empty mask is 0, not NaN, and that of a
            small one shrinks.

    Returns:
        (n, masks, channels).
    """
    flat = weights.flatten(2).to(features)
    return flat @ features.flatten(2).transpose(1, 2) / (flat.sum(-1, keepdim=True) + floor)
