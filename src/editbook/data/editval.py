"""EditVal's layout (Basu et al. 2023; github.com/deep-ml-research/editval_code), and what one of its edits is.

    object.json                                   {class: {COCO image id: {type: {"from": [...], "to": [...]}}}}
    train2017/000000100166.jpg                    the pictures, from COCO's own download; EditVal ships none
    edited/<type>/<image id>/<to>.png             where its script expects edited pictures

The published file has 19 classes (such as "stop_sign"), 91 pictures and 646 edits, one for each entry of "to". "from"
is what is there before, or [""], and not needed. What stands in "to" depends on the type: "wine glass to left" and "bag
on top" for positional_addition, "add tie" for alter_parts, "small" and "large" for size, "left", "right" and "center"
for position_replacement, and else the new thing itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EditbookError, unknown
from ..pocket import Benchmark, BenchTask, changed_words
from ..pocket.benchmark import Entry
from .record import UNSPECIFIED, Record, read_json

ASKED = "object.json"
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
"""EditVal's thirteen types of edit."""
SIDES = ("left", "right", "above", "below")
"""Where a new object can belong, as seen from the old one, and where an object can be moved to."""
SIZES = ("bigger", "smaller")
"""What a change of size can ask for."""


@dataclass(frozen=True)
class EditValEdit:
    """One edit of EditVal.

    Args:
        kind: One of `EDITVAL_TYPES`.
        word: The object that is in the picture.
        to: What was asked: the new object or part; the new colour, material, style, place, facing or pose; one of
            `SIZES` for size; for position_replacement one of `SIDES`, or "center".
        side: For positional_addition, on which side of the old object the new one belongs, one of `SIDES`.

    Raises:
        EditbookError: No such type, side or size, or no word.
    """

    kind: str
    word: str
    to: str
    side: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in EDITVAL_TYPES:
            raise unknown("EditVal type", self.kind, EDITVAL_TYPES)
        if not self.word:
            raise EditbookError("word must name an object of the picture: every edit of EditVal is about one.")
        if self.kind == "positional_addition" and self.side not in SIDES:
            raise unknown("side", str(self.side), SIDES)
        if self.kind == "position_replacement" and self.to not in (*SIDES, "center"):
            raise unknown("side", self.to, (*SIDES, "center"))
        if self.kind == "size" and self.to not in SIZES:
            raise unknown("change of size", self.to, SIZES)


@dataclass(frozen=True, kw_only=True)
class EditValTask(BenchTask):
    """A task with the question that EditVal asks of its result.

    `id` is "<type>/<picture>/<to>", and `image_path` that with ".png": where EditVal's script expects the edited
    picture in its folder "edited".

    Args:
        edit: The question.
    """

    edit: EditValEdit


def editval(folder: str | Path, pictures: str = "train2017") -> Benchmark:
    """The edits of an EditVal folder, as `EditValTask`.

    Prompts are those of the authors' own loader; their instructions cover five of the types, so here `instruction` is
    "". `truth` is None, and the mask is 1 everywhere. Entries and paths are checked now, pictures when a task is asked
    for.

    Args:
        folder: Holds object.json and the folder of pictures.
        pictures: Name of the folder of COCO's pictures, which are called by their id in twelve digits.

    Raises:
        EditbookError: A file is missing or damaged, or an entry lacks something or cannot be read; it names both.
    """
    root = Path(folder)
    entries: list[Entry] = []
    for record, kind, word, image in _records(root / ASKED):
        path = record.path(root / pictures, f"{image:0>12}.jpg")
        for to in record.get("to", list):
            with record.named():
                edit = _parse(kind, word, to)
            id = f"{kind}/{image}/{to}"
            entries.append(Entry(id, None, partial(_read, record, id, to, edit, path)))
    return Benchmark(f"EditVal in {root}", entries)


def _records(file: Path) -> Iterator[tuple[Record, str, str, str]]:
    """What is asked of a picture in one type, with type, object, and the picture's id."""
    whole = Record(file, "the whole file", read_json(file, dict))
    for name in whole.values:
        of_class = Record(file, name, whole.get(name, dict))
        for image in of_class.values:
            of_image = Record(file, f"{name}/{image}", of_class.get(image, dict))
            for kind in of_image.values:
                record = Record(file, f"{of_image.name}/{kind}", of_image.get(kind, dict))
                yield record, kind, name.replace("_", " "), image


_ENDINGS = {" below": "below", " on top": "above", " to left": "left", " to right": "right"}
_PUBLISHED_SIZES = {"small": "smaller", "large": "bigger"}


def _parse(kind: str, word: str, to: Any) -> EditValEdit:
    """The edit that an entry of "to" stands for."""
    if not isinstance(to, str):
        raise EditbookError(f'"to" should hold texts, not {to!r}.')
    if kind == "positional_addition":
        ending = next((ending for ending in _ENDINGS if to.endswith(ending)), None)
        if ending is None:
            raise EditbookError(f"{to!r} says no side; it should end in one of: {', '.join(_ENDINGS)}.")
        return EditValEdit(kind, word, to.removesuffix(ending), _ENDINGS[ending])
    if kind == "size":
        return EditValEdit(kind, word, _PUBLISHED_SIZES.get(to, to))
    return EditValEdit(kind, word, to.removeprefix("add ") if kind == "alter_parts" else to)


_PROMPTS = {
    "object_addition": "A photo of a {word} and a {to}",
    "object_replacement": "A photo of a {to}",
    "positional_addition": "A photo of a {asked} of a {word}",
    "position_replacement": "A photo of a {word} on the {to} of the picture",
    "style": "An art painting of a {word} in {to} style",
    "background": "A photo of a {word} in {to}",
    "viewpoint": "A {to} view photo of a {word}",
    "alter_parts": "A photo of a {word} with {to}",
    "action": "A photo of a {word} {doing}",
}
_PROMPT = "A photo of a {asked} {word}"  # size, shape, color and texture
_DOING = {
    "sit": "sitting",
    "run": "running",
    "hit": "hitting",
    "jump": "jumping",
    "stand": "standing",
    "lay": "laying",
}


def _read(record: Record, id: str, asked: str, edit: EditValEdit, path: Path) -> EditValTask:
    image = record.image(path)
    source = f"A photo of a {edit.word}"
    target = _PROMPTS.get(edit.kind, _PROMPT).format(
        word=edit.word, to=edit.to, asked=asked, doing=_DOING.get(edit.to, edit.to)
    )
    return EditValTask(
        id=id,
        image_path=f"{id}.png",
        source_image=image,
        truth=None,
        source_prompt=source,
        target_prompt=target,
        instruction="",
        mask=np.ones((image.height, image.width), np.float32),
        edit_type=UNSPECIFIED,
        changed_words=changed_words(source, target),
        edit=edit,
    )
