"""EditVal's automatic protocol (Basu et al. 2023; the survey's reference 66): did the asked change happen, yes or no?

Thirteen kinds of edit. For six the authors decide by an open-vocabulary detector; the rest they leave to people. Here a
detector decides the six by their meaning (the published script reads corner boxes as centre and width, and calls a
smaller y "below"), and on the pocket world a `Reader` decides six more. "shape" has no counterpart in the world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ..errors import EditbookError, unknown
from ..perception.reader import SIDE, Reader, Reading, ReadObject
from .towers import loaded

EDITVAL_TYPES = (
    "object_addition",
    "object_replacement",
    "positional_addition",
    "position_replacement",
    "size",
    "shape",
    "color",
    "texture",
    "style",
    "background",
    "viewpoint",
    "alter_parts",
    "action",
)
SIDES = ("left", "right", "above", "below")
_MOVED = 200 / 512  # the script asks for 200 pixels of a 512-pixel picture


@dataclass(frozen=True)
class EditValEdit:
    """One edit of EditVal.

    Args:
        kind: One of `EDITVAL_TYPES`.
        word: The object that is in the picture.
        to: What was asked: the new object or part; the new colour, material, style, place, facing or pose; "bigger" or
            "smaller" for size; for position_replacement one of `SIDES`.
        side: For positional_addition, on which side of the old object the new one belongs, one of `SIDES`.
    """

    kind: str
    word: str
    to: str
    side: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in EDITVAL_TYPES:
            raise unknown("EditVal type", self.kind, EDITVAL_TYPES)
        if self.kind == "positional_addition" and self.side not in SIDES:
            raise unknown("side", str(self.side), SIDES)
        if self.kind == "position_replacement" and self.to not in SIDES:
            raise unknown("side", self.to, SIDES)
        if self.kind == "size" and self.to not in ("bigger", "smaller"):
            raise unknown("change of size", self.to, ("bigger", "smaller"))


@dataclass(frozen=True)
class Detection:
    """An object found in a picture.

    Args:
        word: What was looked for.
        box: Left, top, right, bottom as fractions of the picture, from its upper left corner.
        score: Confidence in [0, 1].
    """

    word: str
    box: tuple[float, float, float, float]
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, (x, y)."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        """Fraction of the picture that the box covers."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class Detector(Protocol):
    """Finds named objects. `name` labels every number that came from it."""

    name: str

    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Detection]:
        """All detections of these words, the most confident first."""
        ...


class ReaderDetector:
    """The pocket world's own detector: a `Reader`'s objects with the boxes of their masks."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.name = reader, "pocket reader"

    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Detection]:
        """Objects of the scene whose words were asked for."""
        (reading,) = self.reader([image])
        found = [
            Detection(thing.word, _box(thing), thing.confidence) for thing in reading.objects if thing.word in words
        ]
        return sorted(found, key=lambda detection: -detection.score)


def _box(thing: ReadObject) -> tuple[float, float, float, float]:
    rows, columns = (np.flatnonzero((thing.mask > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows):
        x, y = thing.centre
        return x, y, x, y
    return columns[0] / SIDE, rows[0] / SIDE, (columns[-1] + 1) / SIDE, (rows[-1] + 1) / SIDE


class OwlViT:
    """OWL-ViT (Minderer et al. 2022) through transformers, asked as EditVal asks it: "a photo of a X", threshold 0.1.

    Args:
        name: A hub id or a folder.
        threshold: Smallest confidence that counts.
        device: Where it computes.

    Raises:
        EditbookError: The checkpoint can be had neither from the hub nor from a folder.
    """

    def __init__(self, name: str = "google/owlvit-base-patch32", threshold: float = 0.1, device: str = "cpu") -> None:
        from transformers import OwlViTForObjectDetection, OwlViTProcessor

        self._processor, model = loaded(
            "OWL-ViT",
            name,
            lambda: (OwlViTProcessor.from_pretrained(name), OwlViTForObjectDetection.from_pretrained(name)),
        )
        self._model = model.eval().to(device)
        self.name, self.threshold = name, threshold

    @torch.no_grad()
    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Detection]:
        """All boxes above the threshold."""
        inputs = self._processor(
            text=[[f"a photo of a {word}" for word in words]],
            images=image,
            padding="max_length",
            # Said here, because a saved tokenizer may remember another length.
            max_length=self._model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        outputs = self._model(**inputs.to(self._model.device))
        # Square input: the processor resizes without padding, so boxes are fractions of the picture itself.
        probabilities, labels = outputs.logits[0].sigmoid().max(-1)
        found = []
        for probability, label, box in zip(probabilities, labels, outputs.pred_boxes[0], strict=True):
            if probability > self.threshold:
                x, y, width, height = box.tolist()
                corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                found.append(Detection(words[int(label)], corners, float(probability)))
        return sorted(found, key=lambda detection: -detection.score)


_Found = dict[str, Detection]  # the most confident detection of each word


def _on_side(one: Detection, other: Detection, side: str) -> bool:
    dx, dy = (a - b for a, b in zip(one.centre, other.centre, strict=True))
    return {"left": dx < 0, "right": dx > 0, "above": dy < 0, "below": dy > 0}[side]


def _added(edit: EditValEdit, before: _Found, after: _Found, moved: float) -> bool:
    return edit.word in after and edit.to in after


def _replaced(edit: EditValEdit, before: _Found, after: _Found, moved: float) -> bool:
    return edit.to in after and edit.word not in after


def _added_at(edit: EditValEdit, before: _Found, after: _Found, moved: float) -> bool:
    both = edit.word in after and edit.to in after
    return both and _on_side(after[edit.to], after[edit.word], str(edit.side))


def _moved(edit: EditValEdit, before: _Found, after: _Found, moved: float) -> bool:
    if edit.word not in before or edit.word not in after:
        return False
    axis = 0 if edit.to in ("left", "right") else 1
    far = abs(after[edit.word].centre[axis] - before[edit.word].centre[axis]) > moved
    return far and _on_side(after[edit.word], before[edit.word], edit.to)


def _resized(edit: EditValEdit, before: _Found, after: _Found, moved: float) -> bool:
    if edit.word not in before or edit.word not in after:
        return False
    grown = after[edit.word].area > before[edit.word].area
    return grown == (edit.to == "bigger") and after[edit.word].area != before[edit.word].area


def _has_part(edit: EditValEdit, before: _Found, after: _Found, moved: float) -> bool:
    if edit.word not in after or edit.to not in after:
        return False
    (x, y), (left, top, right, bottom) = after[edit.to].centre, after[edit.word].box
    return left <= x <= right and top <= y <= bottom


_BY_DETECTION: dict[str, Callable[[EditValEdit, _Found, _Found, float], bool]] = {
    "object_addition": _added,
    "object_replacement": _replaced,
    "positional_addition": _added_at,
    "position_replacement": _moved,
    "size": _resized,
    "alter_parts": _has_part,
}


def editval_detection(
    edit: EditValEdit,
    before: Image.Image,
    after: Image.Image,
    detector: Detector,
    *,
    moved: float = _MOVED,
) -> bool:
    """EditVal's automatic verdict on one edit, for the six types that a detector decides.

    Args:
        edit: What was asked.
        before: The picture.
        after: The edited picture.
        detector: `OwlViT`, or a `ReaderDetector` on the pocket world.
        moved: How far position_replacement must move the box's centre, as a fraction of the picture.

    Raises:
        EditbookError: A type that needs a person, or on the pocket world `editval_reading`.
    """
    if edit.kind not in _BY_DETECTION:
        raise EditbookError(
            f"EditVal decides {edit.kind!r} by people, not by a detector; on the pocket world use editval_reading."
        )
    words = list(dict.fromkeys([edit.word, *([] if edit.to in (*SIDES, "bigger", "smaller") else [edit.to])]))
    found: list[_Found] = []
    for image in (before, after):
        best: _Found = {}
        for detection in detector(image, words):
            best.setdefault(detection.word, detection)
        found.append(best)
    return _BY_DETECTION[edit.kind](edit, found[0], found[1], moved)


_BY_READING: dict[str, str] = {
    "color": "look",
    "texture": "look",
    "viewpoint": "facing",
    "alter_parts": "accessory",
    "action": "pose",
    "style": "style",
    "background": "background",
}


def editval_reading(edit: EditValEdit, after: Reading) -> bool:
    """The verdict for the types that EditVal leaves to people, from a reading of the edited picture.

    Raises:
        EditbookError: A type that a detector decides, or "shape", which the world does not have.
    """
    if edit.kind not in _BY_READING:
        other = "the pocket world has no change of shape" if edit.kind == "shape" else "use editval with a detector"
        raise EditbookError(f"A reading does not decide {edit.kind!r}: {other}.")
    name = _BY_READING[edit.kind]
    if name in ("style", "background"):
        return getattr(after, name) == edit.to
    return any(thing.word == edit.word and getattr(thing, name) == edit.to for thing in after.objects)
