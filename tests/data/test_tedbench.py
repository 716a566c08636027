"""TEdBench's layout, written small."""

from __future__ import annotations

import json

import pytest
from published import NO_FILE_NAMES, change_json, cut, write_picture

from editbook import data
from editbook.errors import EditbookError


@pytest.fixture
def folder(tmp_path):
    inputs = [
        {"img_name": "tree_1.jpeg", "target_text": "A photo of a tree. Taken in autumn."},
        {"img_name": "tree_1.jpeg", "target_text": "A photo of a dead tree."},
        {"img_name": "zebra.png", "target_text": "A photo of a horse."},
    ]
    (tmp_path / "input_list.json").write_text(json.dumps(inputs))
    write_picture(tmp_path / "originals/tree_1.jpeg", (48, 32))
    write_picture(tmp_path / "originals/zebra.png", (20, 20))
    return tmp_path


def test_tasks_and_their_names(folder):
    tasks = data.tedbench(folder)
    assert tasks.ids == (
        "tree_1.jpeg-A_photo_of_a_tree._Taken_in_autumn",  # as the published results are called
        "tree_1.jpeg-A_photo_of_a_dead_tree",
        "zebra.png-A_photo_of_a_horse",
    )
    task = tasks[0]
    assert task.target_prompt == "A photo of a tree. Taken in autumn."
    assert (task.source_prompt, task.instruction, task.truth) == ("", "", None)
    assert task.source_image.size == (48, 32)
    assert task.mask.shape == (32, 48)
    assert task.mask.min() == 1
    assert task.image_path == "tree_1.jpeg"
    assert task.changed_words.source == ()


def test_a_missing_value_is_named(folder):
    change_json(folder / "input_list.json", lambda inputs: inputs[1].pop("target_text"))
    with pytest.raises(EditbookError, match=r"Entry '1' of .*input_list.json.*'target_text' is missing"):
        data.tedbench(folder)


def test_a_doubled_task_is_named(folder):
    change_json(folder / "input_list.json", lambda inputs: inputs.append(inputs[0]))
    with pytest.raises(EditbookError, match=r"Entry '3'.*of tree_1.jpeg twice"):
        data.tedbench(folder)


def test_missing_and_truncated_pictures_are_named(folder):
    cut(folder / "originals/zebra.png")
    tasks = data.tedbench(folder)
    with pytest.raises(EditbookError, match=r"Entry '2'.*zebra.png.*damaged or truncated"):
        tasks[2]
    (folder / "originals/zebra.png").unlink()
    with pytest.raises(EditbookError, match=r"Entry '2'.*zebra.png' does not exist"):
        data.tedbench(folder)


def test_it_has_no_types(folder):
    with pytest.raises(EditbookError, match=r"TEdBench in .* does not say of what type its tasks are"):
        data.tedbench(folder).of_type("change object")
    with pytest.raises(EditbookError, match=r"'change object'"):
        data.tedbench(folder).of_type("change objects")


@pytest.mark.parametrize("text", [name for name in NO_FILE_NAMES if "/" in name or "\0" in name])
def test_a_text_that_leads_out_of_the_folder_is_named(folder, text):
    change_json(folder / "input_list.json", lambda inputs: inputs[1].update(target_text=text))
    with pytest.raises(EditbookError, match=r"Entry '1' of .*input_list.json.*cannot be the id of a task"):
        data.tedbench(folder)
