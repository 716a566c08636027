"""Metrics on pixels, over a whole picture or a part of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import EditbookError

_ROUNDING = 1e-6  # how far outside [0, 1] a float picture may lie


def unit(picture: Any, name: str) -> np.ndarray:
    """The values of a picture in [0, 1], float64 (height, width, channels) or (height, width).

    Args:
        picture: A PIL image or an array, uint8 or float in [0, 1].
        name: What to call it in an error.

    Raises:
        EditbookError: NaN, a value outside the range, or another type.
    """
    array = np.asarray(picture)
    if array.ndim not in (2, 3) or not array.size:
        raise EditbookError(f"{name} must be a picture (height, width, channels), not of shape {array.shape}.")
    if array.dtype == np.uint8:
        return array.astype(np.float64) / 255
    if not np.issubdtype(array.dtype, np.floating):
        raise EditbookError(f"{name} must be uint8, or float in [0, 1], not {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # false for NaN as well
        raise EditbookError(f"{name} is a float picture and must lie in [0, 1]; it has {low:.4g} to {high:.4g}.")
    return array.astype(np.float64)


def pair(image: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures of one shape as `unit` gives them; `EditbookError` where the shapes differ."""
    a, b = unit(image, "image"), unit(reference, "reference")
    if a.shape != b.shape:
        raise EditbookError(f"image and reference have different shapes, {a.shape} and {b.shape}: resize one of them.")
    return a, b


def weighted_mean(values: np.ndarray, weight: Any | None) -> float:
    """Mean of (height, width) or (height, width, channels) values, over a weight (height, width) if there is one."""
    if weight is None:
        return float(values.mean())
    weight = np.asarray(weight, np.float64)
    if weight.shape != values.shape[:2]:
        raise EditbookError(f"weight must have the picture's height and width {values.shape[:2]}, not {weight.shape}.")
    if not (weight.min() >= 0 and weight.sum() > 0):  # NaN is neither
        raise EditbookError("weight must be positive somewhere, negative or NaN nowhere: the mask is empty or damaged.")
    per_pixel = values.mean(axis=-1) if values.ndim == 3 else values
    return float((per_pixel * weight).sum() / weight.sum())


def mse(image: Any, reference: Any, weight: np.ndarray | None = None) -> float:
    """Mean squared error of two pictures whose values are scaled to [0, 1].

    Args:
        image: A picture, or an array (height, width, channels), uint8 or float in [0, 1].
        reference: What it should be, of the same size.
        weight: Where to measure, (height, width), not negative; None is everywhere. The mean runs over weighted pixels
            only (PIE-Bench's script divides by all pixels instead, which makes it depend on the mask's size).

    Raises:
        EditbookError: Sizes differ, values lie outside the range, or the weight is 0 everywhere.
    """
    a, b = pair(image, reference)
    return weighted_mean((a - b) ** 2, weight)


def l1(image: Any, reference: Any, weight: np.ndarray | None = None) -> float:
    """Mean absolute error, values scaled to [0, 1]; MagicBrush's first metric. Arguments as in `mse`."""
    a, b = pair(image, reference)
    return weighted_mean(np.abs(a - b), weight)


def psnr(image: Any, reference: Any, weight: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE); infinite for equal pictures. Arguments as in `mse`."""
    error = mse(image, reference, weight)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def mask_iou(mask: np.ndarray, reference: np.ndarray, threshold: float = 0.5) -> float:
    """Intersection over union of two masks, each taken where it is above the threshold.

    Args:
        mask: (height, width) in [0, 1].
        reference: Of the same shape.
        threshold: In [0, 1).

    Raises:
        EditbookError: Shapes differ, values lie outside [0, 1], or both masks are empty, for which it is undefined.
    """
    a, b = unit(mask, "mask"), unit(reference, "reference")
    if a.shape != b.shape:
        raise EditbookError(f"mask and reference have different shapes, {a.shape} and {b.shape}: resize one of them.")
    union = ((a > threshold) | (b > threshold)).sum()
    if not union:
        raise EditbookError(f"mask and reference are both empty above {threshold}: their overlap is undefined.")
    return float(((a > threshold) & (b > threshold)).sum() / union)


def peak_inside(heat: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the largest cell of a map lies where the (larger) mask is above one half."""
    row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
    y = int((row + 0.5) / heat.shape[0] * mask.shape[0])
    x = int((column + 0.5) / heat.shape[1] * mask.shape[1])
    return bool(mask[y, x] > 0.5)
