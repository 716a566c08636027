"""Metrics on pixels: scale, weights, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from editbook.errors import EditbookError
from editbook.metrics import mse, peak_inside, psnr

RNG = np.random.default_rng(0)
A = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)
B = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)


def test_equal_pictures_have_no_error():
    assert mse(A, A) == 0
    assert psnr(A, A) == float("inf")


def test_error_is_symmetric_and_scaled_to_one():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert mse(black, white) == 1
    assert psnr(black, white) == 0
    assert mse(A, B) == mse(B, A)
    assert psnr(A, A / 255 + 0.1) == pytest.approx(20)


def test_pictures_and_arrays_mean_the_same():
    assert mse(Image.fromarray(A), Image.fromarray(B)) == mse(A, B) == pytest.approx(mse(A / 255, B / 255))


def test_weights_choose_pixels_and_parts_add_up():
    weight = np.zeros((8, 6))
    weight[:3] = 1
    inside, outside = mse(A, B, weight), mse(A, B, 1 - weight)
    assert inside == pytest.approx(mse(A[:3], B[:3]))
    assert outside == pytest.approx(mse(A[3:], B[3:]))
    assert (3 * inside + 5 * outside) / 8 == pytest.approx(mse(A, B))
    assert mse(A, B, 7 * weight) == pytest.approx(inside)  # only ratios of weights count
    assert mse(A[..., 0], B[..., 0], weight) == pytest.approx(mse(A[:3, :, 0], B[:3, :, 0]))


def test_bad_input_raises():
    with pytest.raises(EditbookError, match="different shapes"):
        mse(A, B[:4])
    for weight in (np.zeros((8, 6)), np.ones((6, 8)), np.full((8, 6), -1.0), np.full((8, 6), np.nan)):
        with pytest.raises(EditbookError, match="weight"):
            psnr(A, B, weight)


def test_peaks_are_found_across_resolutions():
    mask = np.zeros((64, 64))
    mask[16:32, 40:56] = 1
    heat = np.zeros((8, 8))
    heat[2, 5] = 1  # centre at pixel (20, 44)
    assert peak_inside(heat, mask)
    assert not peak_inside(heat.T, mask)
    assert peak_inside(mask, mask)
