"""From a phrase to a mask: a grounded detector finds boxes, and a segmenter the outlines in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from .. import perception
from ..errors import EditbookError
from ..model import Model
from .find import MaskSource, Subject


@dataclass(frozen=True)
class Grounded:
    """What a phrase names in a picture, the best first.

    Args:
        boxes: (k, 4): x0, y0, x1, y1 in pixels; k is 0 if nothing was found.
        scores: Of the boxes, (k,) in [0, 1].
        masks: Of what is in the boxes, bool (k, height, width).
    """

    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray


def outside_model(kind: str, given: Any) -> Any:
    """The model that an option stands for: an object as it is, a name through `perception`'s loader of that kind.

    Args:
        kind: "segmenter", "grounder", ...
        given: The option; None is "pocket", the stand-in that ships with the package.
    """
    if given is not None and not isinstance(given, str | Path):
        return given
    load = getattr(perception, f"load_{kind}", None)
    if load is None:
        raise EditbookError(f"A {kind} is needed: give an object as {kind}=, got {given!r}.")
    return load("pocket" if given is None else given)


def ground_and_segment(image: Image.Image, phrase: str, grounder: Any = None, segmenter: Any = None) -> Grounded:
    """Find what a phrase names, and outline it.

    Args:
        image: The picture.
        phrase: What to look for, e.g. "cat".
        grounder: A name for `perception.load_grounder` (None is "pocket"), or an object with `ground(image, text)`,
            which returns boxes (k, 4), scores (k,) and k phrases.
        segmenter: A name for `perception.load_segmenter`, or an object with `segment(image, boxes=)`, which returns
            masks (k, height, width) and k scores.
    """
    boxes, scores, _ = outside_model("grounder", grounder).ground(image, phrase)
    boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores, np.float64)
    if not len(boxes):
        return Grounded(boxes, scores, np.zeros((0, image.height, image.width), bool))
    order = np.argsort(-scores, kind="stable")
    masks, _ = outside_model("segmenter", segmenter).segment(image, boxes=boxes[order])
    return Grounded(boxes[order], scores[order], np.asarray(masks, bool))


@dataclass
class SegmentMask(MaskSource):
    """What a phrase names, by a grounded detector and a segmenter (Grounded-SAM; see InstructEdit).

    A detector that was trained to find what it is told to tends to find *something*: look at the mask.

    Args:
        threshold: Of the detector's score; it may have one of its own.
        grounder: See `ground_and_segment`.
        segmenter: The same.
    """

    name: ClassVar[str] = "segment"
    argument: ClassVar[str | None] = "a phrase that says what to look for"
    threshold: float = 0.0
    grounder: Any = None
    segmenter: Any = None

    def __call__(self, model: Model, subject: Subject, argument: str) -> np.ndarray:
        """The score of the best mask over each pixel; all 0 if nothing was found."""
        found = ground_and_segment(subject.image, argument, self.grounder, self.segmenter)
        nothing = np.zeros((1, subject.image.height, subject.image.width))
        heat: np.ndarray = np.concatenate([nothing, found.scores[:, None, None] * found.masks]).max(0)
        return heat.astype(np.float32)
