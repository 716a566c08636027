"""Putting an object from one picture at a place in another."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from ..errors import EditbookError
from ..images import as_image

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) as fractions of the picture's width and height."""


def check_box(box: Any) -> Box:
    """The box as four floats.

    Raises:
        EditbookError: It is no box inside the picture.
    """
    try:
        left, top, right, bottom = (float(edge) for edge in box)
    except (TypeError, ValueError):
        raise EditbookError(f"box is (left, top, right, bottom) in fractions of the picture, got {box!r}.") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise EditbookError(f"box needs 0 <= left < right <= 1 and 0 <= top < bottom <= 1, got {box!r}.")
    return left, top, right, bottom


def box_of(mask: np.ndarray) -> Box:
    """The smallest box around what is above 0.5 (or above 0, if nothing is).

    Raises:
        EditbookError: The mask is empty.
    """
    inside = mask > 0.5 if (mask > 0.5).any() else mask > 0
    if not inside.any():
        raise EditbookError("The mask of the object is 0 everywhere.")
    rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def box_mask(box: Box, size: int) -> np.ndarray:
    """1 in the box, float32 (size, size); edges are rounded, at least one pixel stays."""
    left, top, right, bottom = (round(edge * size) for edge in box)
    mask = np.zeros((size, size), np.float32)
    mask[min(top, size - 1) : max(bottom, top + 1), min(left, size - 1) : max(right, left + 1)] = 1
    return mask


def object_mask(mask: Any, picture: Image.Image) -> np.ndarray:
    """The segmentation of a picture, float32 (height, width) in [0, 1].

    Args:
        mask: Greyscale picture (white is the object), float or bool array, or a file.
        picture: What it belongs to.

    Raises:
        EditbookError: Another size, or nothing in it.
    """
    if isinstance(mask, str | os.PathLike):
        mask = as_image(mask)
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = mask.astype(np.float32)
    array = np.asarray(as_image(mask).convert("L"), np.float32) / 255
    if array.shape != (picture.height, picture.width):
        raise EditbookError(
            f"The object's mask has {array.shape[1]} x {array.shape[0]} pixels and its picture {picture.width} x "
            f"{picture.height}: they must be the same."
        )
    box_of(array)
    return array


def place(picture: Image.Image, mask: np.ndarray, box: Box, size: int) -> tuple[Image.Image, np.ndarray]:
    """A picture scaled and shifted so that its object fills a box: as large as fits, in the middle of the box.

    Args:
        picture: Shows the object.
        mask: Its segmentation, (height, width) in [0, 1].
        box: Where it shall be.
        size: Side of the new picture.

    Returns:
        The picture (size, size), its edge repeated where it does not reach, and the mask there.
    """
    old, new = (np.array(edges).reshape(2, 2) for edges in (box_of(mask), box))
    pixels = old * (picture.width, picture.height), new * size
    (old_size, new_size), (old_middle, new_middle) = ([p[1] - p[0] for p in pixels], [p.mean(0) for p in pixels])
    scale = float((new_size / old_size).min())
    width, height = (max(1, round(length * scale)) for length in picture.size)
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    grey = Image.fromarray((mask * 255).round().astype(np.uint8)).resize((width, height), Image.Resampling.BOX)
    left, top = (round(float(new_middle[k] - old_middle[k] * scale)) for k in (0, 1))
    rows, columns = np.arange(size) - top, np.arange(size) - left
    grid = np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))
    there = np.outer((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    return Image.fromarray(np.asarray(resized)[grid]), np.asarray(grey, np.float32)[grid] / 255 * there


def paste(picture: Image.Image, thing: Image.Image, mask: np.ndarray) -> Image.Image:
    """An object pasted into a picture of its size, pixel by pixel."""
    return Image.composite(thing, picture, Image.fromarray((mask * 255).round().astype(np.uint8)))
