"""Threshold, dilation, inversion and blur of masks."""

from __future__ import annotations

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.masks import MaskShape


@pytest.fixture
def heat():
    return np.random.default_rng(0).random((32, 32), np.float32)


def test_nothing_asked_for_changes_nothing(heat):
    assert np.array_equal(MaskShape()(heat), heat)


def test_above_the_threshold_is_mask(heat):
    mask = MaskShape(threshold=0.3)(heat)
    assert np.array_equal(mask, (heat > 0.3).astype(np.float32))
    assert not MaskShape(threshold=0.0)(np.zeros((4, 4), np.float32)).any()


def test_dilation_adds_so_many_pixels_on_each_side_and_narrowing_takes_them_away():
    mask = np.zeros((32, 32), np.float32)
    mask[10:20, 12:18] = 1
    wide = MaskShape(dilate=3)(mask)
    assert wide[7:23, 9:21].all()
    assert wide.sum() == 16 * 12
    assert np.array_equal(MaskShape(dilate=-3)(wide), mask)


def test_inverting_swaps_inside_and_outside_after_dilation():
    mask = np.zeros((16, 16), np.float32)
    mask[8, 8] = 1
    outside = MaskShape(dilate=1, invert=True)(mask)
    assert outside.sum() == 16 * 16 - 9
    assert outside[7:10, 7:10].sum() == 0


def test_blur_softens_the_edge_and_keeps_the_range_and_the_area_of_an_inner_mask():
    mask = np.zeros((32, 32), np.float32)
    mask[12:20, 12:20] = 1
    soft = MaskShape(blur=1.5)(mask)
    assert soft.min() >= 0
    assert soft.max() <= 1
    assert 0 < soft[11, 15] < soft[13, 15]
    assert soft.sum() == pytest.approx(mask.sum(), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, r"\[0, 1\)"),
        ({"threshold": float("nan")}, r"\[0, 1\)"),
        ({"threshold": True}, r"\[0, 1\)"),
        ({"dilate": 1.5}, "whole number"),
        ({"invert": 1}, "True or False"),
        ({"blur": -1.0}, "at least 0"),
        ({"blur": float("inf")}, "at least 0"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(EditbookError, match=message):
        MaskShape(**options)
