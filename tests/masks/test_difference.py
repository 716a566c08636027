"""Maps of where two noise estimates differ, and how they are normalised."""

from __future__ import annotations

import pytest
import torch

from editbook.errors import EditbookError
from editbook.masks import clamped_by_mean, noise_difference, without_outliers

Z_0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def random_map(seed=0):
    return torch.rand(64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


def test_equal_estimates_give_nothing():
    assert not noise_difference(lambda z: (z, z), Z_0, 0.5).any()


def test_it_is_the_mean_over_noises_and_channels():
    seen = []

    def pair(z):
        seen.append(z)
        return z, torch.zeros_like(z)

    found = noise_difference(pair, Z_0, 0.25, maps=3, seed=4)
    torch.testing.assert_close(found, seen[0].abs().mean((0, 1)))
    noise = (seen[0] - 0.5 * Z_0) / 0.75**0.5
    assert not torch.allclose(noise[0], noise[1])  # each its own
    shorter = noise_difference(pair, Z_0, 0.25, maps=2, seed=4)
    torch.testing.assert_close(seen[1], seen[0][:2])
    assert not torch.allclose(shorter, found)


def test_the_variance_falls_about_as_one_over_the_number_of_noises():
    def pair(z):
        return z, torch.zeros_like(z)

    def spread(maps):
        return torch.stack([noise_difference(pair, 0 * Z_0, 0.5, maps=maps, seed=seed) for seed in range(200)]).var(0)

    assert 6 < float((spread(1) / spread(8)).mean()) < 11


@pytest.mark.parametrize("ratio", [2.0, 3.0, 5.0])
def test_the_clamped_map_covers_at_most_two_over_the_ratio(ratio):
    for seed in range(20):
        found = clamped_by_mean(random_map(seed), ratio)
        assert found.min() >= 0
        assert found.max() <= 1
        assert (found > 0.5).double().mean() <= 2 / ratio
    nearly = torch.zeros(10, 10)
    nearly[:6] = 1.0  # 60 of 100 cells: the bound of 2/3 is nearly met
    assert (clamped_by_mean(nearly) > 0.5).float().mean() == pytest.approx(0.6)


def test_normalised_maps_do_not_depend_on_scale():
    for normalise in (clamped_by_mean, without_outliers):
        torch.testing.assert_close(normalise(7 * random_map()), normalise(random_map()))
        assert not normalise(torch.zeros(4, 4)).any()
    torch.testing.assert_close(without_outliers(random_map() + 5), without_outliers(random_map()))


def test_relevance_fills_the_range_and_one_hot_pixel_hardly_matters():
    relevance = without_outliers(random_map())
    assert relevance.min() == 0
    assert relevance.max() == 1
    hot = random_map()
    hot[3, 3] = 1000.0
    elsewhere = torch.ones(64, 64, dtype=torch.bool)
    elsewhere[3, 3] = False
    assert (without_outliers(hot) - relevance)[elsewhere].abs().max() < 0.05
    stretched = (hot - hot.min()) / (hot.max() - hot.min())
    assert (stretched - relevance)[elsewhere].abs().max() > 0.9


def test_bad_options_raise():
    with pytest.raises(EditbookError, match="at least 1"):
        noise_difference(lambda z: (z, z), Z_0, 0.5, maps=0)
    with pytest.raises(EditbookError, match="above 1"):
        clamped_by_mean(random_map(), 1.0)
