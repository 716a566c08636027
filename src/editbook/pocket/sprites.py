"""The objects of the pocket world: Microsoft's Fluent Emoji 3D, cropped, resized and dressed.

`sprites/table.csv` is the single list of words: what each object is, which poses make sense for it, which way it
looks, and where its eyes and the top of its head are (fractions of the cropped sprite), so that accessories fit.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image

from ..errors import unknown
from . import palette

_FOLDER = files("editbook.pocket") / "sprites"
_LEVELS = (
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
)  # side lengths kept, so that no sprite shrinks by more than 1.5 at once
_PATTERNS = 4  # how many grains of wood, kinds of speckle, ... each object has
CANVAS = 2.0  # a sprite's square canvas, in sprite sides: room for a tall hat


@dataclass(frozen=True)
class Sprite:
    """One row of the table. Anchors are (x, y, width) as fractions of the cropped sprite, or None."""

    word: str
    kind: str
    code_point: str
    facing: str | None
    poses: tuple[str, ...]
    eyes: tuple[float, float, float] | None
    head: tuple[float, float, float] | None


def _anchor(row: dict[str, str], name: str) -> tuple[float, float, float] | None:
    if not row[f"{name}_x"]:
        return None
    return float(row[f"{name}_x"]), float(row[f"{name}_y"]), float(row[f"{name}_width"])


def _read_table() -> dict[str, Sprite]:
    with (_FOLDER / "table.csv").open(encoding="utf-8") as file:
        return {
            row["word"]: Sprite(
                row["word"],
                row["kind"],
                row["code_point"],
                row["facing"] or None,
                ("standing", *row["poses"].split()),
                _anchor(row, "eye"),
                _anchor(row, "head"),
            )
            for row in csv.DictReader(file)
        }


TABLE = _read_table()
OBJECTS = tuple(word for word, sprite in TABLE.items() if sprite.kind != "accessory")
ACCESSORIES = tuple(word for word, sprite in TABLE.items() if sprite.kind == "accessory")
POSES = ("standing", "jumping", "lying", "upside-down")

# How an accessory hangs on its anchor: which anchor, its width relative to the anchor's, and the point of the
# accessory (fraction of its height) that lies on the anchor.
_FIT = {
    "sunglasses": ("eyes", 1.0, 0.50),
    "crown": ("head", 0.95, 0.90),
    "hat": ("head", 1.15, 0.90),
    "cap": ("head", 1.10, 0.80),
    "bow": ("head", 0.95, 0.55),
}


def sprite(word: str) -> Sprite:
    """The table's row for an object word; raises `EditbookError` with the nearest word for an unknown one."""
    if word not in OBJECTS:
        raise unknown("object", word, OBJECTS)
    return TABLE[word]


def can_wear(word: str) -> bool:
    """Whether the object has a face, and so can wear accessories."""
    return sprite(word).eyes is not None


@cache
def _original(word: str) -> Image.Image:
    with (_FOLDER / f"{TABLE[word].code_point}.webp").open("rb") as file:
        image = Image.open(file).convert("RGBA")
    return image.crop(image.getbbox())


def shape(word: str) -> tuple[float, float]:
    """Width and height of an object, the larger of the two being 1."""
    width, height = _original(sprite(word).word).size
    side = max(width, height)
    return width / side, height / side


def _resized(word: str, width: float) -> Image.Image:
    image = _original(word)
    height = max(1, round(width * image.height / image.width))
    return image.resize((max(1, round(width)), height), Image.Resampling.LANCZOS)


@lru_cache(maxsize=8192)
def _dressed(
    word: str, level: int, colour: str | None, material: str | None, pattern: int, accessory: str | None
) -> Image.Image:
    body = _resized(word, level * shape(word)[0])
    if colour or material:
        rgba = np.asarray(body, np.float32) / 255
        if material:
            rgba = palette.transmute(rgba, material, np.random.default_rng([pattern, 7]))
        else:
            rgba = palette.recolour(rgba, str(colour))
        body = Image.fromarray(np.round(rgba.clip(0, 1) * 255).astype(np.uint8), "RGBA")
    side = round(CANVAS * level)
    canvas = Image.new("RGBA", (side, side))
    left, top = (side - body.width) // 2, (side - body.height) // 2
    canvas.alpha_composite(body, (left, top))
    if accessory:
        place, scale, rest = _FIT[accessory]
        anchor = getattr(TABLE[word], place)
        item = _resized(accessory, anchor[2] * scale * body.width)
        x = left + anchor[0] * body.width - item.width / 2
        y = top + anchor[1] * body.height - rest * item.height
        canvas.alpha_composite(item, (max(0, round(x)), max(0, round(y))))
    return canvas


def dressed(
    word: str, side: float, colour: str | None, material: str | None, seed: int, accessory: str | None
) -> Image.Image:
    """An object as RGBA on a square canvas of `CANVAS` times its larger side, centred.

    Args:
        word: The object.
        side: The least number of pixels that its larger side shall have; the next stored level is used.
        colour: One of `palette.COLOURS`, or None.
        material: One of `palette.MATERIALS`, or None.
        seed: Picks one of a few variants of a material's pattern.
        accessory: One of `ACCESSORIES`, or None.
    """
    level = next((level for level in _LEVELS if level >= side), _LEVELS[-1])
    return _dressed(word, level, colour, material, seed % _PATTERNS if material else 0, accessory)
