"""Structural similarity (Wang et al. 2004; the survey's section 4.2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import EditbookError
from .pixels import Undefined, check_weight, pair, weighted_mean

_WINDOW = 11  # pixels: a Gaussian of deviation 1.5, cut off at 3.5 deviations
_BORDER = _WINDOW // 2
_INSIDE = (slice(_BORDER, -_BORDER), slice(_BORDER, -_BORDER))


def ssim(image: Any, reference: Any, weight: np.ndarray | None = None) -> float:
    """Structural similarity in [-1, 1]; 1 for equal pictures.

    Gaussian window of 11 pixels with deviation 1.5, k = (0.01, 0.03), values in [0, 1], averaged over channels and over
    the pixels whose window lies inside the picture, as in the paper: a border of five pixels is left out.
    `mirrored_ssim` keeps it.

    Args:
        image: A picture as in `mse`.
        reference: What it should be, of the same size.
        weight: Where to average, (height, width), not negative; None is everywhere. Windows reach five pixels across
            the edge of a mask, so pixels beside it count a little.

    Raises:
        EditbookError: Sizes differ or are below 11 pixels, values lie outside the range, or the weight is 0 everywhere
            but in the border.
    """
    a, b = pair(image, reference)
    _check_side(a)
    if weight is not None:
        weight = check_weight(weight, a.shape[:2])[_INSIDE]
        if not weight.any():
            raise Undefined(
                f"weight lies within {_BORDER} pixels of the edge, where no SSIM window of {_WINDOW} pixels has its "
                "middle: give a region that reaches further in."
            )
    return weighted_mean(_similarities(a, b)[_INSIDE], weight)


def mirrored_ssim(image: Any, reference: Any) -> float:
    """SSIM over all pixels, windows at the edge being filled by the mirrored picture: as torchmetrics 1.9 takes it.

    PIE-Bench's script rests on torchmetrics. At 64 pixels the difference from `ssim` shows, at 512 hardly. Arguments
    and errors as in `ssim`.
    """
    a, b = pair(image, reference)
    _check_side(a)
    edges = ((_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0))
    return float(_similarities(*(np.pad(picture, edges, mode="reflect") for picture in (a, b)))[_INSIDE].mean())


def _check_side(picture: np.ndarray) -> None:
    if min(picture.shape[:2]) < _WINDOW:
        raise EditbookError(f"image must have at least {_WINDOW} pixels a side for SSIM, not {picture.shape[:2]}.")


def _similarities(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Similarity of the windows around every pixel, (height, width, 3)."""
    from skimage.metrics import structural_similarity

    _, values = structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
        full=True,
    )
    return values
