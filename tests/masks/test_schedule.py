"""Masks that shrink: nested, each for its share of the steps, the last one the mask itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from editbook.errors import EditbookError
from editbook.masks import shrinking_masks


def dots(side=16):
    mask = torch.zeros(1, 1, side, side)
    mask[..., 3, 4] = mask[..., 9, 10:12] = 1
    return mask


@pytest.mark.parametrize("dilations", [0, 1, 3])
@pytest.mark.parametrize("steps", [4, 5, 8, 20, 50])
def test_stages_are_nested_all_used_and_end_at_the_mask(dilations, steps):
    mask = dots()
    masks = shrinking_masks(mask, dilations, steps)
    assert len(masks) == steps
    assert torch.equal(masks[-1], mask)
    assert all((wide >= narrow).all() for wide, narrow in pairwise(masks))
    sizes = [float(one.sum()) for one in masks]
    lengths = [sizes.count(size) for size in sorted(set(sizes), reverse=True)]
    assert len(lengths) == dilations + 1
    assert max(lengths) - min(lengths) <= 1


def test_stages_are_dilated_by_squares_of_odd_sides():
    """As scipy's binary dilation, which the official code calls."""
    masks = shrinking_masks(dots(), 3, 4)
    for cells, one in zip((3, 2, 1), masks, strict=False):
        side = 2 * cells + 1
        expected = ndimage.binary_dilation(dots()[0, 0].numpy() > 0, np.ones((side, side)))
        assert np.array_equal(one[0, 0].numpy() > 0, expected)


def test_the_official_formula_forgets_the_mask_itself():
    """n = 3 and 8 steps: stages of floor(8 / 4) + 1 = 3 steps, so the fourth would begin at step 9."""
    official = [i // (8 // 4 + 1) for i in range(8)]
    assert max(official) == 2
    assert torch.equal(shrinking_masks(dots(), 3, 8)[-1], dots())


def test_format_and_bad_numbers():
    assert shrinking_masks(dots().double(), 1, 2)[0].dtype == torch.float64
    for bad in (-1, 1.5, True):
        with pytest.raises(EditbookError, match="dilations"):
            shrinking_masks(dots(), bad, 10)
    with pytest.raises(EditbookError, match="4 stages, more than the 3 steps"):
        shrinking_masks(dots(), 3, 3)
