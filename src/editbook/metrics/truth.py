"""Whether an edit did what was asked and nothing else: decided against the scene that the edit should have made.

Ours alone: only a world whose scenes are known can answer this without a person.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import EditbookError
from ..perception.reader import OWN, Reading, ReadObject
from ..pocket import EditTask, Scene, Thing
from ..pocket.sprites import sprite
from ..pocket.styles import COLOURLESS

_NEAR = 0.08  # a dragged object has arrived within this fraction of the picture's side


@dataclass(frozen=True)
class Success:
    """The verdict on one edit.

    Args:
        asked: What should have changed: statement -> whether the edited picture shows it.
        rest: What should have stayed: statement -> whether it did.
    """

    asked: dict[str, bool]
    rest: dict[str, bool]

    @property
    def changed(self) -> bool:
        """Everything that was asked for happened."""
        return all(self.asked.values())

    @property
    def kept(self) -> bool:
        """Everything else stayed."""
        return all(self.rest.values())

    @property
    def success(self) -> bool:
        """Both."""
        return self.changed and self.kept


def edit_success(reading: Reading, task: EditTask) -> Success:
    """Compare what a reader saw in the edited picture with the scene that the edit should have made.

    Statements about the target scene that were already true of the source belong to `rest`, all others to `asked`.

    Args:
        reading: The edited picture as read by a `Reader`.
        task: A task of the pocket world.

    Raises:
        EditbookError: The task has no scenes (real data).
    """
    source, target = task.source_scene, task.target_scene
    if source is None or target is None:
        raise EditbookError("Edit success needs a task with scenes, e.g. from pocket.task or pocket.bench.")
    before = _before(source, target)
    verdict = Success({}, {})
    for statement, expected in _statements(target).items():
        told = _told(reading, statement)
        (verdict.rest if before.get(statement) == expected else verdict.asked)[_words(statement, expected)] = (
            told == expected
        )
    if task.edit_type == "drag":
        moved = [k for k, thing in enumerate(target.objects) if thing not in source.objects]
        for slot in moved:
            verdict.asked[f"{target.objects[slot].word} has arrived"] = _arrived(reading, target, slot)
    return verdict


_Statement = tuple[int | None, str]  # (slot of an object, or None for the picture; what of it)


def _before(source: Scene, target: Scene) -> dict[_Statement, object]:
    """What was true of the source, its objects numbered as in the target."""
    said = {statement: value for statement, value in _statements(source).items() if statement[0] is None}
    for slot, thing in enumerate(target.objects):
        if thing not in source.objects:
            if len(source.objects) != len(target.objects):
                continue  # it is new
            thing = source.objects[slot]
        said |= {(slot, name): value for name, value in _described(thing).items()}
    return said


def _statements(scene: Scene) -> dict[_Statement, object]:
    """What a picture of the scene shows; a pencil sketch says nothing of colours and materials."""
    said: dict[_Statement, object] = {
        (None, "background"): scene.background,
        (None, "style"): scene.style,
        (None, "objects"): len(scene.objects),
    }
    for slot, thing in enumerate(scene.objects):
        said |= {(slot, name): value for name, value in _described(thing).items()}
    if scene.style in COLOURLESS:
        return {statement: value for statement, value in said.items() if statement[1] != "look"}
    return said


def _described(thing: Thing) -> dict[str, object]:
    said: dict[str, object] = {
        "word": thing.word,
        "look": thing.colour or thing.material or OWN,
        "pose": thing.pose,
        "accessory": thing.accessory,
    }
    if sprite(thing.word).facing:
        said["facing"] = thing.facing or "left"
    return said


def _told(reading: Reading, statement: _Statement) -> object:
    slot, name = statement
    if slot is None:
        return len(reading.objects) if name == "objects" else getattr(reading, name)
    return getattr(reading.objects[slot], name) if slot < len(reading.objects) else None


def _words(statement: _Statement, expected: object) -> str:
    slot, name = statement
    return f"{name} is {expected}" if slot is None else f"{name} of object {slot + 1} is {expected}"


def _arrived(reading: Reading, target: Scene, slot: int) -> bool:
    if slot >= len(reading.objects):
        return False
    exact = ReadObject("", "", "", "", None, target.masks()[slot], 1.0).centre
    found = reading.objects[slot].centre
    return all(abs(a - b) < _NEAR for a, b in zip(exact, found, strict=True))
