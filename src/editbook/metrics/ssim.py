"""Structural similarity (Wang et al. 2004; the survey's section 4.2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import EditbookError
from .pixels import pair, weighted_mean

_WINDOW = 11  # pixels: a Gaussian of deviation 1.5, cut off at 3.5 deviations


def ssim(image: Any, reference: Any, weight: np.ndarray | None = None) -> float:
    """Structural similarity in [-1, 1]; 1 for equal pictures.

    Gaussian window of 11 pixels with deviation 1.5, k = (0.01, 0.03), values in [0, 1], averaged over channels and over
    the pixels whose window lies inside the picture, as in the paper. torchmetrics 1.9, on which PIE-Bench's script may
    run, also averages over windows that a mirrored border fills; at 64 pixels that shows, at 512 hardly.

    Args:
        image: A picture, or an array (height, width, channels), uint8 or float in [0, 1].
        reference: What it should be, of the same size.
        weight: Where to average, (height, width), not negative; None is everywhere. Windows reach five pixels across
            the edge of a mask, so pixels beside it count a little.

    Raises:
        EditbookError: Sizes differ or are below 11 pixels, values lie outside the range, or the weight is 0 everywhere.
    """
    from skimage.metrics import structural_similarity

    a, b = pair(image, reference)
    if min(a.shape[:2]) < _WINDOW:
        raise EditbookError(f"image must have at least {_WINDOW} pixels a side for SSIM, not {a.shape[:2]}.")
    _, values = structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1 if a.ndim == 3 else None,
        full=True,
    )
    inside = slice(_WINDOW // 2, -(_WINDOW // 2))
    if weight is not None:
        if np.shape(weight) != a.shape[:2]:
            raise EditbookError(f"weight must have the picture's height and width, not {np.shape(weight)}.")
        weight = np.asarray(weight)[inside, inside]
    return weighted_mean(values[inside, inside], weight)
