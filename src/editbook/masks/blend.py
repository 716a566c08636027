"""Blending latents with a mask: inside the edit, outside the source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ..errors import EditbookError
from ..images import crop_box
from ..sampling import Move, Step, add_noise


def square_mask(mask: Any, picture: Image.Image | None = None) -> np.ndarray:
    """A user's mask as float32 (side, side) in [0, 1], cropped to its middle square, as pictures are.

    Args:
        mask: Float or bool array (height, width) in [0, 1], or a greyscale picture (white is 1).
        picture: What it belongs to; None leaves out the comparison.

    Raises:
        EditbookError: Not a mask, wrong range, NaN, or of other proportions than the picture.
    """
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"), np.float32) / 255
    try:
        array = np.asarray(mask, np.float32)
    except (TypeError, ValueError):
        raise EditbookError(f"A mask is an array or a picture, not {type(mask).__name__}.") from None
    if array.ndim != 2 or not array.size:
        raise EditbookError(f"A mask has two dimensions, height and width; this one has the shape {array.shape}.")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise EditbookError("A mask's values must lie in [0, 1]; divide an 8-bit mask by 255.")
    height, width = array.shape
    if picture is not None and abs(width * picture.height / (height * picture.width) - 1) > 0.02:
        raise EditbookError(
            f"The mask has {width} x {height} pixels and its picture {picture.width} x {picture.height}: "
            "they must have the same proportions."
        )
    left, top, right, bottom = crop_box(width, height)
    return array[top:bottom, left:right]


def at_side(mask: np.ndarray, side: int) -> np.ndarray:
    """A square mask at another side: each cell is as open as the most open pixel over it, float32 (side, side).

    So a thin object is not lost on a coarser grid, and a cell of a coarse grid becomes a block of a finer one.
    """
    return functional.adaptive_max_pool2d(torch.from_numpy(mask.copy())[None], (side, side))[0].numpy()


def latent_mask(mask: Any, latent: torch.Tensor) -> torch.Tensor:
    """A user's mask at the size of a latent, (1, 1, h, w) in [0, 1], 1 where the edit may act; see `at_side`.

    Args:
        mask: As for `square_mask`.
        latent: A square latent whose size, device and dtype the mask shall have.

    Raises:
        EditbookError: As `square_mask`, or it is 0 everywhere.
    """
    array = square_mask(mask)
    if array.max() == 0:
        raise EditbookError("The mask is 0 everywhere in the picture's square: no pixel may change.")
    return torch.from_numpy(at_side(array, latent.shape[-1]))[None, None].to(latent)


def mask_array(mask: torch.Tensor | None) -> np.ndarray | None:
    """A mask (1, 1, h, w) as an `Edit` holds it: float32 (h, w) in [0, 1]; None stays None."""
    return None if mask is None else mask[0, 0].float().cpu().numpy()


def paste_source_row(step: Step, mask: torch.Tensor) -> torch.Tensor:
    """z_next of a batch whose row 0 is the source: outside the mask, every row becomes the source."""
    source = step.z_next[:1]
    return source + mask * (step.z_next - source)


class PasteSourceRow:
    """`paste_source_row` with one mask for the whole walk, as a blend.

    Args:
        mask: (1, 1, h, w), 1 where the edit may act.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def __call__(self, step: Step) -> torch.Tensor:
        """Outside the mask, every row becomes the source."""
        return paste_source_row(step, self.mask)


def noised_path(z_0: torch.Tensor, noises: Sequence[torch.Tensor], path: Sequence[Move]) -> list[torch.Tensor]:
    """A picture's latent after each step of a path: noised in one jump to the level of each, and itself after the last.

    Args:
        z_0: The picture's latent, (1, channels, h, w).
        noises: The noise of each step, (n, channels, h, w); the last one is not used.
        path: The moves.
    """
    levels = [move.alpha_to for move in path[:-1]]
    return [*(add_noise(z_0, noise, alpha) for noise, alpha in zip(noises, levels, strict=False)), z_0]


class KeepSource:
    """A blend that keeps the source outside a mask by pasting a known path of it at every step.

    Args:
        path: The source's latent after each step of the sampling path, (1 or n, channels, h, w) each; the last one is
            z_0.
        mask: 1 where the edit may act, 0 where the path is pasted: (1, 1, h, w), or a number for the whole latent; or a
            list of these, one for each step.
        rows: The rows of the batch to paste into; all by default.
    """

    def __init__(
        self,
        path: Sequence[torch.Tensor],
        mask: torch.Tensor | float | Sequence[torch.Tensor | float],
        rows: slice = slice(None),
    ) -> None:
        self.path, self.rows = path, rows
        self.masks = list(mask) if isinstance(mask, Sequence) else [mask] * len(path)

    def __call__(self, step: Step) -> torch.Tensor:
        """Inside the mask the sampled latent, outside the source's latent of the same level."""
        if step.total != len(self.path):
            raise EditbookError(f"The source path has {len(self.path)} latents for {step.total} steps.")
        z = step.z_next.clone()
        z[self.rows] = torch.lerp(self.path[step.i].expand_as(z[self.rows]), z[self.rows], self.masks[step.i])
        return z
