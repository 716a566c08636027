"""From a heat map to a mask: threshold, dilation, inversion and blur, in one place for every source of masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..errors import EditbookError


@dataclass(frozen=True)
class MaskShape:
    """What is done to a heat map, in this order.

    Args:
        threshold: Where the map is above this, in [0, 1), the mask is 1 and elsewhere 0; None keeps its values.
        dilate: Widens the mask by so many pixels on each side (a square of side 2 dilate + 1); below 0 narrows it.
        invert: Swap inside and outside, for edits of the background.
        blur: Standard deviation, in pixels, of a Gaussian that softens the edge.
    """

    threshold: float | None = None
    dilate: int = 0
    invert: bool = False
    blur: float = 0.0

    def __post_init__(self) -> None:
        if self.threshold is not None and not (_is_number(self.threshold) and 0 <= self.threshold < 1):
            raise EditbookError(f"threshold of a mask lies in [0, 1), or is None, got {self.threshold!r}.")
        if not isinstance(self.dilate, int) or isinstance(self.dilate, bool):
            raise EditbookError(f"dilate is a whole number of pixels, below 0 to narrow the mask, got {self.dilate!r}.")
        if not isinstance(self.invert, bool):
            raise EditbookError(f"invert is True or False, got {self.invert!r}.")
        if not (_is_number(self.blur) and 0 <= self.blur < math.inf):
            raise EditbookError(f"blur is a number of pixels of at least 0, got {self.blur!r}.")

    def __call__(self, heat: np.ndarray) -> np.ndarray:
        """The mask: float32 in [0, 1], shaped like the map (height, width)."""
        mask = heat.astype(np.float32) if self.threshold is None else (heat > self.threshold).astype(np.float32)
        side = 2 * abs(self.dilate) + 1
        if self.dilate > 0:
            mask = ndimage.grey_dilation(mask, (side, side), mode="nearest")
        elif self.dilate < 0:
            mask = ndimage.grey_erosion(mask, (side, side), mode="nearest")
        if self.invert:
            mask = 1 - mask
        return ndimage.gaussian_filter(mask, self.blur, mode="nearest") if self.blur else mask


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
