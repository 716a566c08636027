"""Whole picture, inside and outside the mask; PIE-Bench's conventions beside our own; means that say what they drop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import EditbookError
from ..images import as_image
from ..pocket import EditTask
from .clip import clip_score
from .pixels import mse, psnr
from .ssim import ssim
from .structure import structure_distance
from .towers import KeyTower, TextTower

PixelMetric = Callable[[Any, Any, np.ndarray | None], float]


def region_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """A mask as float64 (height, width), checked against a picture.

    Args:
        mask: (height, width), in [0, 1].
        size: The picture's (height, width).

    Raises:
        EditbookError: Another size, values outside [0, 1] or NaN, or an empty mask.
    """
    array = np.asarray(mask, np.float64)
    if array.shape != size:
        raise EditbookError(f"mask has shape {array.shape}, the picture {size}: resize the mask.")
    if not (array.min() >= 0 and array.max() <= 1):  # false for NaN as well
        raise EditbookError("mask must lie in [0, 1] and must not hold NaN.")
    if not array.any():
        raise EditbookError("mask is empty: there is no region to measure.")
    return array


def regions(metric: PixelMetric, image: Any, reference: Any, mask: Any) -> dict[str, float]:
    """A metric over the whole picture, inside the mask and outside.

    Args:
        metric: `mse`, `l1`, `psnr` or `ssim`.
        image: A picture.
        reference: What to compare it with: the source for what should have stayed, the truth for everything.
        mask: Where the edit may act, (height, width) in [0, 1].

    Returns:
        "whole", "inside" and "outside"; the last is NaN where the mask covers everything.
    """
    array = region_mask(mask, np.asarray(image).shape[:2])
    outside = 1 - array
    return {
        "whole": metric(image, reference, None),
        "inside": metric(image, reference, array),
        "outside": metric(image, reference, outside) if outside.any() else math.nan,
    }


def truth_distances(edited: Any, task: EditTask) -> dict[str, dict[str, float]]:
    """MSE, PSNR and SSIM of an edited picture to the exact answer, by region. Ours alone.

    Raises:
        EditbookError: Nobody knows the exact answer of this task (real data).
    """
    if task.truth is None:
        raise EditbookError("This task has no exact answer: use a task from pocket.task or pocket.bench.")
    metrics: dict[str, PixelMetric] = {"MSE": mse, "PSNR": psnr, "SSIM": ssim}
    return {name: regions(metric, edited, task.truth, task.mask) for name, metric in metrics.items()}


def pie_bench_scores(
    edited: Image.Image,
    task: EditTask,
    clip: TextTower,
    structure: KeyTower,
    lpips: Callable[[Any, Any], float] | None = None,
) -> dict[str, float]:
    """PIE-Bench's seven numbers by the conventions of its own evaluator, so that they meet published ones.

    Those conventions are not what one would choose: the edit region is painted black in both pictures and the metric
    taken over the *whole* frame, so that it depends on the mask's size; `regions` averages over the pixels outside
    instead. Published values need `Clip.load()`, `Dino.load()` and `Lpips("squeeze")`.

    Args:
        edited: Of the source picture's size.
        task: Its mask is taken where it is above one half.
        clip: For the two CLIP scores, against the target prompt.
        structure: For the structure distance, with PIE-Bench's 0-255 pixels.
        lpips: For the perceptual distance; None leaves it out.

    Returns:
        In PIE-Bench's units (structure and LPIPS times 1e3, MSE times 1e4, SSIM times 1e2), each under a name that says
        which network made it. NaN outside a mask that covers everything, to be dropped by `mean_without_nan`.
    """
    edited, source = as_image(edited), as_image(task.source_image)
    if edited.size != source.size:
        raise EditbookError(f"edited has size {edited.size}, the task's picture {source.size}: resize it.")
    mask = region_mask(task.mask, source.size[::-1]) > 0.5
    a, b = (np.where(mask[..., None], 0, np.asarray(image)) for image in (edited, source))
    nothing_left = bool(mask.all())

    def kept(metric: Callable[[Any, Any], float], scale: float) -> float:
        return math.nan if nothing_left else scale * metric(a, b)

    scores = {
        f"structure x1e3 ({structure.name})": 1e3 * structure_distance(edited, source, structure, official=True),
        "PSNR": kept(psnr, 1),
    }
    if lpips is not None:
        scores[f"LPIPS x1e3 ({getattr(lpips, 'name', 'LPIPS')})"] = kept(lpips, 1e3)
    inside = Image.fromarray(np.where(mask[..., None], np.asarray(edited), 0).astype(np.uint8))
    return scores | {
        "MSE x1e4": kept(mse, 1e4),
        "SSIM x1e2": kept(ssim, 1e2),
        f"CLIP whole ({clip.name})": clip_score(edited, task.target_prompt, clip),
        f"CLIP edited ({clip.name})": clip_score(inside, task.target_prompt, clip) if mask.any() else math.nan,
    }


@dataclass(frozen=True)
class Mean:
    """A mean, and what it is a mean of.

    Args:
        value: Mean of the numbers that are not NaN; NaN if there is none. Infinity (the PSNR of an untouched
            background) stays infinity: report the median, or the MSE, where that happens.
        used: How many numbers it is a mean of.
        dropped: How many were NaN.
    """

    value: float
    used: int
    dropped: int


def mean_without_nan(values: Iterable[float]) -> Mean:
    """The mean with NaN left out, as PIE-Bench's evaluator takes it, and how many were left out.

    Raises:
        EditbookError: There are no values at all.
    """
    array = np.asarray([*values], np.float64)
    if not array.size:
        raise EditbookError("values is empty: there is nothing to average.")
    known = array[~np.isnan(array)]
    return Mean(float(known.mean()) if known.size else math.nan, known.size, array.size - known.size)
