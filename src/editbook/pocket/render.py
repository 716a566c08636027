"""From scene to picture: background, shadows, objects from back to front, light, style."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import EditbookError
from . import backgrounds, sprites, styles

if TYPE_CHECKING:
    from .scene import Scene, Thing

# What the light of a place does to the objects in it (a factor per colour channel).
_LIGHT = {
    "night": (0.74, 0.78, 0.96),
    "sunset": (1.0, 0.88, 0.80),
    "forest": (0.92, 0.97, 0.90),
}
_JUMP = 0.34  # how high a jump lifts an object, in its own sizes
_TURN = {"standing": 0.0, "jumping": 12.0, "lying": 90.0, "upside-down": 180.0}  # degrees


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centres[None, :], centres[:, None]


def _posed_height(thing: Thing) -> float:
    """Height of the object as it stands or lies there, as a fraction of the picture."""
    width, height = sprites.shape(thing.word)
    return thing.size * (width if thing.pose == "lying" else height)


def _placed(thing: Thing, size: int) -> np.ndarray:
    """The object alone on a transparent picture: float32 (size, size, 4), straight alpha, in [0, 1]."""
    stored = sprites.dressed(thing.word, thing.size * size, thing.colour, thing.material, thing.seed, thing.accessory)
    centre_y = thing.y - _posed_height(thing) / 2 - (_JUMP * thing.size if thing.pose == "jumping" else 0)
    # Every sprite with a front looks left. PIL wants the map from the picture's pixels to the sprite's.
    mirror = -1.0 if thing.facing == "right" else 1.0
    angle = np.deg2rad(_TURN[thing.pose]) * mirror
    scale = stored.width / sprites.CANVAS / (thing.size * size)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    a, b, d, e = mirror * cos, mirror * -sin, sin, cos
    x, y, half = thing.x * size, centre_y * size, stored.width / 2
    matrix = (a, b, half - a * x - b * y, d, e, half - d * x - e * y)
    layer = stored.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(layer, np.float32) / 255


def _shadow(thing: Thing, size: int) -> np.ndarray:
    """Darkening of the ground under the object, float32 (size, size) in [0, 1)."""
    width, height = sprites.shape(thing.word)
    lifted = thing.pose == "jumping"
    half = thing.size * (height if thing.pose == "lying" else width) * (0.36 if lifted else 0.5)
    x, y = _grid(size)
    squared = ((x - thing.x) / half) ** 2 + ((y - thing.y + 0.012) / (0.19 * half + 0.012)) ** 2
    return (0.30 if lifted else 0.42) * np.exp(-1.2 * squared**2)


def _check(size: int) -> None:
    if not isinstance(size, int) or size < 16:
        raise EditbookError(f"A picture needs an integer size of at least 16 pixels, got {size!r}.")


def _layers(scene: Scene, size: int) -> tuple[list[np.ndarray], list[int]]:
    order = sorted(range(len(scene.objects)), key=lambda index: scene.objects[index].y)  # back to front
    return [_placed(thing, size) for thing in scene.objects], order


def picture(scene: Scene, size: int) -> np.ndarray:
    """The scene as uint8 (size, size, 3)."""
    _check(size)
    image = backgrounds.draw(scene.background, np.random.default_rng([scene.seed, 1]), size)
    layers, order = _layers(scene, size)
    for thing in scene.objects:
        image = image * (1 - _shadow(thing, size))[..., None]
    light = np.asarray(_LIGHT.get(scene.background, (1.0, 1.0, 1.0)), np.float32)
    for index in order:
        alpha = layers[index][..., 3:]
        image = image + alpha * (layers[index][..., :3] * light - image)
    image = styles.apply(image, scene.style, np.random.default_rng([scene.seed, 2]))
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def masks(scene: Scene, size: int) -> list[np.ndarray]:
    """The visible part of every object, float32 (size, size) in [0, 1], in the order of `scene.objects`."""
    _check(size)
    layers, order = _layers(scene, size)
    visible = [np.zeros((size, size), np.float32) for _ in layers]
    uncovered = np.ones((size, size), np.float32)
    for index in reversed(order):
        alpha = layers[index][..., 3]
        visible[index] = alpha * uncovered
        uncovered = uncovered * (1 - alpha)
    return visible
