"""Many results, and CLIP's choice among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .clip_guidance import ClipDistance
from .masks.place import box_of


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


def _grey(mask: np.ndarray) -> Image.Image:
    return Image.fromarray((mask * 255).round().astype(np.uint8))


@torch.no_grad()
def similarities(
    pictures: Sequence[Image.Image], text: str, clip: ClipDistance, masks: Sequence[np.ndarray]
) -> np.ndarray:
    """Cosine between a text and what is under the mask of each picture, cut out with its box, on grey; (n,).

    Args:
        pictures: What to look at.
        text: What is looked for.
        clip: Measures the distance.
        masks: One for each picture, (H, W) in [0, 1].

    Raises:
        EditbookError: A mask is empty.
    """
    side, cut = clip.clip.config.vision_config.image_size, []
    for picture, mask in zip(pictures, masks, strict=True):
        left, top, right, bottom = box_of(mask)
        on_grey = Image.composite(picture, Image.new("RGB", picture.size, (128, 128, 128)), _grey(mask))
        corners = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
        cut.append(np.asarray(on_grey.resize((side, side), box=corners), np.float32) / 127.5 - 1)
    pixels = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).to(clip.clip.device)
    return torch.cos((2 * clip(pixels, clip.embed(text))).sqrt()).cpu().numpy()
