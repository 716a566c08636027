"""EditVal's layout, written small, with entries of the published file."""

from __future__ import annotations

import json

import pytest
from published import change_json, cut, write_picture

from editbook import data
from editbook.data.editval import EDITVAL_TYPES, EditValEdit, EditValTask
from editbook.errors import EditbookError

PUBLISHED = {
    "stop_sign": {
        "135113": {
            "position_replacement": {"from": ["right"], "to": ["left", "center"]},
            "shape": {"from": [""], "to": ["heart-shaped"]},
        }
    },
    "pizza": {
        "113199": {
            "object_addition": {"from": [""], "to": ["cake"]},
            "positional_addition": {"from": [""], "to": ["wine glass to left", "bag on top", "books below"]},
            "size": {"from": [""], "to": ["small", "large"]},
            "alter_parts": {"from": [""], "to": ["add tomato toppings"]},
            "color": {"from": [""], "to": ["blue"]},
            "texture": {"from": [""], "to": ["plastic"]},
        }
    },
    "cat": {
        "155707": {
            "viewpoint": {"from": ["front"], "to": ["side"]},
            "object_replacement": {"from": ["cat"], "to": ["dog"]},
            "action": {"from": ["sit"], "to": ["lay"]},
            "style": {"from": [""], "to": ["Cubism"]},
            "background": {"from": ["house"], "to": ["street"]},
        }
    },
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "object.json").write_text(json.dumps(PUBLISHED))
    for number, name in enumerate(("000000135113", "000000113199", "000000155707")):
        write_picture(tmp_path / f"train2017/{name}.jpg", (40 + number, 30))
    return tmp_path


def test_all_types_are_read(folder):
    tasks = list(data.editval(folder))
    assert {task.edit.kind for task in tasks} == set(EDITVAL_TYPES)
    for task in tasks:
        assert isinstance(task, EditValTask)
        assert task.image_path == f"{task.id}.png"
        assert task.id.startswith(f"{task.edit.kind}/")
        assert task.mask.shape == task.source_image.size[::-1]
        assert task.source_prompt == f"A photo of a {task.edit.word}"
        assert task.truth is None


@pytest.mark.parametrize(
    ("id", "edit", "prompt"),
    [
        (
            "position_replacement/135113/center",
            EditValEdit("position_replacement", "stop sign", "center"),
            "A photo of a stop sign on the center of the picture",
        ),
        (
            "positional_addition/113199/wine glass to left",
            EditValEdit("positional_addition", "pizza", "wine glass", "left"),
            "A photo of a wine glass to left of a pizza",
        ),
        (
            "positional_addition/113199/bag on top",
            EditValEdit("positional_addition", "pizza", "bag", "above"),
            "A photo of a bag on top of a pizza",
        ),
        ("size/113199/large", EditValEdit("size", "pizza", "bigger"), "A photo of a large pizza"),
        (
            "alter_parts/113199/add tomato toppings",
            EditValEdit("alter_parts", "pizza", "tomato toppings"),
            "A photo of a pizza with tomato toppings",
        ),
        ("action/155707/lay", EditValEdit("action", "cat", "lay"), "A photo of a cat laying"),
        ("style/155707/Cubism", EditValEdit("style", "cat", "Cubism"), "An art painting of a cat in Cubism style"),
        ("color/113199/blue", EditValEdit("color", "pizza", "blue"), "A photo of a blue pizza"),
    ],
)
def test_what_an_entry_asks(folder, id, edit, prompt):
    task = data.editval(folder).task(id)
    assert task.edit == edit
    assert task.target_prompt == prompt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["cat"]["155707"].update(colour={"to": ["red"]}), "'cat/155707/colour'.*Did you mean 'color'"),
        (lambda v: v["cat"]["155707"]["style"].pop("to"), "'cat/155707/style'.*'to' is missing"),
        (lambda v: v["cat"]["155707"]["style"].update(to=[3]), "'cat/155707/style'.*texts"),
        (lambda v: v["cat"]["155707"].update(positional_addition={"to": ["hat near"]}), "'hat near' says no side"),
        (lambda v: v["cat"]["155707"].update(size={"to": ["huge"]}), "change of size 'huge'"),
        (lambda v: v["cat"].update({"1": {"color": {"to": []}}}), "'cat/1/color'.*000000000001.jpg.*does not exist"),
        (lambda v: v.update(dog=[]), "'dog' should be a dict"),
    ],
)
def test_what_is_wrong_is_named(folder, change, message):
    change_json(folder / "object.json", change)
    with pytest.raises(EditbookError, match=message):
        data.editval(folder)


def test_a_damaged_picture_is_named_when_it_is_asked_for(folder):
    cut(folder / "train2017/000000155707.jpg")
    tasks = data.editval(folder)
    assert tasks.task("color/113199/blue").source_image.size == (41, 30)
    with pytest.raises(EditbookError, match=r"'cat/155707/style'.*damaged or truncated"):
        tasks.task("style/155707/Cubism")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("colour", "cat", "red"), "Did you mean 'color'"),
        (("color", "", "red"), "word must name"),
        (("positional_addition", "cat", "dog"), "side"),
        (("position_replacement", "cat", "up"), "side"),
        (("size", "cat", "huge"), "size"),
    ],
)
def test_malformed_edits_are_refused(arguments, message):
    with pytest.raises(EditbookError, match=message):
        EditValEdit(*arguments)
