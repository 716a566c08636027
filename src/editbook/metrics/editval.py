"""EditVal's automatic protocol (Basu et al. 2023; the survey's reference 66): did the asked change happen, yes or no?

Thirteen kinds of edit. For six the authors decide by an open-vocabulary detector; the rest they leave to people. Here a
detector decides the six by their meaning (the published script reads corner boxes as centre and width, and calls a
smaller y "below"), and on the pocket world a `Reader` decides six more. "shape" has no counterpart in the world.
What a method preserves is a likeness of source and edited picture, and an FID of the two sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ..data.editval import EDITVAL_TYPES, EditValEdit, EditValTask
from ..data.editval_world import editval_edit
from ..errors import EditbookError, unknown
from ..files import save_json
from ..perception.reader import FACINGS, SIDE, Reader, Reading, ReadObject
from ..pocket import ACCESSORIES, BACKGROUNDS, COLOURS, MATERIALS, OBJECTS, POSES, STYLES, EditTask, Thing
from .frechet import Fid, fid
from .towers import ImageTower, loaded

_MOVED = 200 / 512  # the script asks for 200 pixels of a 512-pixel picture
_READER = "pocket reader"


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
    """The pocket world's own detector: a `Reader`'s objects with the boxes of their masks.

    An accessory is found where the object is that wears it, as a reading does not outline it.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader, self.name = reader, _READER

    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Detection]:
        """Objects and accessories of the scene whose words were asked for.

        Raises:
            EditbookError: A word that the pocket world does not have.
        """
        for word in words:
            if word not in (*OBJECTS, *ACCESSORIES):
                raise unknown("object or accessory", word, (*OBJECTS, *ACCESSORIES))
        (reading,) = self.reader([image])
        found = [
            Detection(word, _box(thing), thing.confidence)
            for thing in reading.objects
            for word in (thing.word, thing.accessory)
            if word is not None and word in words
        ]
        return sorted(found, key=lambda detection: -detection.score)


def _box(thing: ReadObject) -> tuple[float, float, float, float]:
    rows, columns = (np.flatnonzero((thing.mask > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows):
        x, y = thing.centre
        return x, y, x, y
    left, top, right, bottom = (float(edge) / SIDE for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return left, top, right, bottom


class OwlViT:
    """OWL-ViT (Minderer et al. 2022) through transformers, asked as EditVal asks it: "a photo of a X", threshold 0.1.

    Args:
        model: A transformers `OwlViTForObjectDetection`.
        processor: Its `OwlViTProcessor`.
        name: Label of every verdict that comes from it.
        threshold: Smallest confidence that counts.
    """

    def __init__(self, model: Any, processor: Any, name: str, threshold: float = 0.1) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor, self.name, self.threshold = processor, name, threshold

    @classmethod
    def load(
        cls, name: str | Path = "google/owlvit-base-patch32", threshold: float = 0.1, device: str = "cpu"
    ) -> OwlViT:
        """OWL-ViT from the hub or a folder; the default is EditVal's.

        Raises:
            EditbookError: It can be had from neither.
        """
        from transformers import OwlViTForObjectDetection, OwlViTProcessor

        model, processor = loaded(
            "OWL-ViT",
            name,
            lambda: (OwlViTForObjectDetection.from_pretrained(name), OwlViTProcessor.from_pretrained(name)),
        )
        return cls(model.to(device), processor, f"OWL-ViT {name}", threshold)

    @torch.no_grad()
    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Detection]:
        """All boxes above the threshold."""
        inputs = self.processor(
            text=[[f"a photo of a {word}" for word in words]],
            images=image,
            padding="max_length",
            # Said here, because a saved tokenizer may remember another length.
            max_length=self.model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        outputs = self.model(**inputs.to(self.model.device))
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
    if edit.to == "center":  # where the script finds no edit successful
        return _in_the_middle(after[edit.word]) and not _in_the_middle(before[edit.word])
    axis = 0 if edit.to in ("left", "right") else 1
    far = abs(after[edit.word].centre[axis] - before[edit.word].centre[axis]) > moved
    return far and _on_side(after[edit.word], before[edit.word], edit.to)


def _in_the_middle(detection: Detection) -> bool:
    return 1 / 3 < detection.centre[0] < 2 / 3


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
        EditbookError: A type that EditVal leaves to people.
    """
    if edit.kind not in _BY_DETECTION:
        raise EditbookError(
            f"EditVal decides {edit.kind!r} by people, not by a detector; on the pocket world use editval_reading."
        )
    named = edit.kind not in ("position_replacement", "size")  # whether `to` is something to look for
    words = list(dict.fromkeys([edit.word, edit.to] if named else [edit.word]))
    found: list[_Found] = []
    for image in (before, after):
        best: _Found = {}
        for detection in detector(image, words):
            best.setdefault(detection.word, detection)
        found.append(best)
    return _BY_DETECTION[edit.kind](edit, found[0], found[1], moved)


_BY_READING: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "color": ("look", "colour", COLOURS),
    "texture": ("look", "material", MATERIALS),
    "viewpoint": ("facing", "facing", FACINGS),
    "alter_parts": ("accessory", "accessory", ACCESSORIES),
    "action": ("pose", "pose", POSES),
    "style": ("style", "", STYLES),
    "background": ("background", "", BACKGROUNDS),
}
"""What of a reading decides, which field of a `Thing` that is (none: it is the whole picture's), what it can be."""


def editval_reading(edit: EditValEdit, after: Reading) -> bool:
    """The verdict from a reading of the edited picture: for six types that EditVal leaves to people, and alter_parts.

    Args:
        edit: What was asked, in the words of the pocket world.
        after: The edited picture, as read.

    Raises:
        EditbookError: A type that a detector decides; "shape", which the world does not have; or the world does not
            have the word, the value, or such an object with it (an apple has no front).
    """
    if edit.kind not in _BY_READING:
        other = "the pocket world has no change of shape" if edit.kind == "shape" else "use editval_detection"
        raise EditbookError(f"A reading does not decide {edit.kind!r}: {other}.")
    name, field, known = _BY_READING[edit.kind]
    if edit.to not in known:
        raise unknown(edit.kind, edit.to, known)
    if not field:
        return getattr(after, name) == edit.to
    asked: dict[str, Any] = {field: edit.to}
    Thing(edit.word, **asked)  # refuses what the world does not have
    return any(thing.word == edit.word and getattr(thing, name) == edit.to for thing in after.objects)


@dataclass(frozen=True)
class Verdict:
    """The answer to EditVal's question.

    Args:
        success: Whether the asked change happened.
        decided_by: Name of the network that says so.
    """

    success: bool
    decided_by: str


def editval(
    edit: EditValEdit,
    before: Image.Image,
    after: Image.Image,
    *,
    reader: Reader | None = None,
    detector: Detector | None = None,
    moved: float = _MOVED,
) -> Verdict:
    """Whether one edit did what was asked: by a detector where EditVal has one, else, on the pocket world, by a reader.

    Args:
        edit: What was asked.
        before: The picture.
        after: The edited picture.
        reader: `load_reader()` on the pocket world; None leaves seven types to people, as EditVal does.
        detector: `OwlViT.load()`; None takes the reader's own objects.
        moved: How far position_replacement must move the box's centre, as a fraction of the picture.

    Raises:
        EditbookError: Nobody who could decide was given; "shape" on the pocket world; or the world does not have what
            the edit names.
    """
    if edit.kind in _BY_DETECTION:
        if detector is None:
            if reader is None:
                raise EditbookError(
                    f"Nobody decides {edit.kind!r}: give detector=OwlViT.load(), or on the pocket world a reader."
                )
            detector = ReaderDetector(reader)
        return Verdict(editval_detection(edit, before, after, detector, moved=moved), detector.name)
    if reader is None:
        raise EditbookError(f"EditVal leaves {edit.kind!r} to people; on the pocket world give reader=load_reader().")
    return Verdict(editval_reading(edit, reader([after])[0]), _READER)


@dataclass(frozen=True)
class EditValRow:
    """One type's numbers.

    Args:
        kind: The type, or "all".
        edits: How many edits.
        decided: How many of them somebody decided; the rest is left to people.
        successes: In how many of these the asked change happened.
        similarity: Mean cosine of the features of source and edited picture, in [-1, 1].
        decided_by: Who decided.
    """

    kind: str
    edits: int
    decided: int
    successes: int
    similarity: float
    decided_by: tuple[str, ...]

    @property
    def success(self) -> float:
        """Share of the decided edits that are successful; NaN if none was decided."""
        return self.successes / self.decided if self.decided else math.nan


@dataclass(frozen=True)
class EditValReport:
    """EditVal's two questions of one method: whether it does what is asked, and what it preserves.

    Args:
        rows: One for each type that was asked, in EditVal's order, and the last over all edits.
        similarity_tower: What the similarity comes from; EditVal's is a `Dino` of "facebook/dino-vitb16".
        fid: Of all edited pictures to all sources; EditVal's is `Inception`'s, and taken for each type.
    """

    rows: tuple[EditValRow, ...]
    similarity_tower: str
    fid: Fid

    def table(self) -> str:
        """The rows as a Markdown table, and the FID below it."""
        lines = [f"| type | edits | success | decided by | similarity ({self.similarity_tower}) |"]
        lines.append("| --- | ---: | ---: | --- | ---: |")
        for row in self.rows:
            success = f"{row.success:.0%}" if row.decided else "–"
            by = ", ".join((*row.decided_by, *(["people"] if row.decided < row.edits else [])))
            lines.append(f"| {row.kind} | {row.edits} | {success} | {by} | {row.similarity:.3f} |")
        bias = "" if self.fid.full_rank else ", too few pictures for more than a comparison"
        return "\n".join([*lines, "", f"FID to the sources ({self.fid.tower}{bias}): {self.fid.value:.3g}"])

    def save(self, path: str | Path) -> Path:
        """Write all numbers as JSON.

        Raises:
            EditbookError: It cannot be written there.
        """
        return save_json(asdict(self), path)


def editval_report(
    tasks: Iterable[EditTask],
    edited: Sequence[Image.Image],
    tower: ImageTower,
    *,
    reader: Reader | None = None,
    detector: Detector | None = None,
    fid_tower: ImageTower | None = None,
    moved: float = _MOVED,
) -> EditValReport:
    """EditVal's protocol over one method's edits.

    Args:
        tasks: From `data.editval_tasks` or `data.editval`, or what `data.editval_edit` can read.
        edited: The method's answer to each of them, at least two.
        tower: For the similarity of source and edited picture: `pocket_clip()`, or EditVal's `Dino`.
        reader: As in `editval`; None leaves seven types to people.
        detector: As in `editval`.
        fid_tower: For the FID, `Inception` for EditVal's; None takes `tower`.
        moved: As in `editval`.

    Raises:
        EditbookError: The numbers of tasks and pictures differ, there are fewer than two, or `editval` raises.
    """
    tasks = list(tasks)
    if len(tasks) != len(edited):
        raise EditbookError(f"edited holds {len(edited)} pictures for {len(tasks)} tasks: give one for each task.")
    edits = [task.edit if isinstance(task, EditValTask) else editval_edit(task) for task in tasks]
    sources = [task.source_image for task in tasks]
    distance = fid(edited, sources, fid_tower or tower)
    verdicts = [
        editval(edit, source, picture, reader=reader, detector=detector, moved=moved)
        if edit.kind in _BY_DETECTION or (reader is not None and edit.kind in _BY_READING)
        else None
        for edit, source, picture in zip(edits, sources, edited, strict=True)
    ]
    likeness = functional.cosine_similarity(tower.images(sources), tower.images(edited)).tolist()
    asked = [kind for kind in EDITVAL_TYPES if any(edit.kind == kind for edit in edits)]
    rows = []
    for kind in (*asked, "all"):
        chosen = [k for k, edit in enumerate(edits) if kind in (edit.kind, "all")]
        decided = [verdict for k in chosen if (verdict := verdicts[k]) is not None]
        rows.append(
            EditValRow(
                kind,
                len(chosen),
                len(decided),
                sum(verdict.success for verdict in decided),
                fmean(likeness[k] for k in chosen),
                tuple(sorted({verdict.decided_by for verdict in decided})),
            )
        )
    return EditValReport(tuple(rows), tower.name, distance)
