"""Whether an edit did what was asked and nothing else: decided against the scene that the edit should have made.

Ours alone: only a world whose scenes are known can answer this without a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

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
    They say what is in the picture, not where, how large or how well drawn: another meadow is a meadow. The distance
    to the exact picture (`truth_distances`) says the rest.

    Args:
        reading: The edited picture as read by a `Reader`, which gives a list of them.
        task: A task of the pocket world.

    Raises:
        EditbookError: `reading` is something else, or the task has no scenes (real data).
    """
    if not isinstance(reading, Reading):
        raise EditbookError(
            "reading must be what a Reader says of one picture, load_reader()([picture])[0], "
            f"not {type(reading).__name__}."
        )
    source, target = task.source_scene, task.target_scene
    if source is None or target is None:
        raise EditbookError("Edit success needs a task with scenes, e.g. from pocket.task or pocket.bench.")
    old, read = _old(source, target), _aligned(reading.objects, target.objects)
    verdict = Success({}, {})

    def judge(statement: str, told: object, expected: object, before: object) -> None:
        part = verdict.rest if before == expected else verdict.asked
        part[f"{statement} is {expected}"] = told == expected

    judge("background", reading.background, target.background, source.background)
    judge("style", reading.style, target.style, source.style)
    judge("objects", len(reading.objects), len(target.objects), len(source.objects))
    for slot, (thing, mask) in enumerate(zip(target.objects, target.masks(), strict=True)):
        was, seen = old[slot], read[slot]
        before = {} if was is None else _described(was)
        for name, expected in _described(thing).items():
            if name == "look" and target.style in COLOURLESS:
                continue  # a pencil sketch says nothing of colours and materials
            if name == "facing" and thing.facing is None and before.get(name) != expected:
                continue  # the object is new, and nobody said which way it should look
            told = _UNSAID if seen is None else getattr(seen, name)
            judge(f"{name} of object {slot + 1}", told, expected, before.get(name, _UNSAID))
        if task.edit_type == "drag" and thing not in source.objects:
            verdict.asked[f"{thing.word} has arrived"] = seen is not None and _arrived(seen, thing, mask)
    return verdict


_UNSAID = object()  # is like nothing that a scene says; None is what an object without an accessory wears


def _old(source: Scene, target: Scene) -> list[Thing | None]:
    """What each object of the target was in the source; None for one that is new."""
    changed = iter([thing for thing in source.objects if thing not in target.objects])
    same_count = len(source.objects) == len(target.objects)
    return [
        thing if thing in source.objects else next(changed, None) if same_count else None for thing in target.objects
    ]


def _aligned(read: Sequence[ReadObject], things: Sequence[Thing]) -> list[ReadObject | None]:
    """Which of the objects read stands for which of the scene; None for one that was not seen.

    Both are ordered from left to right. Where one is missing or too many, the order alone does not say which, and the
    pairing is taken in which most words agree, then most else.
    """

    def likeness(pairs: list[tuple[int, int]]) -> tuple[int, int]:
        alike = [
            (name == "word", getattr(read[k], name) == value)
            for slot, k in pairs
            for name, value in _described(things[slot]).items()
        ]
        return sum(word and same for word, same in alike), sum(same for _, same in alike)

    count = min(len(read), len(things))
    best = max(
        (
            list(zip(slots, chosen, strict=True))
            for slots in combinations(range(len(things)), count)
            for chosen in combinations(range(len(read)), count)
        ),
        key=likeness,
    )
    seen = dict(best)
    return [read[seen[slot]] if slot in seen else None for slot in range(len(things))]


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


def _arrived(seen: ReadObject, thing: Thing, mask: np.ndarray) -> bool:
    exact = replace(seen, mask=mask).centre
    return seen.word == thing.word and all(abs(a - b) < _NEAR for a, b in zip(exact, seen.centre, strict=True))
