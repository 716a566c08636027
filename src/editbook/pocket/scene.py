"""A scene: the full description of a picture, from which the picture, its masks and its captions follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import EditbookError, unknown
from . import backgrounds, grammar, palette, render, sprites, styles

MAX_OBJECTS = 2
"""More than a caption of this world, or a small text encoder, keeps apart."""


def _check(kind: str, name: str | None, known: tuple[str, ...]) -> None:
    if name is not None and name not in known:
        raise unknown(kind, name, known)


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Args:
        word: One of `pocket.OBJECTS`.
        colour: One of `pocket.COLOURS`; None keeps the object's own colours. Not together with `material`.
        material: One of `pocket.MATERIALS`, or None.
        pose: One of `pocket.POSES` that the object can take.
        facing: "left" or "right" for objects that have a front; None is left, unsaid in the caption.
        accessory: One of `pocket.ACCESSORIES`, for objects with a face.
        x: Centre, fraction of the picture's width.
        y: Where the object touches the ground, fraction of the picture's height from the top.
        size: The larger side of the object, fraction of the picture's side.
        seed: Varies the pattern of its material.
    """

    word: str
    colour: str | None = None
    material: str | None = None
    pose: str = "standing"
    facing: str | None = None
    accessory: str | None = None
    x: float = 0.5
    y: float = 0.86
    size: float = 0.55
    seed: int = 0

    def __post_init__(self) -> None:
        row = sprites.sprite(self.word)
        _check("colour", self.colour, palette.COLOURS)
        _check("material", self.material, palette.MATERIALS)
        _check("pose", self.pose, sprites.POSES)
        _check("accessory", self.accessory, sprites.ACCESSORIES)
        if self.colour and self.material:
            raise EditbookError(f"A {self.word} is either {self.colour} or {self.material}: give one of the two.")
        if self.pose not in row.poses:
            raise EditbookError(f"A {self.word} cannot be {self.pose}; it can be {', '.join(row.poses)}.")
        if self.facing not in (None, "left", "right") or (self.facing and row.facing is None):
            raise EditbookError(f"A {self.word} cannot face {self.facing!r}.")
        if self.accessory and row.eyes is None:
            raise EditbookError(f"A {self.word} has no face to wear a {self.accessory}.")
        if not (0 < self.size <= 1 and np.isfinite([self.x, self.y]).all()):
            raise EditbookError(
                f"size must lie in (0, 1] and x, y must be finite, got {self.size}, {self.x}, {self.y}."
            )


@dataclass(frozen=True)
class Scene:
    """A background, up to `MAX_OBJECTS` objects from left to right, and a style for the whole picture.

    `seed` varies the background and the strokes of the style; two scenes that differ in one field differ only there.
    """

    background: str
    objects: tuple[Thing, ...] = ()
    style: str = "photo"
    seed: int = 0

    def __post_init__(self) -> None:
        _check("background", self.background, tuple(backgrounds.GROUND))
        _check("style", self.style, styles.STYLES)
        if len(self.objects) > MAX_OBJECTS:
            raise EditbookError(f"A scene holds at most {MAX_OBJECTS} objects, got {len(self.objects)}.")

    def array(self, size: int = 64) -> np.ndarray:
        """The picture as uint8, (size, size, 3)."""
        return render.picture(self, size)

    def image(self, size: int = 64) -> Image.Image:
        """The picture as an RGB image."""
        return Image.fromarray(self.array(size))

    def masks(self, size: int = 64) -> list[np.ndarray]:
        """The visible part of each object, in the order of `objects`: float32 (size, size) in [0, 1]."""
        return render.masks(self, size)

    def caption(self, phrasing: int = 0) -> str:
        """An English caption; `phrasing` is one of `grammar.PHRASINGS` ways to say it, 0 the canonical one."""
        return grammar.caption(self, phrasing)
