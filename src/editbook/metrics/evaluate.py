"""Whole picture, inside and outside the mask; PIE-Bench's conventions beside our own; means that say what they drop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..data.pie_bench import SIZE
from ..errors import EditbookError
from ..images import Picture
from ..pocket import EditTask
from .clip import clip_score
from .pixels import Undefined, mask_values, mse, pair, psnr
from .ssim import mirrored_ssim, ssim
from .structure import structure_distance
from .towers import KeyTower, TextTower, read_pair

PixelMetric = Callable[[Any, Any, np.ndarray | None], float]


def region_mask(mask: Any, size: tuple[int, ...]) -> np.ndarray:
    """A mask as float64 (height, width), checked against a picture.

    Args:
        mask: (height, width); see `mask_values` for what may hold it.
        size: The picture's (height, width).

    Raises:
        EditbookError: Another size, values outside [0, 1] or NaN, or an empty mask.
    """
    array = mask_values(mask, "mask")
    if array.shape != size:
        raise EditbookError(f"mask has shape {array.shape}, the picture {size}: resize the mask.")
    if not array.any():
        raise EditbookError("mask is empty: there is no region to measure.")
    return array


def regions(metric: PixelMetric, image: Any, reference: Any, mask: Any) -> dict[str, float]:
    """A metric over the whole picture, inside the mask and outside.

    Args:
        metric: `mse`, `l1`, `psnr` or `ssim`.
        image: A picture.
        reference: What to compare it with, of the same size: the source for what should have stayed, the truth for
            everything.
        mask: Where the edit may act, (height, width); see `mask_values` for what may hold it.

    Returns:
        "whole", "inside" and "outside". NaN where a region is empty: "outside" under a mask that covers everything; for
        `ssim` also a region within five pixels of the picture's edge, where no whole window has its middle.

    Raises:
        EditbookError: The pictures cannot be read or differ in size; the mask is damaged, empty or of another size.
    """
    a, b = pair(image, reference)
    inside = region_mask(mask, a.shape[:2])
    return {
        "whole": metric(a, b, None),
        "inside": _or_nan(metric, a, b, inside),
        "outside": _or_nan(metric, a, b, 1 - inside),
    }


def _or_nan(metric: PixelMetric, image: np.ndarray, reference: np.ndarray, weight: np.ndarray) -> float:
    try:
        return metric(image, reference, weight)
    except Undefined:
        return math.nan


def truth_distances(edited: Any, task: EditTask) -> dict[str, dict[str, float]]:
    """MSE, PSNR and SSIM of an edited picture to the exact answer, by region as in `regions`. Ours alone.

    Raises:
        EditbookError: Nobody knows the exact answer of this task (real data); `edited` has another size.
    """
    a, b = _beside_truth(edited, task)
    metrics: dict[str, PixelMetric] = {"MSE": mse, "PSNR": psnr, "SSIM": ssim}
    return {name: regions(metric, a, b, task.mask) for name, metric in metrics.items()}


class TruthPsnr(NamedTuple):
    """PSNR to the exact answer in dB, infinite for equal pictures, NaN where a region is empty.

    As text it is what the book's pages print: "outside the mask 27 dB, inside 21 dB".
    """

    whole: float
    inside: float
    outside: float

    def __str__(self) -> str:
        return f"outside the mask {self.outside:.0f} dB, inside {self.inside:.0f} dB"


def truth_psnr(edited: Any, task: EditTask) -> TruthPsnr:
    """PSNR of an edited picture to the exact answer: outside the mask what was lost, inside it what was gained.

    Raises:
        EditbookError: As `truth_distances`.
    """
    return TruthPsnr(**regions(psnr, *_beside_truth(edited, task), task.mask))


def _beside_truth(edited: Any, task: EditTask) -> tuple[np.ndarray, np.ndarray]:
    if task.truth is None:
        raise EditbookError("This task has no exact answer: use a task from pocket.task or pocket.bench.")
    return pair(edited, task.truth, ("edited", "task.truth"))


def pie_bench_scores(
    edited: Picture,
    task: EditTask,
    clip: TextTower,
    structure: KeyTower,
    lpips: Callable[[Any, Any], float] | None = None,
) -> dict[str, float]:
    """PIE-Bench's seven numbers by the conventions of its own evaluator, so that they meet published ones.

    Those conventions are not what one would choose: the edit region is painted black in both pictures and the metric
    taken over the *whole* frame, so that it depends on the mask's size; `regions` averages over the pixels outside
    instead. The region is wherever the mask is above 0, and the outermost pixels. SSIM is `mirrored_ssim`. Published
    values need `Clip.load()`, `Dino.load()` and `Lpips("squeeze")`.

    The script works at 512 pixels: pictures and mask of a task whose side goes evenly into 512 are enlarged without
    smoothing first, as `data.export` enlarges them. So the numbers are those of the script on an exported task, but for
    what JPEG takes from the exported source picture; on tasks of `data.pie_bench(folder, exact=False)`, which have that
    picture, they are the script's own. Pictures of any other size are scored as they are.

    Args:
        edited: Of the source picture's size.
        task: What was to be done, real or of the pocket world.
        clip: For the two CLIP scores, against the target prompt.
        structure: For the structure distance, with PIE-Bench's 0-255 pixels.
        lpips: For the perceptual distance; None leaves it out.

    Returns:
        In PIE-Bench's units (structure and LPIPS times 1e3, MSE times 1e4, SSIM times 1e2), each under a name that says
        which network made it. NaN outside a mask that covers everything, to be dropped by `mean_without_nan`.

    Raises:
        EditbookError: `edited` cannot be read or has another size; the mask is damaged, empty or of another size.
    """
    pictures = read_pair(edited, task.source_image, ("edited", "task.source_image"))
    width, height = pictures[0].size
    mask = region_mask(task.mask, (height, width)) > 0
    scale = SIZE // width if width == height and SIZE % width == 0 else 1
    mask = mask.repeat(scale, axis=0).repeat(scale, axis=1)
    mask[[0, -1], :] = mask[:, [0, -1]] = True
    changed, source = (image.resize((width * scale, height * scale), Image.Resampling.NEAREST) for image in pictures)
    a, b = (np.where(mask[..., None], 0, np.asarray(image)) for image in (changed, source))
    nothing_left = bool(mask.all())

    def kept(metric: Callable[[Any, Any], float], scale: float) -> float:
        return math.nan if nothing_left else scale * metric(a, b)

    scores = {
        f"structure x1e3 ({structure.name})": 1e3 * structure_distance(changed, source, structure, official=True),
        "PSNR": kept(psnr, 1),
    }
    if lpips is not None:
        scores[f"LPIPS x1e3 ({getattr(lpips, 'name', 'LPIPS')})"] = kept(lpips, 1e3)
    inside = np.where(mask[..., None], np.asarray(changed), 0).astype(np.uint8)
    return scores | {
        "MSE x1e4": kept(mse, 1e4),
        "SSIM x1e2": kept(mirrored_ssim, 1e2),
        f"CLIP whole ({clip.name})": float(clip_score(changed, task.target_prompt, clip)),
        f"CLIP edited ({clip.name})": float(clip_score(inside, task.target_prompt, clip)),
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
