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
from ..sampling import Step


def latent_mask(mask: Any, latent: torch.Tensor) -> torch.Tensor:
    """A user's mask at the size of a latent, (1, 1, h, w) in [0, 1], 1 where the edit may act.

    A cell is as open as the most open pixel over it, so that a thin object is not cut off by the coarser grid. A mask
    that is not square is cropped to its middle, as the picture that it belongs to is.

    Args:
        mask: Float or bool array (height, width) in [0, 1], or a greyscale picture (white is 1).
        latent: A latent whose size, device and dtype the mask shall have.

    Raises:
        EditbookError: Not a mask, wrong shape or range, NaN, or 0 everywhere.
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
    left, top, right, bottom = crop_box(array.shape[1], array.shape[0])
    array = array[top:bottom, left:right]
    if array.max() == 0:
        raise EditbookError("The mask is 0 everywhere in the picture's square: no pixel may change.")
    height, width = latent.shape[-2:]
    resized = functional.adaptive_max_pool2d(torch.from_numpy(array.copy())[None, None], (height, width))
    return resized.to(latent)


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


class KeepSource:
    """A blend that keeps the source outside a mask by pasting a known path of it at every step.

    Args:
        path: The source's latent after each step of the sampling path, (1, channels, h, w) each; the last one is z_0.
        mask: 1 where the edit may act, 0 where the path is pasted: (1, 1, h, w), or a number for the whole latent.
        rows: The rows of the batch to paste into; all by default.
    """

    def __init__(self, path: Sequence[torch.Tensor], mask: torch.Tensor | float, rows: slice = slice(None)) -> None:
        self.path, self.mask, self.rows = path, mask, rows

    def __call__(self, step: Step) -> torch.Tensor:
        """Inside the mask the sampled latent, outside the source's latent of the same level."""
        if step.total != len(self.path):
            raise EditbookError(f"The source path has {len(self.path)} latents for {step.total} steps.")
        z = step.z_next.clone()
        z[self.rows] = torch.lerp(self.path[step.i].expand_as(z[self.rows]), z[self.rows], self.mask)
        return z
