"""Drawing scenes and edits at random, always the same from the same seed, never from the part kept for tests."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ..errors import EditbookError
from . import backgrounds, grammar, palette, sprites, styles
from .edits import Change
from .scene import Scene, Thing

BACKGROUNDS = tuple(backgrounds.GROUND)
_HELD_OUT_ONE_IN = 8
_SHIFTABLE = ("left", "right")
_Option = TypeVar("_Option", str, "str | None")


def is_held_out(scene: Scene) -> bool:
    """Whether a combination of word, colour or material, and background in the scene is kept for tests.

    One combination in eight is, chosen by a checksum of its words, so that nothing trained here has seen it.
    """
    return any(
        zlib.crc32(f"{thing.word}|{thing.colour or thing.material}|{scene.background}".encode()) % _HELD_OUT_ONE_IN == 0
        for thing in scene.objects
    )


def _pick(rng: np.random.Generator, options: Sequence[_Option]) -> _Option:
    return options[int(rng.integers(len(options)))]


def random_thing(
    rng: np.random.Generator, background: str, *, x: float | None = None, size: tuple[float, float] = (0.48, 0.62)
) -> Thing:
    """An object that stands on the ground of the background, with colour, pose and dress drawn at random."""
    row = sprites.sprite(_pick(rng, sprites.OBJECTS))
    look = rng.random()
    colour = _pick(rng, palette.COLOURS) if look < 0.35 else None
    material = _pick(rng, palette.MATERIALS) if 0.35 <= look < 0.55 else None
    pose = _pick(rng, row.poses[1:]) if rng.random() < 0.22 and len(row.poses) > 1 else "standing"
    facing = _pick(rng, ("left", "right")) if row.facing and rng.random() < 0.5 else None
    accessory = _pick(rng, sprites.ACCESSORIES) if row.eyes and rng.random() < 0.35 else None
    scale = float(rng.uniform(*size))
    ground = max(0.80, backgrounds.GROUND[background] + 0.10)
    return Thing(
        row.word,
        colour,
        material,
        pose,
        facing,
        accessory,
        x=round(float(rng.uniform(0.40, 0.60)), 3) if x is None else x,
        y=round(float(rng.uniform(ground, max(ground, 0.92))), 3),
        size=round(scale, 3),
        seed=int(rng.integers(1 << 16)),
    )


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with one object (usually), two, or none; a photo (usually) or in another style."""
    background = _pick(rng, BACKGROUNDS)
    style = "photo" if rng.random() < 0.76 else _pick(rng, styles.STYLES[1:])
    kind = rng.random()
    objects: tuple[Thing, ...]
    if kind < 0.03:
        objects = ()
    elif kind < 0.80:
        objects = (random_thing(rng, background),)
    else:
        at = [round(float(rng.uniform(low, low + 0.06)), 3) for low in (0.23, 0.71)]
        objects = tuple(random_thing(rng, background, x=x, size=(0.36, 0.44)) for x in at)
    return Scene(background, objects, style, seed=int(rng.integers(1 << 31)))


def _until(seed: int, stream: int, held_out: bool) -> Scene:
    rng = np.random.default_rng([seed, stream])
    while is_held_out(scene := random_scene(rng)) != held_out:
        pass
    return scene


def sample(seed: int) -> Scene:
    """A training scene. The same seed gives the same scene on every machine."""
    return _until(seed, 11, held_out=False)


def sample_held_out(seed: int) -> Scene:
    """A scene with a combination of word, colour or material and background that no training scene has."""
    return _until(seed, 12, held_out=True)


def random_change(rng: np.random.Generator, scene: Scene) -> Change:
    """An edit that changes the scene and that its objects can take."""
    whole = ["change background", "change style"]
    kinds = whole if not scene.objects else [kind for kind in grammar.EDIT_TYPES if kind != "add object"]
    while True:
        kind = _pick(rng, [*kinds, "add object"])
        index = int(rng.integers(len(scene.objects))) if scene.objects else 0
        options: dict[str, Sequence[str | None]] = {
            "change object": sprites.OBJECTS,
            "change content": (*sprites.ACCESSORIES, None),
            "change pose": sprites.POSES,
            "change colour": palette.COLOURS,
            "change material": palette.MATERIALS,
            "change background": BACKGROUNDS,
            "change style": styles.STYLES,
            "drag": _SHIFTABLE,
        }
        change = Change(kind, _pick(rng, options[kind]) if kind in options else None, index)
        if kind == "add object":
            side = 0.25 if scene.objects and scene.objects[0].x > 0.5 else 0.75
            change = Change(kind, random_thing(rng, scene.background, x=side, size=(0.34, 0.42)))
        try:
            if change.apply(scene) != scene:
                return change
        except EditbookError:  # this object cannot take this edit: draw another
            continue


def sample_edit(seed: int, phrasings: int = 3) -> tuple[Scene, Scene, str]:
    """A training example of an edit: (scene before, scene after, instruction), neither scene held out.

    Args:
        seed: The same seed gives the same example.
        phrasings: Draw from the first so many phrasings of the instruction only, 1 to 3.
    """
    rng = np.random.default_rng([seed, 13])
    while True:
        scene = random_scene(rng)
        change = random_change(rng, scene)
        if not is_held_out(scene) and not is_held_out(after := change.apply(scene)):
            return scene, after, change.instruction(scene, int(rng.integers(phrasings)))


def corpus(n: int, seed: int = 0) -> list[str]:
    """Sentences for the tokenizer: captions in all phrasings, instructions, quality phrases, single words.

    Unlike training scenes these are *not* filtered by `is_held_out`: the tokenizer, and nothing else of the shipped
    model, has met captions of held-out combinations. It learns from them how often pairs of letters stand together,
    and nothing about pictures.
    """
    rng = np.random.default_rng([seed, 14])
    words = (*sprites.OBJECTS, *sprites.ACCESSORIES, *sprites.POSES, *palette.COLOURS, *palette.MATERIALS)
    lines = [*words, *styles.STYLES, *BACKGROUNDS, *grammar.QUALITIES, *grammar.RATINGS]
    for number in range(n):
        scene = random_scene(rng)
        if number % 3 == 0:
            lines.append(random_change(rng, scene).instruction(scene, int(rng.integers(3))))
        else:
            lines.append(scene.caption(int(rng.integers(grammar.PHRASINGS))))
    return lines
