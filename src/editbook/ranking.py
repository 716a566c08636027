"""Many results, and CLIP's choice among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .clip_guidance import ClipDistance


@torch.no_grad()
def ranked(
    pictures: Sequence[Image.Image], text: str, clip: ClipDistance, mask: np.ndarray | None = None
) -> list[tuple[float, int]]:
    """Pictures by their distance from a text, the nearest first.

    What the edit did not touch says nothing about it, so CLIP sees the masked part only, on grey. (The official code of
    Blended Latent Diffusion multiplies pictures in [0, 1] by the mask: on black.)

    Args:
        pictures: Of one size.
        text: What they should show.
        clip: Measures the distance.
        mask: 1 where to look, (H, W) in [0, 1]; None is everywhere.

    Returns:
        (distance, position in `pictures`) of each.
    """
    arrays = np.stack([np.asarray(picture.convert("RGB"), np.float32) for picture in pictures]) / 127.5 - 1
    if mask is not None:
        arrays = arrays * mask[None, :, :, None]
    distances = clip(torch.from_numpy(arrays).permute(0, 3, 1, 2).to(clip.clip.device), clip.embed(text)).tolist()
    return sorted(zip(distances, range(len(pictures)), strict=True))
