"""Six styles for a whole picture: a photo, and five ways to draw or lay it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from ..errors import unknown

Picture = np.ndarray  # float32 (size, size, 3) in [0, 1]
_LUMA = np.array([0.3, 0.59, 0.11], np.float32)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.broadcast_to(centres[None, :], (size, size)), np.broadcast_to(centres[:, None], (size, size))


def _blur(image: np.ndarray, radius: float) -> np.ndarray:
    """A smooth low-pass of a picture or a field: down to cells of `radius` (a fraction of the side) and up again."""
    size = image.shape[0]
    side = max(2, round(1 / radius))
    channels = image[..., None] if image.ndim == 2 else image
    planes = [
        Image.fromarray(np.ascontiguousarray(channels[..., k], np.float32))
        .resize((side, side), Image.Resampling.BOX)
        .resize((size, size), Image.Resampling.BICUBIC)
        for k in range(channels.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], -1).reshape(image.shape)


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Noise around 0, float32 (size, size), on a lattice of fixed resolution."""
    lattice = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(lattice).resize((size, size), Image.Resampling.BICUBIC))


def _edges(image: Picture) -> np.ndarray:
    """Strength of edges, as the largest channel's step over one cell of a 64-cell grid, (size, size).

    The step is taken forwards, to one neighbour: a centred difference would draw each edge two cells wide.
    """
    size = image.shape[0]
    width = max(1, round(size / 64))
    strength = np.zeros((size, size), np.float32)
    strength[:, :-width] = np.abs(image[:, width:] - image[:, :-width]).max(-1)
    strength[:-width] = np.maximum(strength[:-width], np.abs(image[width:] - image[:-width]).max(-1))
    return strength


def _photo(image: Picture, rng: np.random.Generator) -> Picture:
    return image


def _pencil_sketch(image: Picture, rng: np.random.Generator) -> Picture:
    size = image.shape[0]
    x, y = _grid(size)
    tone = image @ _LUMA
    hatch = 0.5 + 0.5 * np.sin(2 * np.pi * (11 * (x + y) + 0.12 * _noise(rng, size, 12)))
    cross = 0.5 + 0.5 * np.sin(2 * np.pi * (11 * (x - y) + 0.12 * _noise(rng, size, 12)))
    dark = (0.78 - tone).clip(0) * 0.5 * hatch + (0.42 - tone).clip(0) * 0.5 * cross
    lines = (_edges(image) * 2.2 - 0.14).clip(0, 0.85)
    grey = 0.96 + 0.012 * _noise(rng, size, 64) - np.maximum(dark, lines)
    return grey[..., None] * np.array([1.0, 0.99, 0.96], np.float32)


def _van_gogh(image: Picture, rng: np.random.Generator) -> Picture:
    size = image.shape[0]
    x, y = _grid(size)
    field = _noise(rng, size, 5)
    # Strokes follow the contours of the tone where there are any, and swirl elsewhere.
    tone = _blur(image @ _LUMA, 1 / 16)
    gy, gx = np.gradient(tone)
    angle = np.arctan2(gx, -gy)
    swirl = 2.2 * field
    weight = (np.hypot(gx, gy) * size * 0.35).clip(0, 1)
    u = weight * np.cos(angle) + (1 - weight) * np.cos(swirl)
    v = weight * np.sin(angle) + (1 - weight) * np.sin(swirl)
    length = np.hypot(u, v) + 1e-6
    u, v = u / length * size, v / length * size
    column, row = x * size - 0.5, y * size - 0.5
    grain = _noise(rng, size, 44)
    paint = np.zeros_like(image)
    stroke = np.zeros((size, size), np.float32)
    for reach in (-0.03, -0.015, 0.0, 0.015, 0.03):
        at = (
            (row + reach * v).round().astype(int).clip(0, size - 1),
            (column + reach * u).round().astype(int).clip(0, size - 1),
        )
        paint += image[at] / 5
        stroke += grain[at] / 5
    paint += 0.35 * (image - paint)  # enough of the picture under the strokes to keep eyes and wheels
    tone = paint @ _LUMA
    vivid = tone[..., None] + 1.45 * (paint - tone[..., None])
    vivid = vivid * np.array([1.02, 0.99, 0.93], np.float32) + np.array([0.0, 0.0, 0.05], np.float32)
    return vivid * (1 + 0.26 * stroke[..., None]) + 0.05 * stroke[..., None]


def _watercolour(image: Picture, rng: np.random.Generator) -> Picture:
    size = image.shape[0]
    x, y = _grid(size)
    shift = 0.012 * size
    column = (x * size + shift * _noise(rng, size, 14)).astype(int).clip(0, size - 1)
    row = (y * size + shift * _noise(rng, size, 14)).astype(int).clip(0, size - 1)
    washed = 0.45 * image[row, column] + 0.55 * _blur(image, 1 / 26)[row, column]
    edge = (_edges(washed) * 0.7).clip(0, 0.3)
    pigment = 1 - 0.62 * (1 - washed) * (1 + 0.16 * _noise(rng, size, 10)[..., None]) - edge[..., None] * 0.5
    pigment += 0.015 * _noise(rng, size, 64)[..., None]
    border = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) + 0.012 * _noise(rng, size, 16)
    fade = ((border - 0.03) / 0.025).clip(0, 1)[..., None]
    return 0.985 + fade * (pigment - 0.985)


def _pixel_art(image: Picture, rng: np.random.Generator) -> Picture:
    size = image.shape[0]
    small = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).resize((32, 32), Image.Resampling.BOX)
    levels = 5
    flat = np.round(np.asarray(small, np.float32) / 255 * levels) / levels
    flat = (flat - 0.5) * 1.12 + 0.5
    index = ((np.arange(size) + 0.5) / size * 32).astype(int)
    return flat[index[:, None], index[None, :]].clip(0, 1)


@lru_cache(maxsize=32)
def _tiles(size: int, variant: int) -> tuple[np.ndarray, np.ndarray]:
    """Voronoi tiles on a jittered 18 x 18 lattice: the index of each pixel's tile, and its distance to the border."""
    rng, n = np.random.default_rng([variant, 3]), 18
    x, y = _grid(size)
    jitter = rng.uniform(0.16, 0.84, (2, n + 2, n + 2)).astype(np.float32)
    column, row = (x * n).astype(int), (y * n).astype(int)
    distances, owners = [], []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            j, i = row + dy + 1, column + dx + 1
            px = column + dx + jitter[0, j, i]
            py = row + dy + jitter[1, j, i]
            distances.append(np.hypot(px - x * n, py - y * n))
            owners.append(j * (n + 2) + i)
    order = np.argsort(np.stack(distances), axis=0)[:2]
    near = np.take_along_axis(np.stack(distances), order, 0)
    return np.take_along_axis(np.stack(owners), order[:1], 0)[0], (near[1] - near[0]) / n


def _mosaic(image: Picture, rng: np.random.Generator) -> Picture:
    size = image.shape[0]
    owner, border = _tiles(size, int(rng.integers(8)))
    flat, count = owner.ravel(), 20 * 20
    area = np.bincount(flat, minlength=count).clip(1)
    mean = np.stack([np.bincount(flat, image[..., k].ravel(), count) / area for k in range(3)], -1).astype(np.float32)
    mean = (mean + rng.normal(0, 0.03, (count, 1)).astype(np.float32)) * 1.04
    grout = (1 - border * size / max(1.0, 0.016 * size)).clip(0, 1)[..., None] * 0.5
    return mean[owner] * (1 - grout) + grout * np.array([0.90, 0.88, 0.84], np.float32)


_STYLES: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "photo": _photo,
    "pencil sketch": _pencil_sketch,
    "van Gogh painting": _van_gogh,
    "watercolour": _watercolour,
    "pixel art": _pixel_art,
    "mosaic": _mosaic,
}
STYLES = tuple(_STYLES)
COLOURLESS = frozenset({"pencil sketch"})
"""Styles that do not show of what colour or material an object is."""


def apply(image: Picture, style: str, rng: np.random.Generator) -> Picture:
    """A picture in another style. Strokes, tiles and blocks scale with the picture.

    Args:
        image: float32 (size, size, 3) in [0, 1].
        style: One of `STYLES`; "photo" leaves the picture as it is.
        rng: Varies the strokes, the paper and the tiles.

    Returns:
        float32 (size, size, 3) in [0, 1].

    Raises:
        EditbookError: If the style is not one of `STYLES`.
    """
    if style not in _STYLES:
        raise unknown("style", style, STYLES)
    return _STYLES[style](image, rng).clip(0, 1).astype(np.float32, copy=False)
