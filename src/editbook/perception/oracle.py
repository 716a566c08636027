"""The exact answers, read from the description of a scene instead of from its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import EditbookError
from ..images import as_image
from ..pocket import Scene, render
from .base import LEVELS, Picture, box_of, check_boxes, check_prompts, iou, phrases_of

SHADOW = 0.08
"""Ground that an object darkens by more than this share is its shadow."""
_WORN = 0.1  # an accessory is where it changes colour or opacity by more than this, in [0, 1]


def levels(scene: Scene, size: int = 64) -> np.ndarray:
    """The parts of every object: its accessory, all of it, and all of it with its shadow.

    Args:
        scene: The scene.
        size: Side in pixels.

    Returns:
        bool (objects, 3, size, size), what can be seen of each; the first is empty for an object that wears nothing.
    """
    visible = render.masks(scene, size)
    found = np.zeros((len(visible), len(LEVELS), size, size), bool)
    for index, (thing, seen) in enumerate(zip(scene.objects, visible, strict=True)):
        whole = seen > 0.5
        if thing.accessory:
            with_it = render._placed(thing, size)
            without = render._placed(replace(thing, accessory=None), size)
            change = np.abs(with_it[..., 3:] * with_it - without[..., 3:] * without).max(-1)
            found[index, 0] = whole & (change > _WORN)
        others = sum((mask for other, mask in enumerate(visible) if other != index), np.zeros_like(seen))
        found[index, 1] = whole
        found[index, 2] = whole | ((render._shadow(thing, size) > SHADOW) & (others <= 0.5))
    return found


def named(scene: Scene, parts: np.ndarray, phrase: str) -> list[np.ndarray]:
    """The masks of what a phrase names: objects whose word, look and pose it says, or accessories.

    Args:
        scene: The scene.
        parts: Its `levels`.
        phrase: E.g. "cat", "the red car", "a crown".
    """
    said = phrase.lower().split()
    found = []
    for thing, part in zip(scene.objects, parts, strict=True):
        looks = {thing.word, thing.colour, thing.material, thing.pose, thing.facing, thing.accessory}
        about = {word for look in looks if look for word in look.lower().split()}
        ignored = {"a", "an", "the", "on", "its", "side", "facing", "wearing", "photo", "of"}
        right = set(said) - ignored <= about
        head = " ".join(said)
        if right and thing.word.lower() in head:
            found.append(part[1])
        elif right and thing.accessory and thing.accessory.lower() in head:
            found.append(part[0])
    return [mask for mask in found if mask.any()]


class SceneOracle:
    """A segmenter and grounder that never errs, for one scene: what a better model could at best give to a method.

    Args:
        scene: What the pictures that it is given show. It does not look at them.
    """

    name = "oracle (reads the scene)"

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def _levels(self, image: Picture) -> np.ndarray:
        width, height = as_image(image).size
        if width != height:
            raise EditbookError(f"Scenes are square, so the oracle's pictures are; got {width} x {height} pixels.")
        return levels(self.scene, width)

    def segment(
        self,
        image: Picture,
        points: Sequence[Sequence[float]] | np.ndarray | None = None,
        labels: Sequence[int] | np.ndarray | None = None,
        boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Segmenter.segment`. A mask's score is 1, or 0 if it is empty.

        All three masks are empty for clicks on nothing, and the first if no click is on the accessory. For a box it is
        the object or accessory whose own box is most like it.
        """
        parts = self._levels(image)
        size = parts.shape[-1]
        clicks = check_prompts((size, size), points, labels, boxes)
        if clicks is None:
            candidates = [part[level] for part in parts for level in (0, 1) if part[level].any()]
            masks = [self._in_box(candidates, box, size) for box in check_boxes((size, size), boxes)]
            return _scored(np.array(masks, bool).reshape(-1, size, size))
        at, given = clicks
        columns, rows = at.astype(int).T
        for part in parts:
            if (part[1][rows, columns] == (given == 1)).all():
                worn = part[0][rows, columns][given == 1].any()
                return _scored(part if worn else np.stack([np.zeros_like(part[0]), part[1], part[2]]))
        return _scored(np.zeros((len(LEVELS), size, size), bool))

    @staticmethod
    def _in_box(candidates: list[np.ndarray], box: np.ndarray, size: int) -> np.ndarray:
        def filled(corners: Any) -> np.ndarray:
            x0, y0, x1, y1 = np.round(corners).astype(int)
            full = np.zeros((size, size), bool)
            full[y0:y1, x0:x1] = True
            return full

        likeness = [iou(filled(box_of(mask)), filled(box)) for mask in candidates]
        return candidates[int(np.argmax(likeness))] if max(likeness, default=0) > 0 else np.zeros((size, size), bool)

    def everything(self, image: Picture) -> tuple[np.ndarray, np.ndarray]:
        """The visible part of each object; the background is none."""
        return _scored(self._levels(image)[:, 1])

    def ground(self, image: Picture, text: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """See `Grounder.ground`."""
        parts = self._levels(image)
        found = [(box_of(mask), phrase) for phrase in phrases_of(text) for mask in named(self.scene, parts, phrase)]
        boxes = np.array([box for box, _ in found], np.float32).reshape(-1, 4)
        return boxes, np.ones(len(found), np.float32), [phrase for _, phrase in found]


def _scored(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return masks, np.asarray(masks.any((1, 2)), np.float32)
