"""Edits are pure functions from scene to scene: what changes is named, all else stays, down to the last cloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import EditbookError, unknown
from . import grammar
from .scene import Scene, Thing
from .sprites import sprite


def _with(scene: Scene, index: int, **changes: object) -> Scene:
    if not 0 <= index < len(scene.objects):
        raise EditbookError(f"The scene has {len(scene.objects)} objects; there is no object {index}.")
    objects = list(scene.objects)
    objects[index] = replace(objects[index], **changes)  # type: ignore[arg-type]
    return replace(scene, objects=tuple(objects))


def replace_object(scene: Scene, index: int, word: str) -> Scene:
    """Another object at the same place, in the same pose, colour and dress (an error if it cannot have them)."""
    facing = scene.objects[index].facing if index < len(scene.objects) else None
    return _with(scene, index, word=word, facing=facing if sprite(word).facing else None)


def _from_left_to_right(scene: Scene, objects: Sequence[Thing]) -> Scene:
    return replace(scene, objects=tuple(sorted(objects, key=lambda thing: thing.x)))


def add_object(scene: Scene, thing: Thing) -> Scene:
    """One object more; objects stay ordered from left to right."""
    return _from_left_to_right(scene, [*scene.objects, thing])


def remove_object(scene: Scene, index: int) -> Scene:
    """The scene without one of its objects, and without its shadow."""
    if not 0 <= index < len(scene.objects):
        raise EditbookError(f"The scene has {len(scene.objects)} objects; there is no object {index}.")
    return replace(scene, objects=scene.objects[:index] + scene.objects[index + 1 :])


def set_colour(scene: Scene, index: int, colour: str | None) -> Scene:
    """Repaint one object."""
    return _with(scene, index, colour=colour, material=None)


def set_material(scene: Scene, index: int, material: str | None) -> Scene:
    """Make one object of another material."""
    return _with(scene, index, material=material, colour=None)


def set_pose(scene: Scene, index: int, pose: str) -> Scene:
    """Let one object stand, jump, lie on its side or stand on its head."""
    return _with(scene, index, pose=pose)


def set_accessory(scene: Scene, index: int, accessory: str | None) -> Scene:
    """Dress one object, or undress it with None."""
    return _with(scene, index, accessory=accessory)


def move_object(scene: Scene, index: int, dx: float, dy: float = 0.0) -> Scene:
    """Shift one object by fractions of the picture, past another one perhaps: the truth of a drag."""
    thing = _with(scene, index).objects[index]
    return _from_left_to_right(scene, _with(scene, index, x=thing.x + dx, y=thing.y + dy).objects)


def set_background(scene: Scene, background: str) -> Scene:
    """The same objects somewhere else."""
    return replace(scene, background=background)


def set_style(scene: Scene, style: str) -> Scene:
    """The same scene, photographed or painted."""
    return replace(scene, style=style)


_SHIFT = {"left": -0.2, "right": 0.2}


@dataclass(frozen=True)
class Change:
    """An edit as data: it can be applied, said as an instruction, and masked.

    Args:
        kind: One of `grammar.EDIT_TYPES`, which are PIE-Bench's types 1-9 and "drag".
        value: The new word, colour, material, pose, accessory, background or style; for "add object" the `Thing`;
            for "drag" "left" or "right"; None for "remove object", and to take an accessory off.
        index: Which object.
    """

    kind: str
    value: str | Thing | None = None
    index: int = 0

    def apply(self, scene: Scene) -> Scene:
        """The scene after the change."""
        if self.kind == "add object":
            if not isinstance(self.value, Thing):
                raise EditbookError("To add an object, give the Thing to add.")
            return add_object(scene, self.value)
        if self.kind == "remove object":
            return remove_object(scene, self.index)
        if self.kind == "change content":
            return set_accessory(scene, self.index, None if self.value is None else str(self.value))
        value = str(self.value)
        whole: dict[str, Callable[[Scene, str], Scene]] = {
            "change background": set_background,
            "change style": set_style,
        }
        one: dict[str, Callable[[Scene, int, str], Scene]] = {
            "change object": replace_object,
            "change pose": set_pose,
            "change colour": set_colour,
            "change material": set_material,
            "drag": lambda scene, index, side: move_object(scene, index, _SHIFT[side]),
        }
        if self.kind in whole:
            return whole[self.kind](scene, value)
        if self.kind in one:
            return one[self.kind](scene, self.index, value)
        raise unknown("edit type", self.kind, grammar.EDIT_TYPES)

    def instruction(self, scene: Scene, phrasing: int = 0) -> str:
        """What a person would ask for, e.g. "turn the cat into a fox"."""
        about_object = self.kind not in ("change background", "change style", "add object")
        word = scene.objects[self.index].word if about_object else ""
        value = self.value
        if self.kind == "change content" and value is None:
            worn = scene.objects[self.index].accessory
            if worn is None:
                raise EditbookError(f"The {word} wears nothing that could be taken off.")
            return grammar.instruction("remove object", worn, "", phrasing)
        if isinstance(value, Thing):
            phrase = grammar.noun_phrase(value)
            value = phrase.split(" ", 1)[1]
        return grammar.instruction(self.kind, word, value or "", phrasing)

    def mask(self, scene: Scene, size: int = 64) -> np.ndarray:
        """Where the edit acts: float32 (size, size) in [0, 1].

        The objects that change, before and after, with their shadows; the background without the objects; or
        everything, for a style. Where the mask is 0, the truth equals the source up to one grey level; but on a new
        background another light falls on the objects.
        """
        after = self.apply(scene)
        if self.kind == "change style":
            return np.ones((size, size), np.float32)
        nothing = np.zeros((size, size), np.float32)
        if self.kind == "change background":
            return 1 - np.max([nothing, *scene.masks(size)], axis=0)
        changed = [
            mask
            for one, other in ((scene, after), (after, scene))
            for thing, mask in zip(one.objects, one.masks(size), strict=True)
            if thing not in other.objects
        ]
        difference = np.abs(after.array(size).astype(np.int16) - scene.array(size)).max(axis=2)
        return np.max([nothing, *changed, (difference > 1).astype(np.float32)], axis=0)
