"""Properties of the ten backgrounds: the same at every size, within range, and easy to tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.pocket import backgrounds

NAMES = tuple(backgrounds.GROUND)


def _drawn(name: str, seed: int, size: int = 64) -> np.ndarray:
    return backgrounds.draw(name, np.random.default_rng(seed), size)


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    step = image.shape[0] // side
    return image.reshape(side, step, side, step, 3).mean((1, 3))


def test_there_are_ten() -> None:
    assert len(set(NAMES)) == 10


@pytest.mark.parametrize("size", [16, 33, 64, 128])
@pytest.mark.parametrize("name", NAMES)
def test_shape_type_and_range(name: str, size: int) -> None:
    for seed in range(8):
        image = _drawn(name, seed, size)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.float32
        assert 0 <= image.min() < image.max() <= 1


def test_the_brightest_wall_stays_in_range() -> None:
    assert max(_drawn("room", seed, 16).max() for seed in range(100)) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_picture(name: str) -> None:
    assert np.array_equal(_drawn(name, 1), _drawn(name, 1))
    assert np.abs(_drawn(name, 1) - _drawn(name, 2)).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_does_not_change_the_next_one(name: str) -> None:
    first = _drawn(name, 1)
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(_drawn(name, 1), kept)


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_do_not_depend_on_the_size(name: str) -> None:
    small, large = np.random.default_rng(5), np.random.default_rng(5)
    backgrounds.draw(name, small, 16)
    backgrounds.draw(name, large, 128)
    assert small.random() == large.random()


@pytest.mark.parametrize("name", NAMES)
def test_a_large_picture_shrinks_to_the_small_one(name: str) -> None:
    for seed in range(4):
        small = _drawn(name, seed)
        same = np.abs(_shrunk(_drawn(name, seed, 256), 64) - small).mean()
        other = np.abs(_shrunk(_drawn(name, seed + 100, 256), 64) - small).mean()
        assert same < 0.04  # the windows of the city are the finest detail: 0.033
        assert same < other / 2


def test_nearest_picture_is_of_the_same_place() -> None:
    shots = np.stack([_shrunk(_drawn(name, seed), 8).ravel() for name in NAMES for seed in range(6)])
    labels = np.repeat(np.arange(len(NAMES)), 6)
    distance = np.linalg.norm(shots[:, None] - shots[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert np.array_equal(labels[distance.argmin(axis=1)], labels)


@pytest.mark.parametrize("name", NAMES)
def test_the_ground_looks_unlike_what_is_behind_it(name: str) -> None:
    row = round(backgrounds.GROUND[name] * 64)
    image = np.mean([_drawn(name, seed) for seed in range(6)], axis=0)
    ground, behind = image[row + 4 : row + 16].mean((0, 1)), image[row - 16 : row - 4].mean((0, 1))
    assert np.abs(ground - behind).max() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_place_for_an_object_is_calm(name: str) -> None:
    for seed in range(6):
        standing = _drawn(name, seed)[round(64 * (backgrounds.GROUND[name] + 0.08)) : 58, 16:48]
        assert standing.std(axis=1).mean() < 0.06


def test_unknown_name() -> None:
    with pytest.raises(EditbookError, match="Did you mean 'meadow'"):
        _drawn("medow", 0)
