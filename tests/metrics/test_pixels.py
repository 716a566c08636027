"""Metrics on pixels: scale, weights, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from editbook.errors import EditbookError
from editbook.metrics import l1, mask_iou, mse, peak_inside, psnr, regions
from editbook.metrics.pixels import mask_values

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
    assert mse(A, B, weight.astype(bool)) == inside
    assert mse(A[..., 0], B[..., 0], weight) == pytest.approx(mse(A[:3, :, 0], B[:3, :, 0]))


def test_pictures_of_every_mode_are_compared_by_their_colours(tmp_path):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    apart = mse(red, blue)
    assert mse(red.convert("P"), blue.convert("P")) == apart == pytest.approx(2 / 3)
    assert mse(red.convert("RGBA"), blue.convert("RGBA")) == apart  # alpha is no colour that agrees
    assert mse(red.convert("P"), red) == mse(red.convert("CMYK"), red) == 0
    grey = Image.fromarray(A[..., 0])
    assert mse(grey, A[..., 0]) == mse(grey, grey.convert("RGB")) == 0
    red.save(tmp_path / "red.png")
    assert mse(tmp_path / "red.png", blue) == apart


def test_bad_input_raises():
    with pytest.raises(EditbookError, match="different shapes"):
        mse(A, B[:4])
    four = np.concatenate([A, A[..., :1]], axis=-1)  # is the last one alpha, or black ink?
    for wrong in (A / 255 + 0.5, A.astype(float), np.full((8, 6, 3), np.nan), A.astype(np.int64), np.zeros(3), four):
        with pytest.raises(EditbookError, match=r"^image "):
            mse(wrong, B)
        with pytest.raises(EditbookError, match=r"^reference "):
            psnr(B, wrong)
    for value in (np.nan, np.inf, -1.0):
        spot = np.ones((8, 6))
        spot[0, 0] = value
        with pytest.raises(EditbookError, match="weight must be finite"):
            psnr(A, B, spot)
    for weight in (np.zeros((8, 6)), np.ones((6, 8))):
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


@pytest.fixture
def hole():
    """A mask with a hole, as bool."""
    mask = np.ones((8, 8), bool)
    mask[2:6, 3:7] = False
    return mask


def kinds(mask):
    """The same mask in every form that one may have."""
    bright = mask.astype(np.uint8) * 255
    return [
        mask,
        mask.astype(np.uint8),
        mask.astype(np.int64),
        mask.astype(np.float32),
        bright,
        Image.fromarray(bright),
        Image.fromarray(bright).convert("1"),
        Image.fromarray(bright).convert("RGB"),
    ]


def test_a_mask_is_the_same_mask_in_every_form(hole):
    heat = np.zeros((4, 4))
    heat[1, 2] = 1  # in the hole
    for one in kinds(hole):
        np.testing.assert_array_equal(mask_values(one, "mask"), hole)
        assert mask_iou(one, hole) == mask_iou(hole, one) == 1
        assert not peak_inside(heat, one)
        assert regions(mse, np.ones((8, 8)), np.zeros((8, 8)) + hole, one) == {
            "whole": pytest.approx(1 - hole.mean()),
            "inside": 0,
            "outside": 1,
        }
    for one in kinds(~hole):
        assert peak_inside(heat, one)


def test_grey_masks_keep_their_values():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    np.testing.assert_allclose(mask_values(grey, "mask"), grey / 255)
    np.testing.assert_allclose(mask_values(Image.fromarray(grey), "mask"), grey / 255)
    assert mask_values(np.array([[1 + 1e-7, -1e-7]]), "mask").tolist() == [[1, 0]]  # rounding stays in the range


@pytest.mark.parametrize(
    "wrong",
    [
        np.full((8, 8), np.nan),
        np.full((8, 8), 2.0),
        np.full((8, 8), 3),  # labels: neither 0 and 1 nor grey levels
        np.full((8, 8), -1),
        np.ones((8, 8, 3)),
        np.ones((0, 8)),
    ],
)
def test_a_wrong_mask_is_refused_by_every_metric(wrong):
    for call in (
        lambda: mask_iou(wrong, np.ones((8, 8))),
        lambda: peak_inside(np.eye(4), wrong),
        lambda: regions(mse, np.ones((8, 8)), np.ones((8, 8)), wrong),
    ):
        with pytest.raises(EditbookError, match=r"^mask "):
            call()
    with pytest.raises(EditbookError, match=r"^reference "):
        mask_iou(np.ones((8, 8)), wrong)


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5, np.nan])
def test_a_threshold_that_cuts_nothing_is_refused(threshold, hole):
    with pytest.raises(EditbookError, match=r"^threshold must lie in \[0, 1\)"):
        mask_iou(hole, hole, threshold)


def test_peaks_are_found_across_resolutions():
    mask = np.zeros((64, 64))
    mask[16:32, 40:56] = 1
    heat = np.zeros((8, 8))
    heat[2, 5] = 1  # centre at pixel (20, 44)
    assert peak_inside(heat, mask)
    assert not peak_inside(heat.T, mask)
    assert peak_inside(mask, mask)


@pytest.mark.parametrize("heat", [np.full((8, 8), np.nan), np.ones((2, 8, 8)), np.ones(8), np.ones((0, 8))])
def test_a_map_without_a_peak_is_refused(heat):
    with pytest.raises(EditbookError, match=r"^heat must be a finite map"):
        peak_inside(heat, np.ones((8, 8)))


def test_no_peak_lies_in_an_empty_mask():
    for empty in (np.zeros((8, 8)), np.full((8, 8), 0.5)):
        with pytest.raises(EditbookError, match="nowhere above"):
            peak_inside(np.eye(8), empty)
