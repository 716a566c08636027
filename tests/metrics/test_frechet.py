"""FID: closed forms, invariances, an independent root of the product, and how few pictures are too few."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from editbook.errors import EditbookError
from editbook.metrics import fid, frechet_distance, moments, pocket_clip
from editbook.pocket import sample

RNG = np.random.default_rng(0)


def covariance(width=6):
    a = RNG.normal(size=(width, 2 * width))
    return a @ a.T / width


MEAN_A, MEAN_B, A, B = RNG.normal(size=6), RNG.normal(size=6), covariance(), covariance()


def test_a_distribution_is_at_no_distance_from_itself():
    assert frechet_distance(MEAN_A, A, MEAN_A, A) == pytest.approx(0, abs=1e-9)


def test_the_closed_form_for_independent_features():
    """With diagonal covariances: the sum of squared differences of means and of deviations."""
    a, b = RNG.uniform(0.1, 2, 6), RNG.uniform(0.1, 2, 6)
    expected = ((MEAN_A - MEAN_B) ** 2).sum() + ((a - b) ** 2).sum()
    assert frechet_distance(MEAN_A, np.diag(a**2), MEAN_B, np.diag(b**2)) == pytest.approx(expected)


def test_the_root_of_the_product_gives_the_same():
    expected = ((MEAN_A - MEAN_B) ** 2).sum() + np.trace(A + B - 2 * sqrtm(A @ B)).real
    assert frechet_distance(MEAN_A, A, MEAN_B, B) == pytest.approx(expected)


def test_order_and_a_common_rotation_do_not_matter():
    q, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    there = frechet_distance(MEAN_A, A, MEAN_B, B)
    assert frechet_distance(MEAN_B, B, MEAN_A, A) == pytest.approx(there)
    assert frechet_distance(q @ MEAN_A, q @ A @ q.T, q @ MEAN_B, q @ B @ q.T) == pytest.approx(there)


def test_the_survey_s_equation_is_something_else():
    """Eq. 10 as printed: a plain norm, a cross-covariance. It is not even 0 for a distribution and itself."""
    printed = np.sqrt(((MEAN_A - MEAN_A) ** 2).sum()) + np.trace(A + A) - 2 * np.trace(np.zeros_like(A))
    assert printed > 1


def test_singular_covariances_are_no_problem():
    a = np.outer(MEAN_A, MEAN_A)
    assert frechet_distance(MEAN_A, a, MEAN_A, a) == pytest.approx(0, abs=1e-6)


def test_pictures_and_themselves_worse_pictures_and_the_label():
    tower = pocket_clip()
    pictures = [sample(seed).image() for seed in range(24)]
    noise = np.random.default_rng(0)
    noisy = [(np.asarray(p) + noise.normal(0, 40, (64, 64, 3))).clip(0, 255).astype(np.uint8) for p in pictures]
    same, worse = fid(pictures, pictures[::-1], tower), fid(noisy, pictures, tower)
    assert same.value == pytest.approx(0, abs=1e-3)
    assert worse.value > 100 * same.value
    assert (same.tower, same.features, same.counts, same.full_rank) == ("pocket-CLIP", 128, (24, 24), False)


class Known:
    """Its one feature is the first pixel's red."""

    name = "known"

    def images(self, pictures):
        return torch.tensor([[float(np.asarray(p)[0, 0, 0]), 0.0] for p in pictures])


def grey(*values):
    return [np.full((2, 2, 3), value, np.uint8) for value in values]


def test_moments_are_those_of_the_features():
    found = fid(grey(1, 3), grey(11, 17), Known())  # means 2 and 14, sample variances 2 and 18
    assert found.value == pytest.approx(12**2 + (np.sqrt(18) - np.sqrt(2)) ** 2)


def test_a_set_may_come_in_any_holder_and_in_many_batches():
    values = [k % 7 * 3 for k in range(150)]
    expected = fid(grey(*values), grey(1, 3), Known())
    assert expected.counts == (150, 2)
    for holder in (iter(grey(*values)), np.stack(grey(*values)), tuple(grey(*values))):
        assert fid(holder, iter(grey(1, 3)), Known()) == expected


def test_one_picture_is_no_set():
    """Its rows would pass for pictures, at no distance from themselves."""
    one = sample(0).image()
    for single in (np.asarray(one), one, "picture.png"):
        with pytest.raises(EditbookError, match=r"^images must be a list of pictures"):
            fid(single, single, pocket_clip())
        with pytest.raises(EditbookError, match=r"^reference must be a list of pictures"):
            fid([one, one], single, pocket_clip())


def test_a_damaged_picture_is_named_in_either_set():
    nan = np.full((2, 2, 3), np.nan)
    with pytest.raises(EditbookError, match=r"^images\[0\]: .*nan"):
        fid([nan, *grey(1)], grey(1, 2), Known())
    with pytest.raises(EditbookError, match=r"^reference\[70\]: .*nan"):
        fid(grey(1, 2), [*grey(*range(70)), nan], Known())


def test_too_few_pictures_and_odd_shapes_are_refused():
    pictures = [sample(0).image()] * 2
    with pytest.raises(EditbookError, match=r"^images must hold at least two"):
        fid(pictures[:1], pictures, pocket_clip())
    with pytest.raises(EditbookError, match=r"^reference must hold at least two"):
        fid(pictures, [], pocket_clip())
    with pytest.raises(EditbookError, match="cov_b"):
        frechet_distance(MEAN_A, A, MEAN_B, B[:3])
    with pytest.raises(EditbookError, match="mean_b"):
        frechet_distance(MEAN_A, A, MEAN_B * np.nan, B)


def test_the_moments_of_a_set_are_taken_once_and_belong_to_a_tower():
    tower = pocket_clip()
    one, other = ([sample(seed).image() for seed in seeds] for seeds in (range(8), range(8, 14)))
    kept = moments(other, tower)
    assert fid(one, kept, tower) == fid(one, other, tower)
    assert fid(moments(one, tower), kept, tower).counts == (8, 6)
    with pytest.raises(
        EditbookError, match="reference holds moments of features of pocket-CLIP, and the tower is known"
    ):
        fid(grey(1, 2), kept, Known())
    with pytest.raises(EditbookError, match="pictures must hold at least two"):
        moments(one[:1], tower)
