"""Metrics on pixels, over a whole picture or a part of it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from ..errors import EditbookError
from ..images import as_image

_ROUNDING = 1e-6  # how far outside [0, 1] a float picture may lie


class Undefined(EditbookError):
    """The number does not exist for this input, though nothing is wrong with it: a region is empty."""


def unit(picture: Any, name: str) -> np.ndarray:
    """The values of a picture in [0, 1], float64 (height, width, 3); a grey one has three equal channels.

    Args:
        picture: A path or a PIL image, read by `as_image`; or an array (height, width, 3) or (height, width), uint8 or
            float in [0, 1], whose values are kept as exact as they are.
        name: What to call it in an error.

    Raises:
        EditbookError: NaN, a value outside the range, or another type.
    """
    if isinstance(picture, Image.Image | str | os.PathLike):
        picture = as_image(picture, name)  # the array of a palette picture holds indices, not colours
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[..., None].repeat(3, axis=2)
    if array.shape[2:] != (3,) or not array.size:
        raise EditbookError(
            f"{name} must be a picture, (height, width, 3) or (height, width), not of shape {np.shape(picture)}."
        )
    return _in_unit_range(array, name)


def _in_unit_range(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array.astype(np.float64) / 255
    if not np.issubdtype(array.dtype, np.floating):
        raise EditbookError(f"{name} must be uint8, or float in [0, 1], not {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # false for NaN as well
        raise EditbookError(f"{name} holds floats and must lie in [0, 1]; it has {low:.4g} to {high:.4g}.")
    return array.astype(np.float64)


def mask_values(mask: Any, name: str) -> np.ndarray:
    """The values of a mask in [0, 1], float64 (height, width): how every metric here reads masks.

    Args:
        mask: bool; whole numbers 0 and 1; uint8 0 to 255; float in [0, 1]; or a path or a PIL image, by its brightness.
            Whole numbers of which none is above 1 are 0 and 1, never grey levels 0 and 1 of 255.
        name: What to call it in an error.

    Raises:
        EditbookError: NaN, a value outside the range, another type or shape.
    """
    if isinstance(mask, Image.Image | str | os.PathLike):
        mask = as_image(mask, name).convert("L")
    array = np.asarray(mask)
    if array.ndim != 2 or not array.size:
        raise EditbookError(f"{name} must be a mask (height, width), not of shape {array.shape}.")
    if array.dtype == bool or (np.issubdtype(array.dtype, np.integer) and set(np.unique(array)) <= {0, 1}):
        return array.astype(np.float64)
    return _in_unit_range(array, name).clip(0, 1)


def pair(image: Any, reference: Any, names: tuple[str, str] = ("image", "reference")) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures of one shape as `unit` gives them; `EditbookError` where the shapes differ."""
    a, b = unit(image, names[0]), unit(reference, names[1])
    _check_shapes(a, b, names)
    return a, b


def _check_shapes(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> None:
    if a.shape != b.shape:
        one, other = names
        raise EditbookError(f"{one} and {other} have different shapes, {a.shape} and {b.shape}: resize one of them.")


def check_weight(weight: Any, size: tuple[int, ...]) -> np.ndarray:
    """A weight as float64 of the picture's (height, width).

    Raises:
        EditbookError: Another shape; a value that is negative or not finite.
        Undefined: It is 0 everywhere.
    """
    array = np.asarray(weight, np.float64)
    if array.shape != size:
        raise EditbookError(f"weight must have the picture's height and width {size}, not {array.shape}.")
    if not (np.isfinite(array).all() and array.min() >= 0):
        raise EditbookError("weight must be finite and nowhere negative: the mask is damaged.")
    if not array.any():
        raise Undefined("weight must be positive somewhere: the mask is empty.")
    return array


def weighted_mean(values: np.ndarray, weight: Any | None) -> float:
    """Mean of (height, width, channels) values, over a weight (height, width) if there is one."""
    if weight is None:
        return float(values.mean())
    weight = check_weight(weight, values.shape[:2])
    return float((values.mean(axis=-1) * weight).sum() / weight.sum())


def mse(image: Any, reference: Any, weight: np.ndarray | None = None) -> float:
    """Mean squared error of two pictures whose values are scaled to [0, 1].

    Args:
        image: A path, a PIL image of any mode, or an array (height, width, 3) or (height, width), uint8 or float in
            [0, 1].
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


def mask_iou(mask: Any, reference: Any, threshold: float = 0.5) -> float:
    """Intersection over union of two masks, each taken where it is above the threshold.

    Args:
        mask: (height, width); see `mask_values` for what may hold it.
        reference: Of the same shape.
        threshold: In [0, 1).

    Raises:
        EditbookError: Shapes differ, values or the threshold lie outside their range, or both masks are empty, for
            which it is undefined.
    """
    if not 0 <= threshold < 1:
        raise EditbookError(f"threshold must lie in [0, 1), got {threshold!r}: above 1 there is no mask.")
    names = ("mask", "reference")
    a, b = mask_values(mask, names[0]), mask_values(reference, names[1])
    _check_shapes(a, b, names)
    union = ((a > threshold) | (b > threshold)).sum()
    if not union:
        raise Undefined(f"mask and reference are both empty above {threshold}: their overlap is undefined.")
    return float(((a > threshold) & (b > threshold)).sum() / union)


def peak_inside(heat: np.ndarray, mask: Any) -> bool:
    """Whether the largest cell of a map lies where the (larger) mask is above one half.

    Args:
        heat: (h, w), of any scale. Of several largest cells the first counts, row by row.
        mask: (height, width) of the same view; see `mask_values` for what may hold it.

    Raises:
        EditbookError: The map is no finite (h, w) array; the mask is damaged, or nowhere above one half.
    """
    cells, region = np.asarray(heat, np.float64), mask_values(mask, "mask") > 0.5
    if cells.ndim != 2 or not cells.size or not np.isfinite(cells).all():
        raise EditbookError(f"heat must be a finite map (h, w), it is of shape {cells.shape} or holds NaN.")
    if not region.any():
        raise Undefined("mask is nowhere above 0.5: no peak can lie in it.")
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)
    y = int((row + 0.5) / cells.shape[0] * region.shape[0])
    x = int((column + 0.5) / cells.shape[1] * region.shape[1])
    return bool(region[y, x])
