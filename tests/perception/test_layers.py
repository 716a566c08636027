"""The mean of features under masks against a loop; what its floor does to empty masks."""

from __future__ import annotations

import pytest
import torch

from editbook.perception.layers import mean_under


def test_a_mean_under_a_mask_is_the_mean_of_its_cells():
    features, masks = torch.randn(2, 5, 4, 6), torch.zeros(2, 3, 4, 6)
    masks[:, 0, :2], masks[:, 1, :, 3:] = 1, 1
    means = mean_under(features, masks, floor=1e-6)
    for n in range(2):
        for k in range(2):
            inside = masks[n, k].bool()
            torch.testing.assert_close(means[n, k], features[n, :, inside].mean(1))
    assert not means[:, 2].any()  # an empty mask, with a floor


def test_a_floor_shrinks_a_small_mask_more():
    features, masks = torch.ones(1, 1, 4, 4), torch.zeros(1, 2, 4, 4)
    masks[0, 0, 0, 0], masks[0, 1] = 1, 1
    small, whole = mean_under(features, masks, floor=1.0)[0, :, 0].tolist()
    assert (small, whole) == pytest.approx((1 / 2, 16 / 17))
