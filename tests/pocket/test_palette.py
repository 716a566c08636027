"""Properties of the eight colours and five materials, measured on real sprites."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.pocket import palette, sprites

WORDS = ("car", "cat", "penguin", "castle", "sunflower")
# Where the mean colour of a sprite must lie: hue in degrees, least saturation.
HUES = {
    "red": (-8, 8),
    "orange": (20, 38),
    "yellow": (45, 60),
    "green": (105, 140),
    "blue": (212, 238),
    "purple": (262, 285),
    "pink": (-45, -22),
}


def _sprite(word: str, side: int = 40) -> np.ndarray:
    return np.asarray(sprites._resized(word, side * sprites.shape(word)[0]), np.float32) / 255


def _flat(level: float) -> np.ndarray:
    return np.dstack([np.full((24, 30, 3), level, np.float32), np.ones((24, 30), np.float32)])


BODIES = {word: _sprite(word) for word in WORDS} | {"black": _flat(0.0), "grey": _flat(0.5), "blank": _flat(1.0)}


def _mean(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:]
    return (rgba[..., :3] * alpha).sum((0, 1)) / alpha.sum()


def _luma(rgba: np.ndarray) -> np.ndarray:
    return rgba[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)


def _made(rgba: np.ndarray, look: str, seed: int = 0) -> np.ndarray:
    if look in palette.COLOURS:
        return palette.recolour(rgba, look)
    return palette.transmute(rgba, look, np.random.default_rng(seed))


@pytest.mark.parametrize("look", palette.COLOURS + palette.MATERIALS)
@pytest.mark.parametrize("body", BODIES)
def test_shape_type_and_range(body: str, look: str) -> None:
    before = BODIES[body].copy()
    made = _made(BODIES[body], look)
    assert made.shape == before.shape
    assert made.dtype == np.float32
    assert 0 <= made.min() <= made.max() <= 1
    assert np.array_equal(BODIES[body], before), "the sprite that was passed in must not change"


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (61, 20)])
@pytest.mark.parametrize("look", palette.COLOURS + palette.MATERIALS)
def test_any_size_even_when_nothing_is_opaque(look: str, size: tuple[int, int]) -> None:
    made = _made(np.zeros((*size, 4), np.float32), look)
    assert made.shape == (*size, 4)
    assert np.isfinite(made).all()
    assert not made[..., 3].any()


@pytest.mark.parametrize("look", palette.COLOURS + palette.MATERIALS)
def test_outline_is_kept(look: str) -> None:
    body = BODIES["cat"]
    alpha = _made(body, look)[..., 3]
    if look == "ice":
        assert np.all(alpha <= body[..., 3])
        assert np.all(alpha >= 0.8 * body[..., 3])
        assert alpha.mean() < 0.99 * body[..., 3].mean(), "ice must be translucent"
    else:
        assert np.array_equal(alpha, body[..., 3])


@pytest.mark.parametrize("colour", HUES)
@pytest.mark.parametrize("body", BODIES)
def test_hue_is_in_its_band_on_any_sprite(body: str, colour: str) -> None:
    hue, saturation, _ = colorsys.rgb_to_hsv(*map(float, _mean(palette.recolour(BODIES[body], colour))))
    low, high = HUES[colour]
    degrees = (hue * 360 - low) % 360 + low
    assert low <= degrees <= high
    assert saturation > 0.4


@pytest.mark.parametrize("body", BODIES)
def test_white_is_bright_and_without_hue(body: str) -> None:
    _, saturation, value = colorsys.rgb_to_hsv(*map(float, _mean(palette.recolour(BODIES[body], "white"))))
    assert saturation < 0.06
    assert value > 0.75


@pytest.mark.parametrize("body", BODIES)
def test_every_look_differs_from_every_other(body: str) -> None:
    looks = palette.COLOURS + palette.MATERIALS
    means = {look: _mean(_made(BODIES[body], look)) for look in looks}
    for index, look in enumerate(looks):
        for other in looks[:index]:
            assert np.linalg.norm(means[look] - means[other]) > 0.08, f"{look} looks like {other}"


@pytest.mark.parametrize("colour", palette.COLOURS)
@pytest.mark.parametrize("word", WORDS)
def test_light_and_shade_are_kept(word: str, colour: str) -> None:
    body = BODIES[word]
    opaque = body[..., 3] > 0.9
    before, after = _luma(body)[opaque], _luma(palette.recolour(body, colour))[opaque]
    dark, light = before < np.percentile(before, 5), before > np.percentile(before, 90)
    assert after[light].mean() - after[dark].mean() > 0.15, "eyes, tyres and windows must stay visible"
    assert np.corrcoef(before, after)[0, 1] > 0.7


@pytest.mark.parametrize("material", palette.MATERIALS)
def test_material_depends_on_the_generator_alone(material: str) -> None:
    body = BODIES["cat"]
    assert np.array_equal(_made(body, material, 3), _made(body, material, 3))
    assert np.abs(_made(body, material, 3) - _made(body, material, 4)).max() > 0.05


@pytest.mark.parametrize("material", palette.MATERIALS)
def test_material_is_the_same_at_every_size(material: str) -> None:
    """A large sprite, averaged over blocks of pixels, is nearer to the small one than to another pattern."""
    large, small = _flat(0.5)[:1, :1].repeat(96, 0).repeat(96, 1), _flat(0.5)[:1, :1].repeat(24, 0).repeat(24, 1)

    def shrunk(seed: int) -> np.ndarray:
        return _made(large, material, seed).reshape(24, 4, 24, 4, 4).mean((1, 3))

    target = _made(small, material, 5)
    assert np.abs(shrunk(5) - target).mean() < 0.6 * np.abs(shrunk(6) - target).mean()


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(EditbookError, match="purple"):
        palette.recolour(BODIES["car"], "purpel")
    with pytest.raises(EditbookError, match="golden"):
        palette.transmute(BODIES["car"], "golde", np.random.default_rng(0))
