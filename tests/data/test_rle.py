"""PIE-Bench's run-length code against a slow loop, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from published import slow_decode

from editbook.data import decode, encode
from editbook.errors import EditbookError


def random_mask(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((height, width)) < rng.random()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (12, 17), (64, 64)])
@pytest.mark.parametrize("seed", range(4))
def test_decode_is_the_inverse_of_encode(shape, seed):
    mask = random_mask(seed, *shape)
    assert np.array_equal(decode(encode(mask), shape, border=False), mask)


@pytest.mark.parametrize("mask", [np.zeros((5, 7), bool), np.ones((5, 7), bool), np.eye(6, dtype=bool)])
def test_extreme_masks(mask):
    assert np.array_equal(decode(encode(mask), mask.shape, border=False), mask)


def test_the_code_is_start_length_along_the_rows():
    mask = np.zeros((3, 4), bool)
    mask[0, 1:3] = mask[1, 3] = mask[2, :2] = True
    assert encode(mask) == [1, 2, 7, 3], "a run goes on over the end of a row"
    assert encode(~np.zeros((3, 4), bool)) == [0, 12]
    assert encode(np.zeros((3, 4), bool)) == []


def test_runs_are_in_order_and_apart():
    runs = np.array(encode(random_mask(5, 40, 30)))
    assert (runs[1::2] > 0).all()
    assert (runs[2::2] > runs[:-2:2] + runs[1:-2:2]).all()


@pytest.mark.parametrize("border", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_decode_does_what_a_slow_loop_does(seed, border):
    """Overlapping runs, empty ones, and ones that are too long, too."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 24, 2).tolist()
    starts = rng.integers(0, height * width, 12)
    lengths = rng.integers(0, height * width, 12) // rng.integers(1, 20)
    runs = np.stack([starts, lengths], 1).ravel().tolist()
    assert np.array_equal(decode(runs, (height, width), border=border), slow_decode(runs, height, width, border))


def test_the_border_belongs_to_the_mask_unless_told_otherwise():
    assert decode([]).sum() == 4 * 511
    assert not decode([], border=False).any()


@pytest.mark.parametrize("runs", [[1], [0, 1, 2], [0.5, 1], [[0, 1]], [[0], 1], ["0", "1"], [True, True], [None, 1]])
def test_what_is_no_list_of_runs_is_refused(runs):
    with pytest.raises(EditbookError, match=r"start, length"):
        decode(runs, (4, 4))


@pytest.mark.parametrize("runs", [[16, 1], [-1, 2], [0, -1], [2**62, 1]])
def test_runs_outside_the_picture_are_refused(runs):
    with pytest.raises(EditbookError, match=r"outside the 4 x 4 pixels"):
        decode(runs, (4, 4))


def test_only_boolean_masks_are_encoded():
    for mask in (np.ones((4, 4)), np.ones(4, bool), np.ones((4, 4), np.uint8)):
        with pytest.raises(EditbookError, match=r"bool"):
            encode(mask)
