"""Repainting one sprite: eight colours and five materials, by mapping its light and shade through a ramp of colours."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from ..errors import unknown

_POSITIONS = (0.0, 0.42, 0.75, 1.0)  # where on the light-and-shade axis the four colours of a ramp stand

_COLOUR_RAMPS = {
    "red": ("3a0508", "d2141c", "f23a34", "ffb4a4"),
    "orange": ("4a1c00", "f07800", "ff9420", "ffdcae"),
    "yellow": ("5a4400", "f4cc00", "ffe22e", "fffbd0"),
    "green": ("062c0c", "14a028", "3cc840", "c8f8b8"),
    "blue": ("060c48", "1848e0", "3c70ff", "bcd4ff"),
    "purple": ("20083c", "7c20c0", "9c48e0", "e2c2fc"),
    "pink": ("5a0c3c", "f05ab0", "ff88c8", "ffe0f2"),
    "white": ("6c7078", "e4e6ea", "f6f7f9", "ffffff"),
}
_MATERIAL_RAMPS = {
    "golden": ("3c2200", "b87a0a", "f2c02c", "fff8d0"),
    "wooden": ("2c1608", "8a5424", "b67c42", "e0b482"),
    "stone": ("2c2b29", "76736e", "9a968f", "c4c0b8"),
    "ice": ("2c7ca0", "9adcf0", "c8f2fc", "ffffff"),
    "silver": ("14181e", "7c8694", "c2cad4", "ffffff"),
}
COLOURS = tuple(_COLOUR_RAMPS)
MATERIALS = tuple(_MATERIAL_RAMPS)


@cache
def _ramp(codes: tuple[str, ...]) -> np.ndarray:
    """256 colours, float32 (256, 3)."""
    anchors = np.array([[int(code[k : k + 2], 16) / 255 for k in (0, 2, 4)] for code in codes], np.float32)
    at = np.linspace(0, 1, 256)
    return np.stack([np.interp(at, _POSITIONS, anchors[:, channel]) for channel in range(3)], -1).astype(np.float32)


def _shade(rgba: np.ndarray) -> np.ndarray:
    """Light and shade of a sprite, stretched so that its opaque part spans [0, 1] with its median at 0.5."""
    light = rgba[..., :3] @ np.array([0.35, 0.5, 0.15], np.float32)
    opaque = light[rgba[..., 3] > 0.5]
    if opaque.size == 0:
        return light
    low, middle, high = np.percentile(opaque, (2, 50, 98))
    # A sprite that is nearly uniform must not have its noise blown up.
    low, high = min(low, middle - 0.18), max(high, middle + 0.15)
    return np.interp(light, (low, middle, high), (0.0, 0.5, 1.0)).astype(np.float32)


def _through(shade: np.ndarray, codes: tuple[str, ...]) -> np.ndarray:
    return _ramp(codes)[(shade.clip(0, 1) * 255).astype(np.uint8)]


def recolour(rgba: np.ndarray, colour: str) -> np.ndarray:
    """A sprite in another colour, its shading, eyes and tyres kept.

    Args:
        rgba: float32 (height, width, 4) in [0, 1], straight alpha.
        colour: One of `COLOURS`.

    Returns:
        float32 (height, width, 4) in [0, 1]; the alpha is the sprite's own.

    Raises:
        EditbookError: If the colour is not one of `COLOURS`.
    """
    if colour not in _COLOUR_RAMPS:
        raise unknown("colour", colour, COLOURS)
    return np.dstack([_through(_shade(rgba), _COLOUR_RAMPS[colour]), rgba[..., 3]])


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Noise in [0, 1] on a lattice of fixed resolution, so that the pattern does not depend on the size."""
    lattice = (rng.random((cells, cells)) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(lattice).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def transmute(rgba: np.ndarray, material: str, rng: np.random.Generator) -> np.ndarray:
    """A sprite made of another material.

    Args:
        rgba: float32 (height, width, 4) in [0, 1], straight alpha.
        material: One of `MATERIALS`.
        rng: Varies the grain and the glints; how often it is drawn from does not depend on the size.

    Returns:
        float32 (height, width, 4) in [0, 1]. Only ice, which is translucent, lowers the alpha.

    Raises:
        EditbookError: If the material is not one of `MATERIALS`.
    """
    if material not in _MATERIAL_RAMPS:
        raise unknown("material", material, MATERIALS)
    height, width = rgba.shape[:2]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]
    shade, alpha = _shade(rgba), rgba[..., 3]
    if material in ("golden", "silver"):
        # Polished metal mirrors its surroundings: bright and dark bands across the shape.
        bend = 0.5 * shade + 0.25 * _smooth_noise(rng, height, width, 4)
        bands = np.sin(2 * np.pi * (1.5 * y + 0.5 * x + bend))
        shade = 0.62 * shade + 0.22 + 0.26 * bands * (0.3 + 0.7 * shade)
    elif material == "wooden":
        warp = 0.35 * _smooth_noise(rng, height, width, 4)
        rings = np.sin(2 * np.pi * 5.5 * (y + warp + 0.12 * x))
        shade = 0.75 * shade + 0.12 + 0.15 * rings
    elif material == "stone":
        shade = 0.7 * shade + 0.15 + 0.28 * (_smooth_noise(rng, height, width, 20) - 0.5)
    else:
        facets = np.abs(_smooth_noise(rng, height, width, 5) - 0.5)
        shade = 0.7 * shade + 0.25 + 0.3 * (facets < 0.05)
        alpha = alpha * (0.82 + 0.18 * shade.clip(0, 1))
    return np.dstack([_through(shade, _MATERIAL_RAMPS[material]), alpha]).astype(np.float32)
