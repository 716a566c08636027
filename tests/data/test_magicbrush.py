"""MagicBrush's layout, written small: one session of two turns and one of one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from published import change_json, cut, write_picture

from editbook import data
from editbook.errors import EditbookError


def turn(session: str, number: int, instruction: str) -> dict[str, str]:
    before = "input" if number == 1 else f"output{number - 1}"
    return {
        "input": f"{session}-{before}.png",
        "mask": f"{session}-mask{number}.png",
        "output": f"{session}-output{number}.png",
        "instruction": instruction,
    }


@pytest.fixture
def folder(tmp_path):
    sessions = {
        "139": [turn("139", 1, "let the cat be a dog"), turn("139", 2, "add a hat")],
        "7": [turn("7", 1, "remove the cup")],
    }
    captions = {
        "139": {"139-input.png": "a cat", "139-output1.png": "a dog", "139-output2.png": "a dog with a hat"},
        "7": {"7-input.png": "a cup on a table", "7-output1.png": "a table"},
    }
    (tmp_path / "edit_sessions.json").write_text(json.dumps(sessions))
    (tmp_path / "global_descriptions.json").write_text(json.dumps(captions))
    seed = 0
    for session, turns in sessions.items():
        write_picture(tmp_path / "images" / session / f"{session}-input.png", (40, 30))
        for values in turns:
            seed += 1
            write_picture(tmp_path / "images" / session / values["output"], (40, 30), seed)
            erased = np.full((60, 80, 4), 200, np.uint8)  # twice the size of the source
            erased[..., 3] = 255
            erased[20:40, 10:30, 3] = 0
            Image.fromarray(erased).save(tmp_path / "images" / session / values["mask"])
    return tmp_path


def test_every_turn_is_a_task(folder):
    tasks = data.magicbrush(folder)
    assert tasks.ids == ("139-1", "139-2", "7-1")
    first, second, other = tasks
    assert [task.instruction for task in tasks] == ["let the cat be a dog", "add a hat", "remove the cup"]
    assert np.array_equal(second.source_image, first.truth), "a turn starts from the accepted result of the last"
    assert (first.source_prompt, first.target_prompt) == ("a cat", "a dog")
    assert (second.source_prompt, second.target_prompt) == ("a dog", "a dog with a hat")
    assert second.changed_words == ((), ("with", "a", "hat"))
    assert other.image_path == "7/7-input.png"
    assert {task.type_id for task in tasks} == {None}


def test_the_mask_is_what_was_erased_at_the_size_of_the_source(folder):
    mask = data.magicbrush(folder)[0].mask
    expected = np.zeros((30, 40), np.float32)
    expected[10:20, 5:15] = 1
    assert mask.dtype == np.float32
    assert np.array_equal(mask, expected)


def test_half_erased_pixels_belong_to_the_region(folder):
    path = folder / "images/7/7-mask1.png"
    erased = np.asarray(Image.open(path)).copy()
    erased[...] = (0, 0, 0, 254)
    Image.fromarray(erased).save(path)
    assert data.magicbrush(folder)[2].mask.min() == 1


def test_a_black_and_white_mask_is_white_where_the_region_is(folder):
    black = np.zeros((30, 40), np.uint8)
    black[3, 4:9] = 255
    Image.fromarray(black).save(folder / "images/7/7-mask1.png")
    assert np.array_equal(data.magicbrush(folder)[2].mask, black / 255)


def test_without_captions_the_prompts_are_empty(folder):
    (folder / "global_descriptions.json").unlink()
    task = data.magicbrush(folder)[0]
    assert (task.source_prompt, task.target_prompt) == ("", "")
    assert task.changed_words == ((), ())


@pytest.mark.parametrize("key", ["input", "mask", "output", "instruction"])
def test_a_missing_value_is_named(folder, key):
    change_json(folder / "edit_sessions.json", lambda sessions: sessions["139"][1].pop(key))
    with pytest.raises(EditbookError, match=f"Entry '139-2' of .*edit_sessions.json.*'{key}' is missing"):
        data.magicbrush(folder)


@pytest.mark.parametrize("name", ["139-input.png", "139-mask2.png", "139-output2.png"])
def test_missing_and_truncated_pictures_are_named(folder, name):
    path = folder / "images/139" / name
    cut(path)
    with pytest.raises(EditbookError, match=f"139-[12].*{name}"):
        list(data.magicbrush(folder))
    path.unlink()
    with pytest.raises(EditbookError, match=f"139-[12].*{name}' does not exist"):
        data.magicbrush(folder)


def test_a_mask_that_marks_nothing_is_named(folder):
    write_picture(folder / "images/7/7-mask1.png", (40, 30))
    with pytest.raises(EditbookError, match=r"7-1.*coloured, and no part of it is transparent"):
        data.magicbrush(folder)[2]
    Image.new("RGB", (40, 30)).save(folder / "images/7/7-mask1.png")
    with pytest.raises(EditbookError, match=r"7-1.*black all over"):
        data.magicbrush(folder)[2]


def test_incomplete_captions_and_sessions_are_named(folder):
    change_json(folder / "global_descriptions.json", lambda captions: captions["139"].pop("139-output2.png"))
    with pytest.raises(EditbookError, match=r"'139' of .*global_descriptions.json.*'139-output2.png' is missing"):
        data.magicbrush(folder)
    change_json(folder / "global_descriptions.json", lambda captions: captions.pop("139"))
    with pytest.raises(EditbookError, match=r"'139' of .*global_descriptions.json.*it is missing"):
        data.magicbrush(folder)
    change_json(folder / "edit_sessions.json", lambda sessions: sessions.update({"139": []}))
    with pytest.raises(EditbookError, match=r"'139' of .*edit_sessions.json.*no turns"):
        data.magicbrush(folder)
    change_json(folder / "edit_sessions.json", lambda sessions: sessions.update({"139": {}}))
    with pytest.raises(EditbookError, match=r"'139' of .*edit_sessions.json.*'turns' should be a list"):
        data.magicbrush(folder)
    (folder / "edit_sessions.json").unlink()
    with pytest.raises(EditbookError, match=r"edit_sessions.json' does not exist"):
        data.magicbrush(folder)
