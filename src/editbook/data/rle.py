"""PIE-Bench's run-length code for masks: start, length, start, length, ... along the rows of the picture.

It is not COCO's, which goes down the columns and alternates between lengths of zeros and of ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import EditbookError


def encode(mask: np.ndarray) -> list[int]:
    """The runs of a mask.

    Args:
        mask: bool (height, width).

    Returns:
        Start and length of every run of True in the row-major flattening, in order; a run may go on over the end of a
        row. Empty for an empty mask.

    Raises:
        EditbookError: The mask is not a boolean array of two dimensions.
    """
    if mask.dtype != bool or mask.ndim != 2:
        raise EditbookError(f"A mask to encode is bool (height, width), not {mask.dtype} {mask.shape}.")
    steps = np.diff(mask.ravel().astype(np.int8), prepend=0, append=0)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    runs: list[int] = np.stack([starts, ends - starts], axis=1).ravel().tolist()
    return runs


def decode(runs: Sequence[int], shape: tuple[int, int] = (512, 512), *, border: bool = True) -> np.ndarray:
    """The mask of a list of runs.

    As in PIE-Bench's evaluation script, a last run that is too long ends with the picture, runs may overlap, and the
    outermost pixels all belong to the mask, because the annotators' strokes often missed them.

    Args:
        runs: Start, length, start, length, ...
        shape: Height and width.
        border: Whether to add the outermost pixels, as the script does. Without them `decode` is the inverse of
            `encode`.

    Returns:
        bool (height, width).

    Raises:
        EditbookError: The list has an odd length, holds something else than whole numbers, a negative one, or a start
            outside the picture.
    """
    size = shape[0] * shape[1]
    try:
        numbers = np.asarray(runs, np.int64 if not len(runs) else None)
    except ValueError:  # lists in the list
        numbers = np.zeros((0, 2))
    if numbers.ndim != 1 or len(numbers) % 2 or not np.issubdtype(numbers.dtype, np.integer):
        raise EditbookError("the mask is not a list of whole numbers: start, length, start, length, ...")
    if (numbers < 0).any() or (numbers[::2] >= size).any():
        raise EditbookError(f"the mask has a run outside the {shape[1]} x {shape[0]} pixels of the picture.")
    starts, lengths = numbers.clip(max=size).astype(np.int64).reshape(-1, 2).T
    steps = np.zeros(size + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, (starts + lengths).clip(max=size), -1)
    mask: np.ndarray = (np.cumsum(steps[:-1]) > 0).reshape(shape)
    if border:
        mask[[0, -1], :] = mask[:, [0, -1]] = True
    return mask
