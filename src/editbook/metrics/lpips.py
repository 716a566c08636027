"""LPIPS (Zhang et al. 2018), through its authors' package `lpips` and torchvision's trunks."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import unknown
from .pixels import pair
from .towers import Score, loaded

TRUNKS = ("alex", "vgg", "squeeze")


class Lpips:
    """Learned perceptual distance; 0 for equal pictures.

    Args:
        trunk: "alex" (its authors' advice as a metric), "vgg" or "squeeze" (PIE-Bench's).
        device: Where it computes.

    Raises:
        EditbookError: Unknown trunk; the packages are not installed (`pip install editbook[scores]`); the trunk's
            weights, a download of torchvision, cannot be had.
    """

    def __init__(self, trunk: str = "squeeze", device: str = "cpu") -> None:
        if trunk not in TRUNKS:
            raise unknown("LPIPS trunk", trunk, TRUNKS)

        def load() -> Any:
            import lpips

            return lpips.LPIPS(net=trunk, version="0.1", verbose=False)

        self.model = loaded("LPIPS", trunk, load).eval().to(device)
        self.device, self.name = device, f"LPIPS {trunk}"

    @torch.no_grad()
    def __call__(self, image: Any, reference: Any) -> Score:
        """Distance of two pictures of one size; pictures as in `pixels.mse`."""
        pixels = [torch.from_numpy(array).permute(2, 0, 1)[None].float() * 2 - 1 for array in pair(image, reference)]
        return Score(float(self.model(*(values.to(self.device) for values in pixels))), self.name)
