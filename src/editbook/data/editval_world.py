"""EditVal's questions on the pocket world: twelve of its thirteen types, on PocketBench's held-out scenes.

"shape" has no counterpart: EditVal asks for a square orange or a tote bag, and a thing of this world has one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ..errors import EditbookError
from ..pocket import BenchTask, Change, EditTask, Scene, Thing, bench, make_task
from ..pocket.grammar import noun_phrase
from .editval import EDITVAL_TYPES, EditValEdit, EditValTask

WORLD_TYPES = tuple(kind for kind in EDITVAL_TYPES if kind != "shape")
"""EditVal's types that the pocket world has."""


def editval_edit(task: EditTask) -> EditValEdit:
    """The question that EditVal would ask of a task of the pocket world: what differs between its two scenes.

    A new object is an "object_addition"; give the edit a `side` and the kind "positional_addition" to ask where it is.
    A pocket "drag" goes a fifth of the picture, and EditVal asks for two fifths: judge it with ``moved=0.1``.

    Raises:
        EditbookError: The task has no scenes (real data), or EditVal has no type for this edit, e.g. a removal.
    """
    before, after = task.source_scene, task.target_scene
    if before is None or after is None:
        raise EditbookError("editval_edit needs a task with scenes, e.g. from pocket.task or pocket.bench.")
    word = before.objects[0].word if before.objects else ""
    found = [
        EditValEdit(kind, word, getattr(after, kind))
        for kind in ("style", "background")
        if getattr(before, kind) != getattr(after, kind)
    ]
    gone = [thing for thing in before.objects if thing not in after.objects]
    new = [thing for thing in after.objects if thing not in before.objects]
    if len(gone) == len(new) == 1:
        found += _of_object(gone[0], new[0])
    elif len(new) == 1 and not gone:
        found.append(EditValEdit("object_addition", word, new[0].word))
    if len(found) != 1:
        raise EditbookError(
            f"EditVal has no type for {task.instruction!r}: it takes nothing away, and changes one thing at a time."
        )
    return found[0]


_KINDS = {
    "word": "object_replacement",
    "colour": "color",
    "material": "texture",
    "facing": "viewpoint",
    "accessory": "alter_parts",
    "pose": "action",
}


def _of_object(before: Thing, after: Thing) -> list[EditValEdit]:
    """What was asked of an object. A value that has become None was taken away, as a colour by a new material."""

    def changed(name: str) -> bool:
        return getattr(after, name) not in (None, getattr(before, name))

    asked = [(kind, getattr(after, name)) for name, kind in _KINDS.items() if changed(name)]
    if changed("size"):
        asked.append(("size", "bigger" if after.size > before.size else "smaller"))
    if changed("x"):
        asked.append(("position_replacement", "right" if after.x > before.x else "left"))
    if changed("y"):
        asked.append(("position_replacement", "below" if after.y > before.y else "above"))
    return [EditValEdit(kind, before.word, to) for kind, to in asked]


@dataclass(frozen=True)
class Redrawn(Change):
    """One object drawn in another size, place or facing: what EditVal asks for, and no kind of `Change` does.

    Args:
        fields: The new values of fields of its `Thing`.
        words: The instruction.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""

    def apply(self, scene: Scene) -> Scene:
        """The scene after the change."""
        objects = list(scene.objects)
        objects[self.index] = replace(objects[self.index], **self.fields)
        return replace(scene, objects=tuple(objects))

    def instruction(self, scene: Scene, phrasing: int = 0) -> str:
        """What a person would ask for; there is one way to say it."""
        return self.words


def editval_tasks(each: int = 5, seed: int = 0, size: int = 64) -> list[EditValTask]:
    """Tasks of every type in `WORLD_TYPES`, always the same ones from the same seed.

    All are made of PocketBench's scenes, so no training scene has their combinations of word, look and background. Nine
    types are PocketBench's own edits. For the other three an object of its scenes is drawn alone, and then turned
    round, drawn larger or smaller, or moved from one side to the other. Captions say neither sizes nor places: the two
    prompts of such a task are equal, and only its instruction, as that of a positional addition, says what is asked.

    Args:
        each: How many tasks of each type; a shorter list of a type is the beginning of a longer one.
        seed: Which ones.
        size: Side of the pictures in pixels.

    Raises:
        EditbookError: PocketBench does not have so many.
    """
    tasks: list[EditValTask] = []
    for kind in WORLD_TYPES:
        made = list(islice(_of_kind(kind, seed, size), max(each, 0)))
        if not 1 <= each == len(made):
            raise EditbookError(f"each is {each}: ask for 1 to as many tasks of {kind!r} as there are, {len(made)}.")
        tasks += made
    return tasks


_POOLS = {
    "object_addition": "add object",
    "object_replacement": "change object",
    "positional_addition": "add object",
    "color": "change colour",
    "texture": "change material",
    "style": "change style",
    "background": "change background",
    "alter_parts": "change content",
    "action": "change pose",
}
"""Which of PocketBench's types asks the same."""


class _Drawn(NamedTuple):
    """How one object is drawn before and after; either of the two is drawn as what is asked for."""

    change: str
    words: str
    always: Mapping[str, Any]
    asked: Mapping[str, Mapping[str, Any]]


# About as far aside and as small as PocketBench draws one of two objects, and as large as it draws one alone.
_DRAWN = {
    "size": _Drawn("size", "make the {word} {to}", {"x": 0.5}, {"smaller": {"size": 0.42}, "bigger": {"size": 0.62}}),
    "position_replacement": _Drawn(
        "drag", "move the {word} to the {to}", {"size": 0.42}, {"left": {"x": 0.24}, "right": {"x": 0.76}}
    ),
    "viewpoint": _Drawn(
        "viewpoint",
        "make the {word} face {to}",
        {"x": 0.5, "size": 0.55},
        {"left": {"facing": "left"}, "right": {"facing": "right"}},
    ),
}


def _of_kind(kind: str, seed: int, size: int) -> Iterator[EditValTask]:
    """All tasks of a type, in an order drawn from the seed."""
    rng = np.random.default_rng([seed, EDITVAL_TYPES.index(kind)])
    pool = bench(size).of_type(_POOLS[kind]) if kind in _POOLS else bench(size)
    for number in rng.permutation(len(pool)):
        source = pool[int(number)]
        try:
            task = _drawn(_DRAWN[kind], source, rng, size) if kind in _DRAWN else source
            edit = editval_edit(task)
        except EditbookError:  # it has no front to turn, or something is taken off, which EditVal asks of nobody
            continue
        facts = {item.name: getattr(task, item.name) for item in fields(EditTask)}
        if kind == "positional_addition":
            edit, facts["instruction"] = _beside(task, edit)
        id = f"{kind}/{source.id}/{edit.to}"
        yield EditValTask(**facts, id=id, image_path=f"{id}.png", edit=edit)


def _drawn(how: _Drawn, source: BenchTask, rng: np.random.Generator, size: int) -> EditTask:
    """The task that is about the first object of another task's scene, drawn alone."""
    assert source.source_scene is not None
    before, to = (str(word) for word in rng.permutation(list(how.asked)))
    thing = replace(source.source_scene.objects[0], **how.always, **how.asked[before])
    words = how.words.format(word=thing.word, to=to)
    scene = replace(source.source_scene, objects=(thing,))
    return make_task(scene, Redrawn(how.change, to, fields=how.asked[to], words=words), size)


def _beside(task: EditTask, edit: EditValEdit) -> tuple[EditValEdit, str]:
    """The question where the new object was put, and the instruction that says it."""
    assert task.source_scene is not None
    assert task.target_scene is not None
    left, right = task.target_scene.objects
    new, side = (left, "left") if left not in task.source_scene.objects else (right, "right")
    asked = f"add {noun_phrase(new)} to the {side} of the {edit.word}"
    return EditValEdit("positional_addition", edit.word, edit.to, side), asked
