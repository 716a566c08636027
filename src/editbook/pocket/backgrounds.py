"""Ten places, drawn by formula at any size: a colour gradient here, a ridge there, dots for stars and flowers.

All coordinates are fractions of the picture, edges are smoothed over one pixel, and random numbers are drawn in the
same order at every size, so that a place looks the same at 64 and at 512 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ..errors import unknown

Colour = tuple[float, float, float]
Picture = np.ndarray  # float32 (size, size, 3) in [0, 1]
Window = tuple[slice, slice]  # the rows and columns of a picture that a shape can touch

_WHOLE: Window = (slice(None), slice(None))

GROUND: dict[str, float] = {
    "beach": 0.62,
    "forest": 0.66,
    "night": 0.68,
    "snow": 0.62,
    "desert": 0.60,
    "sea": 0.48,
    "room": 0.68,
    "meadow": 0.60,
    "city": 0.70,
    "sunset": 0.62,
}
"""Where the ground begins, as a fraction of the height from the top."""


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centres[None, :], centres[:, None]


def _colour(value: Colour) -> np.ndarray:
    return np.asarray(value, np.float32)


def _inside(distance: np.ndarray, size: int, softness: float = 1.0) -> np.ndarray:
    """1 where `distance` (fractions of the picture) is positive, 0 where negative, smooth over `softness` pixels."""
    return (distance * (size / softness) + 0.5).clip(0, 1)


def _window(size: int, left: float, right: float, top: float, bottom: float) -> Window:
    """The pixels of a rectangle and of its soft edge: small shapes are worked out there only, for speed."""
    first = [max(int(low * size) - 1, 0) for low in (top, left)]
    last = [max(int(high * size) + 2, 0) for high in (bottom, right)]
    return slice(first[0], last[0]), slice(first[1], last[1])


def _grid_in(size: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
    x, y = _grid(size)
    return x[:, window[1]], y[window[0]]


def _paint(image: Picture, mask: np.ndarray, colour: Colour | np.ndarray, window: Window = _WHOLE) -> None:
    """Lay a colour over the picture (or a window of it, which the mask then fills) where the mask is 1."""
    part = image[window]
    part += mask[..., None] * (np.asarray(colour, np.float32) - part)


def _gradient(size: int, *stops: tuple[float, Colour]) -> np.ndarray:
    """A vertical gradient through (height, colour) stops, as one column (size, 1, 3)."""
    _, y = _grid(size)
    heights = [height for height, _ in stops]
    channels = [np.interp(y[:, 0], heights, [colour[c] for _, colour in stops]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)[:, None, :]


def _sky(size: int, *stops: tuple[float, Colour]) -> Picture:
    """A vertical gradient as a whole picture, to paint on."""
    return np.repeat(_gradient(size, *stops), size, axis=1)


def _jitter(rng: np.random.Generator, colour: Colour, amount: float = 0.035) -> Colour:
    red, green, blue = (np.asarray(colour) + rng.uniform(-amount, amount, 3)).clip(0, 1)
    return float(red), float(green), float(blue)


def _ridge(rng: np.random.Generator, size: int, base: float, height: float, waves: float = 1.3) -> np.ndarray:
    """The y of a rolling skyline for each column, (1, size)."""
    x, _ = _grid(size)
    phase = rng.uniform(0, 2 * np.pi, 3)
    profile = np.sin(2 * np.pi * waves * x + phase[0]) + 0.5 * np.sin(4.3 * np.pi * waves * x + phase[1])
    return base - height * 0.5 * (profile + 0.3 * np.sin(9 * np.pi * waves * x + phase[2]))


def _paint_below(image: Picture, ridge: np.ndarray | float, colour: Colour | np.ndarray) -> None:
    """Fill everything under a skyline with a colour, a gradient or a picture."""
    size = len(image)
    window = _window(size, 0, 1, float(np.min(ridge)), 1)
    _, y = _grid_in(size, window)
    _paint(image, _inside(y - ridge, size), colour[window[0]] if isinstance(colour, np.ndarray) else colour, window)


def _paint_box(image: Picture, x0: float, y0: float, half_width: float, half_height: float, colour: Colour) -> None:
    size = len(image)
    window = _window(size, x0 - half_width, x0 + half_width, y0 - half_height, y0 + half_height)
    x, y = _grid_in(size, window)
    mask = _inside(np.minimum(half_width - np.abs(x - x0), half_height - np.abs(y - y0)), size)
    _paint(image, mask, colour, window)


def _paint_ellipse(
    image: Picture,
    x0: float,
    y0: float,
    rx: float,
    ry: float,
    colour: Colour | Picture,
    *,
    softness: float = 1.0,
    opacity: float = 1.0,
) -> None:
    size = len(image)
    edge = 1 + softness / (2 * size * min(rx, ry))
    window = _window(size, x0 - edge * rx, x0 + edge * rx, y0 - edge * ry, y0 + edge * ry)
    x, y = _grid_in(size, window)
    mask = _inside((1 - np.sqrt(((x - x0) / rx) ** 2 + ((y - y0) / ry) ** 2)) * min(rx, ry), size, softness)
    _paint(image, opacity * mask, colour[window] if isinstance(colour, np.ndarray) else colour, window)


def _dots(
    rng: np.random.Generator, size: int, cells: int, radius: float, share: float, low: float = 0, high: float = 1
) -> tuple[np.ndarray, Window]:
    """Round dots, one at a random place in each of `share` of the cells of a grid, between two heights."""
    window = _window(size, 0, 1, low, high)
    x, y = _grid_in(size, window)
    dx, dy, big, there = rng.random((4, cells, cells), dtype=np.float32)
    column, row = (x * cells).astype(int), (y * cells).astype(int)
    reach = radius * cells  # keep dots inside their cells
    at_x = reach + dx * (1 - 2 * reach) + np.arange(cells, dtype=np.float32)
    at_y = reach + dy * (1 - 2 * reach) + np.arange(cells, dtype=np.float32)[:, None]
    distance = np.hypot(x - at_x[row, column] / cells, y - at_y[row, column] / cells)
    size_of = (radius * (0.55 + 0.45 * big) * (there < share))[row, column]
    return _inside(size_of - distance, size) * (size_of > 0) * ((y > low) & (y < high)), window


def _clouds(rng: np.random.Generator, image: Picture, count: int = 2, colour: Colour = (1, 1, 1)) -> None:
    for _ in range(count):
        x0, y0, scale = rng.uniform(0.0, 1.0), rng.uniform(0.08, 0.28), rng.uniform(0.8, 1.3)
        for dx, dy, r in ((-0.08, 0.012, 0.055), (0.0, -0.01, 0.075), (0.09, 0.012, 0.06)):
            at = (x0 + dx * scale, y0 + dy, r * 1.4 * scale, r * 0.8 * scale)
            _paint_ellipse(image, *at, colour, softness=2, opacity=0.85)


def _fir(image: Picture, x0: float, foot: float, height: float, colour: Colour, snow: Colour) -> None:
    size = len(image)
    green, white = _colour(colour), _colour(snow)
    for tier in range(3):
        top, bottom = foot - height * (1 - 0.26 * tier), foot - height * (0.56 - 0.26 * tier)
        half = height * (0.17 + 0.07 * tier)
        window = _window(size, x0 - half, x0 + half, top, bottom)
        x, y = _grid_in(size, window)
        slope = (y - top) / (bottom - top) * half - np.abs(x - x0)
        _paint(image, _inside(np.minimum(slope, bottom - y), size), green, window)
        cap = top + 0.45 * (bottom - top)  # snow lies on the upper part of every tier
        above = _window(size, x0 - half, x0 + half, top, cap)
        rows = above[0].stop - above[0].start
        _paint(image, _inside(np.minimum(slope[:rows], cap - y[:rows]), size), white, above)


def _beach(rng: np.random.Generator, size: int) -> Picture:
    image = _sky(size, (0, _jitter(rng, (0.36, 0.70, 0.96))), (0.42, (0.80, 0.93, 0.99)))
    _paint_ellipse(image, rng.uniform(0.12, 0.88), rng.uniform(0.10, 0.2), 0.085, 0.085, (1.0, 0.93, 0.55))
    _clouds(rng, image, 1)
    _paint_below(image, 0.42, _gradient(size, (0.42, (0.10, 0.52, 0.76)), (0.62, (0.27, 0.82, 0.83))))
    shore = _ridge(rng, size, 0.62, 0.02, 1.0)
    _paint_below(image, shore - 0.02, (0.96, 0.99, 0.98))
    _paint_below(
        image,
        shore + 0.012,
        _gradient(size, (0.6, (0.87, 0.73, 0.50)), (0.7, _jitter(rng, (0.96, 0.85, 0.60))), (1, (0.93, 0.79, 0.52))),
    )
    return image


def _forest(rng: np.random.Generator, size: int) -> Picture:
    x, y = _grid(size)
    image = _sky(size, (0, (0.10, 0.30, 0.14)), (0.45, (0.38, 0.62, 0.30)), (0.66, (0.55, 0.74, 0.42)))
    for shade, width in ((0.75, 0.018), (1.0, 0.034)):
        for x0 in np.linspace(0.02, 0.98, 6) + rng.uniform(-0.06, 0.06, 6):
            window = _window(size, x0 - 1.35 * width, x0 + 1.35 * width, 0, 0.70)
            u, v = _grid_in(size, window)
            half = width * (1 + 0.35 * v**4)  # trunks widen towards their feet
            trunk = _inside(np.minimum(half - np.abs(u - x0), 0.70 - v), size)
            _paint(image, trunk, np.array([0.34, 0.22, 0.13]) * shade, window)
    for base, colour in ((0.30, (0.16, 0.45, 0.20)), (0.20, (0.10, 0.34, 0.16)), (0.10, (0.06, 0.26, 0.12))):
        phase, second = rng.uniform(0, 1, 2)
        scallop = base + 0.07 * np.abs(np.sin(np.pi * (5 * x + phase))) + 0.03 * np.sin(2 * np.pi * (2 * x + second))
        canopy = _window(size, 0, 1, 0, float(scallop.max()))
        _paint(image, 1 - _inside(y[canopy[0]] - scallop, size), _jitter(rng, colour, 0.02), canopy)
    _paint_below(
        image,
        _ridge(rng, size, 0.66, 0.02),
        _gradient(size, (0.64, (0.24, 0.42, 0.15)), (1, _jitter(rng, (0.16, 0.28, 0.10)))),
    )
    return image


def _night(rng: np.random.Generator, size: int) -> Picture:
    image = _sky(size, (0, (0.03, 0.05, 0.20)), (0.7, _jitter(rng, (0.16, 0.20, 0.46), 0.03)))
    stars, window = _dots(rng, size, 9, 0.012, 0.55, high=0.62)
    _paint(image, stars, (1.0, 0.98, 0.85), window)
    x0, y0 = rng.uniform(0.14, 0.86), rng.uniform(0.13, 0.22)
    _paint_ellipse(image, x0, y0, 0.15, 0.15, (0.75, 0.8, 1.0), softness=8, opacity=0.25)
    sky = image.copy()
    _paint_ellipse(image, x0, y0, 0.095, 0.095, (1.0, 0.96, 0.74))
    _paint_ellipse(image, x0 + 0.05, y0 - 0.025, 0.08, 0.08, sky)
    _paint_below(image, _ridge(rng, size, 0.60, 0.07), (0.09, 0.12, 0.30))
    _paint_below(
        image,
        _ridge(rng, size, 0.68, 0.04),
        _gradient(size, (0.6, (0.07, 0.13, 0.22)), (1, _jitter(rng, (0.10, 0.20, 0.26), 0.02))),
    )
    return image


def _snow(rng: np.random.Generator, size: int) -> Picture:
    image = _sky(size, (0, _jitter(rng, (0.62, 0.74, 0.88))), (0.6, (0.87, 0.92, 0.97)))
    _paint_below(image, _ridge(rng, size, 0.52, 0.10), (0.78, 0.85, 0.94))
    for x0 in np.array([0.06, 0.25, 0.76, 0.95]) + rng.uniform(-0.05, 0.05, 4):
        _fir(image, float(x0), 0.66, float(rng.uniform(0.34, 0.48)), (0.16, 0.38, 0.36), (0.95, 0.98, 1.0))
    _paint_below(
        image,
        _ridge(rng, size, 0.62, 0.03),
        _gradient(size, (0.6, (0.95, 0.97, 1.0)), (1, (0.83, 0.89, 0.98))),
    )
    flakes, window = _dots(rng, size, 8, 0.014, 0.5, high=0.6)
    _paint(image, flakes, (1, 1, 1), window)
    return image


def _desert(rng: np.random.Generator, size: int) -> Picture:
    image = _sky(size, (0, _jitter(rng, (0.45, 0.74, 0.88))), (0.55, (0.99, 0.88, 0.68)))
    _paint_ellipse(image, rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.24), 0.08, 0.08, (1.0, 0.97, 0.80))
    _paint_below(image, _ridge(rng, size, 0.50, 0.10, 0.8), (0.88, 0.60, 0.34))
    for x0 in (rng.uniform(0.06, 0.16), rng.uniform(0.84, 0.94)):
        foot, tall, side = 0.66, rng.uniform(0.22, 0.3), rng.choice([-1.0, 1.0])
        bars = (
            (x0, foot - tall / 2, 0.022, tall / 2),
            (x0 + 0.055 * side, foot - 0.575 * tall, 0.015, 0.175 * tall),
            (x0 + 0.03 * side, foot - 0.42 * tall, 0.034, 0.014),
        )
        for middle_x, middle_y, half_width, half_height in bars:
            _paint_box(image, middle_x, middle_y, half_width, half_height, (0.22, 0.50, 0.27))
    _paint_below(
        image,
        _ridge(rng, size, 0.60, 0.06, 1.0),
        _gradient(size, (0.55, (0.95, 0.70, 0.38)), (1, _jitter(rng, (0.86, 0.55, 0.25)))),
    )
    return image


def _sea(rng: np.random.Generator, size: int) -> Picture:
    x, y = _grid(size)
    image = _sky(size, (0, _jitter(rng, (0.40, 0.68, 0.95))), (0.46, (0.86, 0.94, 1.0)))
    _clouds(rng, image, 2)
    water = _gradient(size, (0.46, (0.16, 0.47, 0.78)), (1, _jitter(rng, (0.04, 0.22, 0.52))))
    _paint_below(image, 0.46, water)
    for level in (0.52, 0.60, 0.70, 0.82, 0.95):
        depth, phase = (level - 0.4) * 0.05, rng.uniform(0, 1)
        crest = level + depth * np.sin(2 * np.pi * (x * 1.6 / (level - 0.2) + phase))
        window = _window(size, 0, 1, level - 1.42 * depth, level + 1.42 * depth)
        line = _inside(depth * 0.42 - np.abs(y[window[0]] - crest), size)
        _paint(image, 0.75 * line, (0.62, 0.86, 0.96), window)
    return image


def _room(rng: np.random.Generator, size: int) -> Picture:
    x, y = _grid(size)
    walls: tuple[Colour, ...] = ((0.96, 0.87, 0.70), (0.94, 0.78, 0.76), (0.76, 0.88, 0.82), (0.80, 0.82, 0.93))
    image = np.empty((size, size, 3), np.float32)
    image[:] = _colour(_jitter(rng, walls[int(rng.integers(4))], 0.02))
    image *= (1.03 - 0.12 * y)[..., None]
    x0, sky = rng.choice([rng.uniform(0.16, 0.24), rng.uniform(0.76, 0.84)]), (0.60, 0.84, 0.98)
    for half, colour in ((0.145, (0.99, 0.98, 0.95)), (0.118, sky)):
        frame = np.minimum(_inside(half - np.abs(x - x0), size), _inside(half * 1.15 - np.abs(y - 0.24), size))
        _paint(image, frame, colour)
        if colour == sky:
            bars = np.maximum(_inside(0.010 - np.abs(x - x0), size), _inside(0.010 - np.abs(y - 0.24), size))
            _paint(image, np.minimum(frame, bars), (0.99, 0.98, 0.95))
    other = 1 - x0
    for half, colour in ((0.085, (0.52, 0.33, 0.20)), (0.066, _jitter(rng, (0.55, 0.70, 0.55), 0.2))):
        _paint(
            image, np.minimum(_inside(half - np.abs(x - other), size), _inside(half - np.abs(y - 0.22), size)), colour
        )
    _paint_below(image, 0.645, (0.98, 0.96, 0.92))
    floor = _gradient(size, (0.68, (0.66, 0.43, 0.25)), (1, _jitter(rng, (0.80, 0.55, 0.33), 0.02)))
    depth = (y - 0.45).clip(0.05)  # boards run towards the viewer
    board = (x - 0.5) / depth * 2.2 + 0.5
    gap = (0.06 - np.abs(board - np.round(board))) * depth / 2.2  # back to fractions of the picture
    floor = floor * (1 - 0.22 * _inside(gap, size))[..., None]
    _paint_below(image, 0.68, floor)
    return image


def _meadow(rng: np.random.Generator, size: int) -> Picture:
    image = _sky(size, (0, _jitter(rng, (0.33, 0.66, 0.97))), (0.55, (0.82, 0.94, 1.0)))
    _clouds(rng, image, 2)
    _paint_below(image, _ridge(rng, size, 0.50, 0.09, 0.9), _jitter(rng, (0.42, 0.74, 0.36)))
    ridge = _ridge(rng, size, 0.60, 0.05, 1.1)
    _paint_below(image, ridge, _gradient(size, (0.55, (0.55, 0.84, 0.32)), (1, _jitter(rng, (0.30, 0.64, 0.20)))))
    colours: tuple[Colour, ...] = ((1.0, 0.95, 0.4), (1.0, 1.0, 1.0), (0.98, 0.5, 0.65))
    flowers, window = _dots(rng, size, 8, 0.016, 0.45, low=0.66)
    _paint(image, flowers, colours[int(rng.integers(3))], window)
    return image


def _city(rng: np.random.Generator, size: int) -> Picture:
    x, y = _grid(size)
    image = _sky(size, (0, _jitter(rng, (0.56, 0.72, 0.88))), (0.6, (0.90, 0.90, 0.86)))
    shades: tuple[Colour, ...] = ((0.43, 0.48, 0.60), (0.60, 0.47, 0.47), (0.50, 0.55, 0.55), (0.36, 0.40, 0.52))
    count = 7
    column = (x[0] * count).astype(int)
    tops = rng.uniform(0.10, 0.42, count)[column]
    wall = np.asarray(shades, np.float32)[rng.integers(4, size=count)][column]
    gap = np.abs(x[0] * count - column - 0.5) < 0.47
    building = _inside(y - tops[None, :], size) * gap[None, :]
    wx, wy = (x * count * 3) % 1, (y * 22) % 1
    lit = rng.random((22, count * 3))[(y * 22).astype(int), (x * count * 3).astype(int)]
    pane = np.minimum((0.28 - np.abs(wx - 0.5)) / (3 * count), (0.28 - np.abs(wy - 0.5)) / 22)
    facade = np.broadcast_to(wall[None], image.shape).copy()
    _paint(
        facade,
        _inside(np.minimum(pane, y - tops[None, :] - 0.03), size),
        np.where(lit[..., None] < 0.45, _colour((1.0, 0.90, 0.58)), _colour((0.74, 0.84, 0.93))),
    )
    _paint(image, building, facade)
    _paint_below(image, 0.66, (0.74, 0.73, 0.72))
    _paint_below(image, 0.70, _gradient(size, (0.7, (0.33, 0.34, 0.38)), (1, (0.26, 0.27, 0.31))))
    dashes = np.minimum(
        _inside(0.012 - np.abs(y - 0.94), size), _inside(0.06 - np.abs((x + rng.uniform(0, 1)) % 0.25 - 0.125), size)
    )
    _paint(image, dashes, (0.98, 0.95, 0.80))
    return image


def _sunset(rng: np.random.Generator, size: int) -> Picture:
    image = _sky(size, (0, _jitter(rng, (0.36, 0.20, 0.50))), (0.3, (0.90, 0.38, 0.42)), (0.6, (1.0, 0.76, 0.36)))
    x0 = rng.uniform(0.2, 0.8)
    _paint_ellipse(image, x0, 0.56, 0.30, 0.30, (1.0, 0.9, 0.55), softness=size * 0.16, opacity=0.5)
    _paint_ellipse(image, x0, 0.55, 0.17, 0.17, (1.0, 0.93, 0.62))
    _paint_below(image, _ridge(rng, size, 0.56, 0.05), (0.45, 0.18, 0.38))
    _paint_below(
        image,
        _ridge(rng, size, 0.62, 0.03),
        _gradient(size, (0.6, (0.36, 0.14, 0.33)), (1, _jitter(rng, (0.22, 0.09, 0.26), 0.02))),
    )
    return image


_DRAW: dict[str, Callable[[np.random.Generator, int], Picture]] = {
    "beach": _beach,
    "forest": _forest,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "sea": _sea,
    "room": _room,
    "meadow": _meadow,
    "city": _city,
    "sunset": _sunset,
}


def draw(name: str, rng: np.random.Generator, size: int) -> Picture:
    """Draw a place.

    Args:
        name: One of the keys of `GROUND`.
        rng: Varies clouds, hills, trees, windows and shades. The same state gives the same place at every size.
        size: Height and width in pixels.

    Returns:
        The picture, float32 (size, size, 3) in [0, 1].

    Raises:
        EditbookError: If no background has this name.
    """
    if name not in _DRAW:
        raise unknown("background", name, _DRAW)
    image = _DRAW[name](rng, size)
    return image.clip(0, 1, out=image)
