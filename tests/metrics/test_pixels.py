"""Metrics on pixels: scale, weights, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from editbook.errors import EditbookError
from editbook.metrics import l1, mask_iou, mse, peak_inside, psnr

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
    grey = A / 255 * 0.8
    assert psnr(grey, grey + 0.1) == pytest.approx(20)
    assert l1(grey, grey + 0.1) == pytest.approx(0.1)


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
    for wrong in (A / 255 + 0.5, A.astype(float), np.full((8, 6, 3), np.nan), A.astype(np.int64), np.zeros(3)):
        with pytest.raises(EditbookError, match=r"^image "):
            mse(wrong, B)
        with pytest.raises(EditbookError, match=r"^reference "):
            psnr(B, wrong)
    for weight in (np.zeros((8, 6)), np.ones((6, 8)), np.full((8, 6), -1.0), np.full((8, 6), np.nan)):
        with pytest.raises(EditbookError, match="weight"):
            psnr(A, B, weight)


def test_overlap_of_masks():
    mask = np.zeros((8, 8))
    mask[:4] = 1
    assert mask_iou(mask, mask) == 1
    assert mask_iou(mask, 1 - mask) == 0
    assert mask_iou(mask, np.ones((8, 8))) == mask_iou(np.ones((8, 8)), mask) == 0.5
    assert mask_iou(0.4 * mask, mask, threshold=0.3) == 1
    with pytest.raises(EditbookError, match="empty"):
        mask_iou(np.zeros((8, 8)), 0.5 * mask)
    with pytest.raises(EditbookError, match="different shapes"):
        mask_iou(mask, mask[:4])


def test_peaks_are_found_across_resolutions():
    mask = np.zeros((64, 64))
    mask[16:32, 40:56] = 1
    heat = np.zeros((8, 8))
    heat[2, 5] = 1  # centre at pixel (20, 44)
    assert peak_inside(heat, mask)
    assert not peak_inside(heat.T, mask)
    assert peak_inside(mask, mask)
