"""MagicBrush's layout, written small: one session of two turns and one of one."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
from PIL import Image
from published import NO_FILE_NAMES, change_json, cut, write_picture

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


def test_it_has_no_types(folder):
    with pytest.raises(EditbookError, match=r"MagicBrush in .* does not say of what type its tasks are"):
        data.magicbrush(folder).of_type("change object")


@pytest.mark.parametrize("id", NO_FILE_NAMES)
def test_a_session_that_leads_out_of_the_folder_is_named(folder, id):
    change_json(folder / "edit_sessions.json", lambda sessions: sessions.update({id: sessions.pop("7")}))
    with pytest.raises(EditbookError, match=r"edit_sessions.json.*cannot be the id of a task") as caught:
        data.magicbrush(folder)
    assert f"Entry {id!r}" in str(caught.value)


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


@pytest.fixture
def table(folder):
    """The columns of the parquet files, with the same turns and pictures as the folder."""
    sessions = json.loads((folder / "edit_sessions.json").read_text())
    turns = [(id, number, turn) for id, turns in sessions.items() for number, turn in enumerate(turns, start=1)]

    def stored(key):
        return [
            {"bytes": (folder / "images" / id / turn[key]).read_bytes(), "path": turn[key]} for id, _, turn in turns
        ]

    return {
        "img_id": [id for id, _, _ in turns],
        "turn_index": [number for _, number, _ in turns],
        "source_img": stored("input"),
        "mask_img": stored("mask"),
        "instruction": [turn["instruction"] for _, _, turn in turns],
        "target_img": stored("output"),
    }


def write_shards(table, folder):
    """One file of groups of one row, and one of the rest."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder.mkdir(exist_ok=True)
    schema = pyarrow.table(table).schema
    schema = schema.set(schema.get_field_index("turn_index"), pyarrow.field("turn_index", pyarrow.int32()))
    whole = pyarrow.table(table, schema=schema)
    for k, part in enumerate((whole.slice(0, 2), whole.slice(2))):
        parquet.write_table(part, folder / f"dev-{k:05d}-of-00002-5f3a.parquet", row_group_size=1)
    return folder


@pytest.mark.parametrize("below", ["", "data"])
def test_parquet_files_give_the_same_tasks_without_prompts(folder, table, tmp_path, below):
    (tmp_path / "shards").mkdir()
    write_shards(table, tmp_path / "shards" / below)
    ours, theirs = data.magicbrush(tmp_path / "shards"), data.magicbrush(folder)
    assert ours.ids == theirs.ids
    for one, other in zip(ours, theirs, strict=True):
        assert (one.source_prompt, one.target_prompt, one.changed_words) == ("", "", ((), ()))
        for name in ("instruction", "image_path", "edit_type", "type_id"):
            assert getattr(one, name) == getattr(other, name)
        for name in ("source_image", "truth", "mask"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("img_id", "../7", r"group 0, row 0' .*'\.\./7' cannot be the id of a task"),
        ("img_id", None, r"group 0, row 0' .*'img_id' should be a str"),
        ("img_id", "139", r"group 0, row 0' .*turn 1 of '139' stands there twice"),
        ("instruction", None, r"'7-1' .*'instruction' should be a str"),
        ("source_img", None, r"'7-1' .*'source_img' should be a dict"),
        ("target_img", {"bytes": None, "path": "a.png"}, r"'7-1, target_img' .*'bytes' should be a bytes"),
        ("mask_img", {"bytes": b"no picture", "path": "a.png"}, r"'7-1' .*'mask_img': it is not a PNG, JPEG or WebP"),
    ],
)
def test_wrong_values_in_parquet_files_are_named(table, tmp_path, column, value, message):
    table[column][2] = value
    write_shards(table, tmp_path / "shards")
    with pytest.raises(EditbookError, match=r"Entry " + ".*" + message):
        list(data.magicbrush(tmp_path / "shards"))


def test_a_missing_column_and_a_truncated_parquet_file_are_named(table, tmp_path):
    shards = write_shards(table, tmp_path / "shards")
    cut(shards / "dev-00001-of-00002-5f3a.parquet")
    with pytest.raises(EditbookError, match=r"dev-00001.*damaged or truncated"):
        data.magicbrush(shards)
    del table["mask_img"]
    write_shards(table, shards)
    with pytest.raises(EditbookError, match=r"dev-00000.*has no column 'mask_img'"):
        data.magicbrush(shards)


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "dev-00000-of-00004-5f3a.parquet").write_bytes(b"")
    plain = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EditbookError, match=r"dev-00000.*pip install 'editbook\[data\]'"):
        data.magicbrush(tmp_path)
