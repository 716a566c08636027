"""EditVal's questions on scenes whose answers are known exactly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from editbook import pocket
from editbook.data import WORLD_TYPES, EditValEdit, editval_edit, editval_tasks, editval_world
from editbook.errors import EditbookError
from editbook.pocket import Change, Scene, Thing, is_held_out, make_task

EACH = 4


@pytest.fixture(scope="module")
def tasks():
    return editval_tasks(EACH)


def centre(mask):
    return float(mask.sum(0) @ np.arange(len(mask)) / mask.sum())


def test_every_type_comes_equally_often_and_no_task_twice(tasks):
    assert Counter(task.edit.kind for task in tasks) == dict.fromkeys(WORLD_TYPES, EACH)
    assert len({task.id for task in tasks}) == len(tasks)
    assert "shape" not in WORLD_TYPES


def test_the_same_seed_gives_the_same_tasks_and_a_shorter_list_is_a_beginning(tasks):
    shorter = editval_tasks(1)
    assert [task.id for task in shorter] == [task.id for task in tasks[::EACH]]
    assert all(a.target_scene == b.target_scene for a, b in zip(shorter, tasks[::EACH], strict=True))
    assert [task.id for task in editval_tasks(1, seed=1)] != [task.id for task in shorter]


def test_every_object_is_held_out_before_and_after(tasks):
    for task in tasks:
        for scene in (task.source_scene, task.target_scene):
            assert all(is_held_out(replace(scene, objects=(thing,))) for thing in scene.objects), task.id


def test_pictures_belong_to_the_scenes_and_differ_inside_the_mask_only(tasks):
    for task in tasks:
        source, truth = np.asarray(task.source_image).astype(int), np.asarray(task.truth).astype(int)
        assert (source == task.source_scene.array()).all()
        assert (truth == task.target_scene.array()).all()
        changed = np.abs(source - truth).max(2)
        assert changed.max() > 1, task.id
        if task.edit.kind != "background":  # there the light of the place falls on the object, too
            assert changed[task.mask == 0].max(initial=0) <= 1, task.id


def test_the_question_is_about_what_differs(tasks):
    for task in tasks:
        asked = editval_edit(task)
        assert (asked.word, asked.to) == (task.edit.word, task.edit.to)
        if task.edit.kind == "positional_addition":
            assert asked.kind == "object_addition"
            words = [thing.word for thing in task.target_scene.objects]
            new, old = (words.index(word) for word in (task.edit.to, task.edit.word))
            masks = task.target_scene.masks()
            assert task.edit.side == ("left" if centre(masks[new]) < centre(masks[old]) else "right")
            assert f"to the {task.edit.side} of the {task.edit.word}" in task.instruction
        else:
            assert asked == task.edit


def test_sizes_and_places_are_as_asked_and_no_caption_says_them(tasks):
    for task in tasks:
        if task.edit.kind in ("size", "position_replacement"):
            assert task.source_prompt == task.target_prompt
            assert task.edit.to in task.instruction
            before, after = task.source_scene.masks()[0], task.target_scene.masks()[0]
            if task.edit.kind == "size":
                assert (after.sum() > before.sum()) == (task.edit.to == "bigger")
            else:
                assert (centre(after) > centre(before)) == (task.edit.to == "right")
                assert abs(centre(after) - centre(before)) > 64 * 200 / 512, "as far as EditVal's script asks for"
        else:
            assert task.source_prompt != task.target_prompt


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("golden-car", EditValEdit("texture", "car", "golden")),
        ("cat-to-fox", EditValEdit("object_replacement", "cat", "fox")),
        ("van-gogh", EditValEdit("style", "house", "van Gogh painting")),
        ("jumping-dog", EditValEdit("action", "dog", "jumping")),
        ("statue-sunglasses", EditValEdit("alter_parts", "statue", "sunglasses")),
        ("drag-car", EditValEdit("position_replacement", "car", "right")),
        ("red-to-blue-bus", EditValEdit("color", "bus", "blue")),
        ("penguin-to-desert", EditValEdit("background", "penguin", "desert")),
        ("add-apple", EditValEdit("object_addition", "cat", "apple")),
    ],
)
def test_named_tasks(name, edit):
    assert editval_edit(pocket.task(name)) == edit


def test_what_editval_does_not_ask_is_refused():
    dressed = Scene("room", (Thing("cat", accessory="hat"),))
    for task in (
        pocket.task("remove-cookie"),
        make_task(dressed, Change("change content", None)),
        replace(pocket.task("cat-to-fox"), target_scene=Scene("beach", (Thing("fox"),))),
    ):
        with pytest.raises(EditbookError, match=f"no type for '{task.instruction}'"):
            editval_edit(task)
    with pytest.raises(EditbookError, match="needs a task with scenes"):
        editval_edit(replace(pocket.task("cat-to-fox"), source_scene=None))


@pytest.mark.parametrize("each", [0, -1, 41])
def test_a_number_that_cannot_be_had_is_named(each, monkeypatch):
    monkeypatch.setattr(editval_world, "WORLD_TYPES", ("alter_parts",))
    with pytest.raises(EditbookError, match=f"each is {each}: ask for 1 to as many"):
        editval_tasks(each)
