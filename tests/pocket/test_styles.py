"""Properties of the six styles, measured on a small scene."""

from __future__ import annotations

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.pocket import Scene, Thing, styles

DRAWN = tuple(style for style in styles.STYLES if style != "photo")


def _photo(size: int) -> np.ndarray:
    thing = Thing("car", x=0.5, y=0.86, size=0.6, seed=0)
    return Scene("meadow", (thing,), seed=3).array(size).astype(np.float32) / 255


PHOTO = _photo(64)


def _styled(style: str, size: int = 64, seed: int = 0) -> np.ndarray:
    return styles.apply(PHOTO if size == 64 else _photo(size), style, np.random.default_rng(seed))


def _luma(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.3, 0.59, 0.11], np.float32)


def _edges(image: np.ndarray) -> np.ndarray:
    tone = _luma(image)
    return np.abs(np.diff(tone, axis=0))[:, 1:] + np.abs(np.diff(tone, axis=1))[1:]


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    step = image.shape[0] // side
    return image.reshape(side, step, side, step, 3).mean((1, 3))


def test_photo_is_the_identity() -> None:
    assert np.array_equal(_styled("photo"), PHOTO)


@pytest.mark.parametrize("size", [16, 33, 64, 128])
@pytest.mark.parametrize("style", styles.STYLES)
def test_shape_type_and_range(style: str, size: int) -> None:
    image = _photo(size)
    before = image.copy()
    made = styles.apply(image, style, np.random.default_rng(0))
    assert made.shape == (size, size, 3)
    assert made.dtype == np.float32
    assert 0 <= made.min() <= made.max() <= 1
    assert np.array_equal(image, before), "the picture that was passed in must not change"


@pytest.mark.parametrize("style", styles.STYLES)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_flat_picture_is_no_trouble(style: str, level: float) -> None:
    flat = np.full((64, 64, 3), level, np.float32)
    assert np.isfinite(styles.apply(flat, style, np.random.default_rng(0))).all()


@pytest.mark.parametrize("style", DRAWN)
def test_style_shows(style: str) -> None:
    assert np.abs(_styled(style) - PHOTO).mean() > 0.03


def test_styles_differ_from_each_other() -> None:
    made = {style: _styled(style) for style in styles.STYLES}
    for index, style in enumerate(styles.STYLES):
        for other in styles.STYLES[:index]:
            assert np.abs(made[style] - made[other]).mean() > 0.03, f"{style} looks like {other}"


@pytest.mark.parametrize("style", styles.STYLES)
def test_depends_on_the_generator_alone(style: str) -> None:
    assert np.array_equal(_styled(style, seed=1), _styled(style, seed=1))


@pytest.mark.parametrize("style", [style for style in DRAWN if style != "pixel art"])
def test_another_seed_draws_it_anew(style: str) -> None:
    assert np.abs(_styled(style, seed=1) - _styled(style, seed=2)).mean() > 0.003


@pytest.mark.parametrize("style", styles.STYLES)
def test_features_scale_with_the_picture(style: str) -> None:
    """The large picture, averaged over blocks of pixels, is near the small one."""
    small, large = _styled(style), _shrunk(_styled(style, 256), 64)
    assert np.abs(small - large).mean() < 0.04
    assert np.corrcoef(_shrunk(small, 16).ravel(), _shrunk(large, 16).ravel())[0, 1] > 0.96


@pytest.mark.parametrize("style", ["van Gogh painting", "watercolour", "pixel art", "mosaic"])
def test_the_scene_stays_recognisable(style: str) -> None:
    """Averaged over coarse cells inside the watercolour's border, the colours are still the photo's."""
    inside = slice(8, -8)
    made, photo = _styled(style)[inside, inside], PHOTO[inside, inside]
    assert np.corrcoef(_shrunk(made, 6).ravel(), _shrunk(photo, 6).ravel())[0, 1] > 0.9


def test_pencil_sketch_is_grey_and_draws_the_edges() -> None:
    made = _styled("pencil sketch")
    assert (made.max(-1) - made.min(-1)).max() < 0.06
    strong = _edges(PHOTO) > np.percentile(_edges(PHOTO), 95)
    tone = _luma(made)[1:, 1:]
    assert tone[strong].mean() < tone[~strong].mean() - 0.2


def test_van_gogh_is_more_vivid_and_has_strokes() -> None:
    made = _styled("van Gogh painting")
    assert (made.max(-1) - made.min(-1)).mean() > 1.1 * (PHOTO.max(-1) - PHOTO.min(-1)).mean()
    sky = slice(0, 12)
    assert _edges(made)[sky].mean() > 1.5 * _edges(PHOTO)[sky].mean()


def test_van_gogh_strokes_are_longer_than_wide() -> None:
    """Structure tensor over 8 x 8 cells: 0 for round grain, 1 for perfect stripes."""
    flat = np.full((128, 128, 3), 0.5, np.float32)
    gy, gx = np.gradient(_luma(styles.apply(flat, "van Gogh painting", np.random.default_rng(0))))
    xx, yy, xy = (part.reshape(16, 8, 16, 8).mean((1, 3)) for part in (gx * gx, gy * gy, gx * gy))
    coherence = np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-9)
    assert coherence.mean() > 0.42


def test_watercolour_is_pale_with_a_white_border() -> None:
    made = _styled("watercolour")
    for side in (made[0], made[-1], made[:, 0], made[:, -1]):  # ragged, so not every single pixel
        assert (side.min(-1) > 0.9).mean() > 0.8
    assert made.mean() > PHOTO.mean() + 0.05
    assert _edges(made)[8:-8, 8:-8].max() < _edges(PHOTO).max()


def test_pixel_art_has_few_flat_blocks() -> None:
    made = _styled("pixel art", 128)
    changes = np.abs(np.diff(made, axis=1)).max((0, 2)) > 0
    assert set(np.flatnonzero(changes) % 4) == {3}, "columns change colour only where the 32 blocks of 4 pixels meet"
    assert len(np.unique(made.reshape(-1, 3), axis=0)) < 120


def test_mosaic_has_flat_tiles_between_light_grout() -> None:
    made = _styled("mosaic", 256)
    flat = (np.abs(np.diff(made, axis=1)).max(-1)[1:] + np.abs(np.diff(made, axis=0)).max(-1)[:, 1:]) < 1e-4
    assert flat.mean() > 0.33
    dark = styles.apply(np.zeros((256, 256, 3), np.float32), "mosaic", np.random.default_rng(0))
    assert dark.max() > 0.4, "the grout is light also where the picture is black"
    assert np.median(dark) < 0.1


def test_unknown_style_suggests_the_nearest() -> None:
    with pytest.raises(EditbookError, match="watercolour"):
        styles.apply(PHOTO, "watercolor", np.random.default_rng(0))
