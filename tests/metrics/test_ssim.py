"""SSIM: against torchmetrics, and what its weights and errors mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from editbook.errors import EditbookError
from editbook.metrics import mirrored_ssim, ssim
from editbook.pocket import sample

A, B = sample(1).array(), sample(2).array()


def theirs(a: np.ndarray, b: np.ndarray) -> float:
    """torchmetrics' map, without the border whose windows are filled by reflection."""
    x, y = (torch.from_numpy(array.astype(np.float64) / 255).permute(2, 0, 1)[None] for array in (a, b))
    _, values = structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
    return float(values[..., 5:-5, 5:-5].mean())


def test_it_is_the_published_one():
    rng = np.random.default_rng(0)
    noisy = (A + rng.normal(0, 12, A.shape)).clip(0, 255).astype(np.uint8)
    for a, b in ((A, B), (A, noisy), (A, A[::-1].copy())):
        assert ssim(a, b) == pytest.approx(theirs(a, b), abs=1e-6)


def test_with_mirrored_edges_it_is_torchmetrics_as_it_comes():
    for a, b in ((A, B), (A[:32], B[:32])):
        x, y = (torch.from_numpy(array.astype(np.float64) / 255).permute(2, 0, 1)[None] for array in (a, b))
        expected = float(structural_similarity_index_measure(x, y, data_range=1.0))
        assert mirrored_ssim(a, b) == pytest.approx(expected, abs=1e-9)
        assert abs(ssim(a, b) - expected) > 1e-4, "at this size the edges count"


def test_equal_pictures_are_alike_and_order_does_not_matter():
    assert ssim(A, A) == pytest.approx(1)
    assert ssim(A, B) == pytest.approx(ssim(B, A))
    assert ssim(A[..., 0], A[..., 0]) == pytest.approx(1)


def test_weights_choose_where():
    """Spoil the right half: far from the seam the left half is perfect, and both halves add up to the whole."""
    spoiled = A.copy()
    spoiled[:, 32:] = B[:, 32:]
    left, right = np.zeros((64, 64)), np.zeros((64, 64))
    left[:, :26] = 1
    right[:, 38:] = 1
    assert ssim(spoiled, A, left) == pytest.approx(1)
    assert ssim(spoiled, A, right) < 0.9
    assert ssim(spoiled, A, np.ones((64, 64))) == pytest.approx(ssim(spoiled, A))
    half = np.zeros((64, 64))
    half[:, :32] = 1
    mean = (ssim(spoiled, A, half) + ssim(spoiled, A, 1 - half)) / 2
    assert mean == pytest.approx(ssim(spoiled, A))


def test_bad_input_raises():
    with pytest.raises(EditbookError, match="11 pixels"):
        ssim(A[:8, :8], B[:8, :8])
    with pytest.raises(EditbookError, match="weight"):
        ssim(A, B, np.ones((32, 32)))
    with pytest.raises(EditbookError, match="weight"):
        ssim(A, B, np.zeros((64, 64)))
    with pytest.raises(EditbookError, match="different shapes"):
        ssim(A, B[:32])
    with pytest.raises(EditbookError, match="11 pixels"):
        mirrored_ssim(A[:8], B[:8])


def test_the_border_of_a_weight_is_checked_though_it_is_left_out():
    weight = np.ones((64, 64))
    weight[0, 0] = np.nan
    with pytest.raises(EditbookError, match="weight must be finite"):
        ssim(A, B, weight)


def test_a_weight_that_lies_in_the_border_is_called_that():
    weight = np.zeros((64, 64))
    weight[:5] = 1
    with pytest.raises(EditbookError, match="within 5 pixels of the edge"):
        ssim(A, B, weight)
    weight[5] = 1
    assert -1 <= ssim(A, B, weight) <= 1
