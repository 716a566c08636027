"""Metrics on pixels, over a whole picture or a part of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import EditbookError


def _unit(image: Any) -> np.ndarray:
    array = np.asarray(image)
    return array.astype(np.float64) / 255 if array.dtype == np.uint8 else array.astype(np.float64)


def mse(image: Any, reference: Any, weight: np.ndarray | None = None) -> float:
    """Mean squared error of two pictures whose values are scaled to [0, 1].

    Args:
        image: A picture, or an array (height, width, channels), uint8 or float in [0, 1].
        reference: What it should be, of the same size.
        weight: Where to measure, (height, width), not negative; None is everywhere. The mean runs over weighted pixels
            only (PIE-Bench's script divides by all pixels instead, which makes it depend on the mask's size).

    Raises:
        EditbookError: Sizes differ, or the weight is 0 everywhere.
    """
    a, b = _unit(image), _unit(reference)
    if a.shape != b.shape:
        raise EditbookError(f"Pictures of different shapes cannot be compared: {a.shape} and {b.shape}.")
    error = (a - b) ** 2
    if weight is None:
        return float(error.mean())
    if weight.shape != a.shape[:2] or not weight.sum() > 0 or not weight.min() >= 0:  # NaN is neither
        raise EditbookError("The weight must have the picture's height and width, and be positive somewhere.")
    per_pixel = error.mean(axis=-1) if error.ndim == 3 else error
    return float((per_pixel * weight).sum() / weight.sum())


def psnr(image: Any, reference: Any, weight: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE); infinite for equal pictures. Arguments as in `mse`."""
    error = mse(image, reference, weight)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def peak_inside(heat: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the largest cell of a map lies where the (larger) mask is above one half."""
    row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
    y = int((row + 0.5) / heat.shape[0] * mask.shape[0])
    x = int((column + 0.5) / heat.shape[1] * mask.shape[1])
    return bool(mask[y, x] > 0.5)
