"""PIE-Bench's layout: ours comes back as it went, the real one is read, and what is wrong is named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from published import NO_FILE_NAMES, change_json, cut, slow_decode, write_picture

from editbook import data
from editbook.errors import EditbookError
from editbook.metrics import psnr
from editbook.pocket.bench import TYPES, BenchTask, bench

SOME = bench()[::39]  # of every type one or more


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return data.export(SOME, tmp_path_factory.mktemp("bench") / "pocket")


@pytest.fixture
def ours(tmp_path):
    """A small export to spoil."""
    return data.export(bench()[:2], tmp_path / "pocket")


def first(folder):
    return next(iter(json.loads((folder / "mapping_file.json").read_text())))


def test_a_round_trip_gives_every_task_back_exactly(exported):
    back = data.pie_bench(exported)
    assert back.ids == SOME.ids
    assert {task.type_id for task in back} == set(range(10))
    for written, read in zip(SOME, back, strict=True):
        for name, value in vars(written).items():
            if isinstance(value, Image.Image | np.ndarray):
                assert np.array_equal(getattr(read, name), value), name
                assert np.asarray(getattr(read, name)).dtype == np.asarray(value).dtype
            else:
                assert getattr(read, name) == value, name


def test_the_layout_is_pie_benchs(exported):
    mapping = json.loads((exported / "mapping_file.json").read_text())
    for task in SOME:
        entry = mapping[task.id]
        assert set(entry) == {
            "image_path",
            "original_prompt",
            "editing_prompt",
            "editing_instruction",
            "editing_type_id",
            "blended_word",
            "mask",
        }
        assert entry["editing_type_id"] == str(task.type_id)
        assert (entry["original_prompt"], entry["editing_prompt"]) == task.bracketed
        assert entry["blended_word"].split() == list(task.blended_words or ())
        with Image.open(exported / "annotation_images" / entry["image_path"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (512, 512))
            centres = np.asarray(picture)[4::8, 4::8]
        assert psnr(centres, task.source_image) > 30, "every pixel is a block of 8 x 8"


def test_the_written_mask_covers_all_that_the_truth_changes(exported):
    mapping = json.loads((exported / "mapping_file.json").read_text())
    for task in SOME:
        mask = slow_decode(mapping[task.id]["mask"], 512, 512, border=False)
        blocks = mask.reshape(64, 8, 64, 8).transpose(0, 2, 1, 3).reshape(64, 64, 64)
        assert (blocks.all(2) == blocks.any(2)).all(), "a pixel is in it as a whole or not at all"
        assert np.array_equal(blocks.any(2), task.mask > 0)


def test_what_pie_benchs_script_reads_can_be_read_instead(exported):
    mapping = json.loads((exported / "mapping_file.json").read_text())
    for task in data.pie_bench(exported, exact=False)[::5]:
        assert task.source_image.size == task.mask.shape == (512, 512)
        assert task.truth is None
        assert np.array_equal(task.mask, slow_decode(mapping[task.id]["mask"], 512, 512, border=True))


def test_a_part_can_be_written_at_another_size(tmp_path):
    task = bench()[300]
    folder = data.export([task], tmp_path / "new" / "folder", size=128)
    with Image.open(folder / "annotation_images" / task.image_path) as picture:
        assert picture.size == (128, 128)
    assert np.array_equal(data.pie_bench(folder)[0].truth, task.truth)


def test_the_real_layout(pie_folder):
    tasks = data.pie_bench(pie_folder)
    random, change = tasks
    assert tasks.ids == ("000000000000", "111000000000")
    assert isinstance(random, BenchTask)
    assert (random.edit_type, random.type_id) == ("random", 0)
    assert (change.edit_type, change.type_id) == ("change object", 1)
    assert random.source_prompt == "a slanted bicycle on the road"
    assert random.target_prompt == "a slanted rusty bicycle on the road"
    assert random.bracketed == ("a slanted bicycle on the road", "a slanted [rusty] bicycle on the road")
    assert change.bracketed == ("a [cat] on a wall", "a [dog] on a wall")
    assert change.changed_words == (("cat",), ("dog",))
    assert random.instruction == "Make the bicycle rusty"
    assert random.blended_words == ("bicycle", "bicycle")
    assert change.blended_words is None
    assert random.truth is None
    assert random.source_scene is None
    assert random.source_image.size == (512, 512)
    assert random.mask.dtype == np.float32
    assert random.mask[101, 100] == random.mask[102, 0] == 1
    assert random.mask.sum() == slow_decode([51250, 20, 51762, 700], 512, 512, border=True).sum()
    assert len(tasks.of_type("change object")) == 1


def test_the_forced_border_can_be_left_out(pie_folder):
    tasks = data.pie_bench(pie_folder, border=False)
    assert tasks[0].mask.sum() == 20 + 700
    with pytest.raises(EditbookError, match=r"111000000000.*the mask is empty"):
        tasks[1]


def test_pictures_are_not_read_before_they_are_asked_for(pie_folder):
    (pie_folder / "annotation_images/0_random_140/000000000000.jpg").write_bytes(b"no picture")
    tasks = data.pie_bench(pie_folder)
    assert tasks[1].id == "111000000000"
    with pytest.raises(EditbookError, match=r"000000000000.*not a PNG, JPEG or WebP picture"):
        tasks[0]


@pytest.mark.parametrize(
    "key",
    [
        "image_path",
        "original_prompt",
        "editing_prompt",
        "editing_instruction",
        "editing_type_id",
        "blended_word",
        "mask",
    ],
)
@pytest.mark.parametrize("value", ["missing", None, 7])
def test_a_missing_or_wrong_value_is_named(pie_folder, key, value):
    def spoil(entries):
        entries["111000000000"].pop(key)
        if value != "missing":
            entries["111000000000"][key] = value

    change_json(pie_folder / "mapping_file.json", spoil)
    with pytest.raises(EditbookError, match=f"111000000000.*mapping_file.json.*'{key}'"):
        data.pie_bench(pie_folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("editing_type_id", "10", 'one of "0" to "9", not \'10\''),
        ("editing_type_id", "one", "not 'one'"),
        ("blended_word", "cat", "not 'cat' only"),
        ("image_path", "../secret.jpg", "not a path inside"),
        ("image_path", "/etc/hostname", "not a path inside"),
        ("image_path", "..\\secret.jpg", "not a path inside"),
        ("image_path", "C:secret.jpg", "not a path inside"),
        ("image_path", "a\0b", "not a path inside"),
        ("image_path", "", "not a path inside"),
        ("image_path", "1_change_object_80/none.jpg", "does not exist"),
    ],
)
def test_what_contradicts_the_layout_is_named_at_once(pie_folder, key, value, message):
    change_json(pie_folder / "mapping_file.json", lambda entries: entries["111000000000"].update({key: value}))
    with pytest.raises(EditbookError, match=f"111000000000.*mapping_file.json.*{message}"):
        data.pie_bench(pie_folder)


@pytest.mark.parametrize("mask", [[512 * 512, 1], [3], [-4, 2], [0.5, 1], [0, "a"], [[0, 1]]])
def test_a_wrong_mask_is_named(pie_folder, mask):
    change_json(pie_folder / "mapping_file.json", lambda entries: entries["111000000000"].update(mask=mask))
    with pytest.raises(EditbookError, match=r"111000000000.*the mask (has a run outside|is not a list)"):
        data.pie_bench(pie_folder)[1]


def test_wrong_pictures_are_named(pie_folder):
    path = pie_folder / "annotation_images/1_change_object_80/1_artificial/1_animal/111000000000.jpg"
    cut(path)
    with pytest.raises(EditbookError, match=r"111000000000.*damaged or truncated"):
        data.pie_bench(pie_folder)[1]
    write_picture(path, (512, 256))
    with pytest.raises(EditbookError, match=r"111000000000.*512 x 256 pixels; the layout has 512 x 512"):
        data.pie_bench(pie_folder)[1]


def test_a_wrong_mapping_file_is_named(pie_folder):
    path = pie_folder / "mapping_file.json"
    whole = path.read_text()
    cases = {
        whole[:-30]: "mapping_file.json.*damaged or truncated",
        "[]": "mapping_file.json.*holds a list, and should hold a dict",
        "{}": "mapping_file.json.*no entries",
        '{"000000000000": {}, "000000000000": {}}': "mapping_file.json.*'000000000000' stands there twice",
        '{"000000000000": []}': "Entry '000000000000' of .*mapping_file.json.*it is a list",
        '{"000000000000": null}': "Entry '000000000000' of .*mapping_file.json.*it is missing",
        "\udcff": "mapping_file.json.*damaged or truncated",
    }
    for text, message in cases.items():
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(EditbookError, match=message):
            data.pie_bench(pie_folder)
    path.unlink()
    with pytest.raises(EditbookError, match=r"mapping_file.json' does not exist"):
        data.pie_bench(pie_folder)


def test_exact_files_that_do_not_fit_the_mapping_are_named(ours):
    id = first(ours)
    tasks = ours / "exact" / "tasks.json"
    whole = tasks.read_text()
    change_json(tasks, lambda entries: entries.pop(id))
    with pytest.raises(EditbookError, match=f"'{id}' stands in only one"):
        data.pie_bench(ours)
    tasks.write_text(whole)
    for key in ("edit_type", "truth", "source_scene", "target_scene"):
        change_json(tasks, lambda entries, key=key: entries[id].pop(key))
        with pytest.raises(EditbookError, match=f"{id}.*tasks.json.*'{key}' is missing"):
            data.pie_bench(ours)[0]
        tasks.write_text(whole)
    for scene in ({"background": "moon", "objects": []}, {"background": "sea"}, {"objects": [], "sky": 1}, 7):
        change_json(tasks, lambda entries, scene=scene: entries[id].update(source_scene=scene))
        with pytest.raises(EditbookError, match=f"{id}.*tasks.json.*(Unknown background|does not describe a scene)"):
            data.pie_bench(ours)[0]
    tasks.unlink()
    with pytest.raises(EditbookError, match=r"tasks.json' does not exist"):
        data.pie_bench(ours)


@pytest.mark.parametrize("part", ["source.png", "truth.png", "mask.npz"])
def test_truncated_and_missing_exact_files_are_named(ours, part):
    id = first(ours)
    path = ours / "exact" / f"{id}-{part}"
    cut(path)
    with pytest.raises(EditbookError, match=f"{id}.*{part}.*damaged or truncated"):
        data.pie_bench(ours)[0]
    path.unlink()
    with pytest.raises(EditbookError, match=f"{id}.*{part}.*does not exist"):
        data.pie_bench(ours)[0]
    assert data.pie_bench(ours)[1].truth is not None


def test_wrong_exact_masks_and_sizes_are_named(ours):
    id = first(ours)
    path = ours / "exact" / f"{id}-mask.npz"
    good = np.ones((64, 64), np.float32)
    for mask in (good * np.nan, good * 2, -good, good * 0, good.astype(np.float64)):
        np.savez_compressed(path, mask=mask)
        with pytest.raises(EditbookError, match=rf"{id}.*the mask should be float32 in \[0, 1\]"):
            data.pie_bench(ours)[0]
    np.savez_compressed(path, mask=good[:32])
    with pytest.raises(EditbookError, match=f"{id}.*differ in size"):
        data.pie_bench(ours)[0]
    np.savez_compressed(path, other=good)
    with pytest.raises(EditbookError, match=f"{id}.*mask.npz.*cannot be read"):
        data.pie_bench(ours)[0]
    np.savez_compressed(path, mask=good)
    write_picture(ours / "exact" / f"{id}-truth.png", (64, 32))
    with pytest.raises(EditbookError, match=f"{id}.*differ in size"):
        data.pie_bench(ours)[0]


def spoilt():
    task = bench()[0]
    small = Image.new("RGB", (60, 60))
    return {
        "no tasks": ([], "no tasks"),
        "two of one id": ([task, task], f"Two tasks have the id '{task.id}'"),
        "no type": ([replace(task, type_id=None)], "type_id"),
        "no path": ([replace(task, image_path="")], "image_path"),
        "a path that leads out": ([replace(task, image_path="../../a.jpg")], "leads out"),
        "an unknown suffix": ([replace(task, image_path="a.bmp")], "suffix"),
        "an empty mask": ([replace(task, mask=task.mask * 0)], f"{task.id}.*mask"),
        "NaN in the mask": ([replace(task, mask=task.mask * np.nan)], f"{task.id}.*mask"),
        "another size of truth": ([replace(task, truth=small)], f"{task.id}.*differ in size"),
        **{f"the id {name!r}": ([replace(task, id=name)], "cannot be the id of a task") for name in NO_FILE_NAMES},
        "an odd size": (
            [replace(task, source_image=small, truth=None, mask=np.ones((60, 60), np.float32))],
            f"{task.id}.*60 x 60 pixels cannot be enlarged to 512 x 512",
        ),
    }


@pytest.mark.parametrize("case", spoilt())
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, case):
    tasks, message = spoilt()[case]
    with pytest.raises(EditbookError, match=message):
        data.export(tasks, tmp_path / "pocket")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_breaks_off_leaves_nothing(tmp_path):
    def broken():
        yield bench()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.export(broken(), tmp_path / "pocket")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("id", NO_FILE_NAMES)
def test_an_id_that_is_no_file_name_is_refused_when_it_is_read(pie_folder, id):
    """Files are called after it, so it could lead anywhere."""
    change_json(pie_folder / "mapping_file.json", lambda entries: entries.update({id: entries.pop("111000000000")}))
    with pytest.raises(EditbookError, match=r"mapping_file.json.*cannot be the id of a task") as caught:
        data.pie_bench(pie_folder)
    assert f"Entry {id!r}" in str(caught.value)


@pytest.mark.parametrize("tasks", [bench()[0], None, 3])
def test_what_is_no_collection_of_tasks_is_named(tmp_path, tasks):
    with pytest.raises(EditbookError, match=f"tasks should be several tasks.*not a {type(tasks).__name__}"):
        data.export(tasks, tmp_path / "pocket")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, -64, 64.0, "64"])
def test_a_size_that_is_none_is_named(tmp_path, size):
    with pytest.raises(EditbookError, match=f"size should be a whole number of pixels, 1 or more, not {size!r}"):
        data.export(bench()[:1], tmp_path / "pocket", size=size)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named_as_it_was_given(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "pocket"
    with pytest.raises(EditbookError) as caught:
        data.export(bench()[:1], folder)
    assert repr(str(folder)) in str(caught.value)
    assert ".new" not in str(caught.value)


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(EditbookError, match=r"not empty"):
        data.export(bench()[:1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    with pytest.raises(EditbookError, match=r"not empty"):
        data.export(bench()[:1], tmp_path / "kept.txt")


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(data.pie_bench(data.export(bench()[:1], tmp_path / "empty"))) == 1


def test_types_are_pie_benchs_own_numbers():
    assert [TYPES.index(name) for name in ("random", "change object", "change style")] == [0, 1, 9]
