"""EditVal's rules on boxes and readings that are known, and its protocol on rendered scenes with the shipped reader."""

from __future__ import annotations

import copy
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from editbook import pocket
from editbook.data import EDITVAL_TYPES, WORLD_TYPES, EditValEdit, editval_edit, editval_tasks
from editbook.errors import EditbookError
from editbook.metrics import clip_image_similarity, fid, load_reader, pocket_clip
from editbook.metrics.editval import (
    Detection,
    OwlViT,
    ReaderDetector,
    Verdict,
    editval,
    editval_detection,
    editval_reading,
    editval_report,
)
from editbook.perception.reader import Reading, ReadObject

BLANK = Image.new("RGB", (64, 64))


class Known:
    """A detector whose answers are given: one list for each call."""

    name = "known"

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, image, words):
        return [detection for detection in self.answers.pop(0) if detection.word in words]


def at(word, x, y=0.5, side=0.2, score=0.9):
    return Detection(word, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), score)


CAT, DOG = at("cat", 0.3), at("dog", 0.7)


@pytest.mark.parametrize(
    ("edit", "before", "after", "verdict"),
    [
        (EditValEdit("object_addition", "cat", "dog"), [CAT], [CAT, DOG], True),
        (EditValEdit("object_addition", "cat", "dog"), [CAT], [DOG], False),
        (EditValEdit("object_replacement", "cat", "dog"), [CAT], [DOG], True),
        (EditValEdit("object_replacement", "cat", "dog"), [CAT], [CAT, DOG], False),
        (EditValEdit("positional_addition", "cat", "dog", "right"), [CAT], [CAT, DOG], True),
        (EditValEdit("positional_addition", "cat", "dog", "left"), [CAT], [CAT, DOG], False),
        (EditValEdit("positional_addition", "cat", "dog", "below"), [CAT], [CAT, at("dog", 0.3, 0.8)], True),
        (EditValEdit("position_replacement", "cat", "right"), [CAT], [at("cat", 0.75)], True),
        (EditValEdit("position_replacement", "cat", "right"), [CAT], [at("cat", 0.5)], False),
        (EditValEdit("position_replacement", "cat", "left"), [CAT], [at("cat", 0.75)], False),
        (EditValEdit("position_replacement", "cat", "center"), [CAT], [at("cat", 0.5)], True),
        (EditValEdit("position_replacement", "cat", "center"), [CAT], [at("cat", 0.8)], False),
        (EditValEdit("position_replacement", "cat", "center"), [at("cat", 0.45)], [at("cat", 0.5)], False),
        (EditValEdit("size", "cat", "bigger"), [CAT], [at("cat", 0.3, side=0.3)], True),
        (EditValEdit("size", "cat", "smaller"), [CAT], [at("cat", 0.3, side=0.3)], False),
        (EditValEdit("size", "cat", "smaller"), [CAT], [CAT], False),
        (EditValEdit("size", "cat", "bigger"), [CAT], [CAT], False),
        (EditValEdit("alter_parts", "cat", "crown"), [CAT], [CAT, at("crown", 0.3, 0.42, 0.1)], True),
        (EditValEdit("alter_parts", "cat", "crown"), [CAT], [CAT, at("crown", 0.8, 0.4, 0.1)], False),
        (EditValEdit("position_replacement", "cat", "right"), [], [CAT], False),
    ],
)
def test_the_six_rules(edit, before, after, verdict):
    assert editval_detection(edit, BLANK, BLANK, Known(before, after)) is verdict


def test_the_most_confident_detection_counts():
    after = [at("cat", 0.8, score=0.9), at("cat", 0.3, score=0.2)]
    assert editval_detection(EditValEdit("position_replacement", "cat", "right"), BLANK, BLANK, Known([CAT], after))


def read(word="cat", look="own", pose="standing", facing="left", accessory=None, background="room", style="photo"):
    mask = np.zeros((64, 64), np.float32)
    mask[16:32, 32:64] = 1
    return Reading(background, style, (ReadObject(word, look, pose, facing, accessory, mask, 0.9),))


@pytest.mark.parametrize(
    ("edit", "reading"),
    [
        (EditValEdit("color", "cat", "red"), read(look="red")),
        (EditValEdit("texture", "cat", "golden"), read(look="golden")),
        (EditValEdit("viewpoint", "dog", "right"), read("dog", facing="right")),
        (EditValEdit("action", "cat", "jumping"), read(pose="jumping")),
        (EditValEdit("alter_parts", "cat", "crown"), read(accessory="crown")),
        (EditValEdit("style", "cat", "mosaic"), read(style="mosaic")),
        (EditValEdit("background", "cat", "beach"), read(background="beach")),
    ],
)
def test_a_reading_decides_what_people_decide_elsewhere(edit, reading):
    assert editval_reading(edit, reading)
    assert not editval_reading(edit, read())


def test_an_attribute_of_another_object_does_not_count():
    assert not editval_reading(EditValEdit("color", "cat", "red"), read(word="dog", look="red"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (EditValEdit("color", "cat", "turquoise"), "Unknown color 'turquoise'.*blue"),
        (EditValEdit("color", "giraffe", "red"), "Unknown object 'giraffe'"),
        (EditValEdit("texture", "cat", "red"), "Unknown texture 'red'.*golden"),
        (EditValEdit("style", "cat", "Cubism"), "Unknown style 'Cubism'.*mosaic"),
        (EditValEdit("background", "cat", "street"), "Unknown background 'street'"),
        (EditValEdit("viewpoint", "dog", "top"), "Unknown viewpoint 'top'.*left"),
        (EditValEdit("viewpoint", "apple", "left"), "apple cannot face 'left'"),
        (EditValEdit("action", "house", "jumping"), "house cannot be jumping"),
        (EditValEdit("alter_parts", "car", "hat"), "car has no face"),
        (EditValEdit("shape", "cat", "square"), "no change of shape"),
        (EditValEdit("size", "cat", "bigger"), "use editval_detection"),
    ],
)
def test_what_a_reading_cannot_decide_is_refused(edit, message):
    with pytest.raises(EditbookError, match=message):
        editval_reading(edit, read())


def test_boxes_of_a_reading_are_those_of_its_masks():
    detector = ReaderDetector(lambda pictures: [read()])  # type: ignore[arg-type]
    (found,) = detector(BLANK, ["cat", "dog"])
    assert found.box == (0.5, 0.25, 1.0, 0.5)
    assert detector(BLANK, ["dog"]) == []
    with pytest.raises(EditbookError, match="Unknown object or accessory 'giraffe'"):
        detector(BLANK, ["giraffe"])


def test_an_accessory_is_found_on_the_object_that_wears_it():
    detector = ReaderDetector(lambda pictures: [read(accessory="crown")])  # type: ignore[arg-type]
    assert editval_detection(EditValEdit("alter_parts", "cat", "crown"), BLANK, BLANK, detector)
    assert not editval_detection(EditValEdit("alter_parts", "cat", "hat"), BLANK, BLANK, detector)


def test_owlvit_loads_and_detects_with_random_weights(tmp_path, tokenizer):
    """The real loading code, on a tiny configuration; every box has a word of the query and lies where it says."""
    from transformers import (
        OwlViTConfig,
        OwlViTForObjectDetection,
        OwlViTImageProcessor,
        OwlViTProcessor,
    )

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer("a cat", padding="max_length", max_length=40)  # the backend remembers this, and saves it
    tokenizer.model_max_length = 16
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OwlViTConfig(
        text_config={**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 16, **ids},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    OwlViTForObjectDetection(config).save_pretrained(tmp_path)
    OwlViTProcessor(OwlViTImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(tmp_path)
    detector = OwlViT.load(tmp_path, threshold=0.0)
    assert detector.name == f"OWL-ViT {tmp_path}"
    found = detector(BLANK, ["cat", "dog"])
    assert len(found) == 16, "one box for each patch"
    assert {detection.word for detection in found} <= {"cat", "dog"}
    assert [detection.score for detection in found] == sorted((d.score for d in found), reverse=True)
    verdict = editval(EditValEdit("object_addition", "cat", "dog"), BLANK, BLANK, detector=detector)
    assert verdict.decided_by == detector.name


def test_owlvit_that_cannot_be_had_says_so(tmp_path):
    with pytest.raises(EditbookError, match="OWL-ViT"):
        OwlViT.load(tmp_path / "nowhere")


# From here on the shipped reader judges rendered scenes.

EACH = 10


@pytest.fixture(scope="module")
def tasks():
    return editval_tasks(EACH)


class Remembering:
    """The shipped reader, which reads each of these pictures once and all together."""

    def __init__(self, pictures):
        self.known = dict(zip(map(id, pictures), load_reader()(pictures), strict=True))

    def __call__(self, pictures):
        return [self.known[id(picture)] for picture in pictures]


class Thumbnails:
    """A tower whose features are small pictures."""

    name = "thumbnails"

    def images(self, pictures):
        small = [np.asarray(picture.resize((4, 4), Image.Resampling.BOX), np.float32).ravel() for picture in pictures]
        return torch.from_numpy(np.stack(small))


@pytest.fixture(scope="module")
def reader(tasks):
    return Remembering([picture for task in tasks for picture in (task.source_image, task.truth)])


@pytest.fixture(scope="module")
def reports(tasks, reader):
    """Of the exact truths, and of the copied sources."""
    return [
        editval_report(tasks, pictures, Thumbnails(), reader=reader)
        for pictures in ([task.truth for task in tasks], [task.source_image for task in tasks])
    ]


def test_exact_truths_succeed_and_untouched_sources_do_not(reports):
    for truth, copied in zip(reports[0].rows, reports[1].rows, strict=True):
        assert truth.success >= 0.9, truth
        assert copied.success == 0, copied


def test_the_truth_of_another_task_fails(tasks, reader):
    """The next one of the same type, unless it asks for the same thing."""
    wrong = [
        task.id
        for task, other in pairwise(tasks)
        if task.edit.kind == other.edit.kind
        and task.edit.to != other.edit.to
        and editval(task.edit, task.source_image, other.truth, reader=reader).success
    ]
    assert not wrong


OPPOSITES = {"left": "right", "right": "left", "bigger": "smaller", "smaller": "bigger"}


def test_the_opposite_of_what_was_done_fails(tasks, reader):
    for task in tasks:
        edit = task.edit
        if edit.kind in ("size", "viewpoint", "position_replacement"):
            edit = EditValEdit(edit.kind, edit.word, OPPOSITES[edit.to])
        elif edit.kind == "positional_addition":
            edit = EditValEdit(edit.kind, edit.word, edit.to, OPPOSITES[edit.side])
        else:
            continue
        assert not editval(edit, task.source_image, task.truth, reader=reader).success, task.id


def test_a_report_adds_up(tasks, reports):
    *rows, total = reports[0].rows
    assert tuple(row.kind for row in rows) == WORLD_TYPES
    assert total.edits == total.decided == len(tasks)
    assert total.successes == sum(row.successes for row in rows)
    assert total.similarity == pytest.approx(np.mean([row.similarity for row in rows]))
    tower = Thumbnails()
    assert rows[0].similarity == pytest.approx(
        np.mean([clip_image_similarity(task.truth, task.source_image, tower) for task in tasks[:EACH]]), abs=1e-5
    )
    assert reports[0].fid == fid([task.truth for task in tasks], [task.source_image for task in tasks], tower)
    assert reports[1].rows[-1].similarity == pytest.approx(1)
    assert reports[1].fid.value == pytest.approx(0, abs=1e-6)


def test_a_report_can_be_printed_and_saved(reports, tmp_path):
    table = reports[0].table()
    assert "| size | 10 |" in table
    assert "similarity (thumbnails)" in table
    assert "FID to the sources (thumbnails)" in table
    assert "pocket reader" in table
    saved = json.loads(reports[0].save(tmp_path / "report.json").read_text())
    assert saved["rows"][-1]["successes"] == reports[0].rows[-1].successes
    assert saved["similarity_tower"] == saved["fid"]["tower"] == "thumbnails"


def test_statue_with_sunglasses():
    """Detector and reading agree."""
    task, reader = pocket.task("statue-sunglasses"), load_reader()
    edit = editval_edit(task)
    for picture, success in ((task.truth, True), (task.source_image, False)):
        assert editval(edit, task.source_image, picture, reader=reader) == Verdict(success, "pocket reader")
        assert editval_reading(edit, reader([picture])[0]) is success


def test_a_pocket_drag_is_half_of_what_the_script_asks_for():
    task, reader = pocket.task("drag-car"), load_reader()
    edit = editval_edit(task)
    assert not editval(edit, task.source_image, task.truth, reader=reader).success
    assert editval(edit, task.source_image, task.truth, reader=reader, moved=0.1).success


def test_without_a_reader_seven_types_are_left_to_people():
    edits = [EditValEdit(kind, "cat", {"size": "bigger"}.get(kind, "left"), "left") for kind in EDITVAL_TYPES]
    decided = []
    for edit in edits:
        try:
            decided.append(editval(edit, BLANK, BLANK, detector=Known([], [])).decided_by)
        except EditbookError as error:
            assert "to people" in str(error)  # noqa: PT017
    assert decided == ["known"] * 6
    with pytest.raises(EditbookError, match=r"Nobody decides 'size'.*OwlViT.load"):
        editval(EditValEdit("size", "cat", "bigger"), BLANK, BLANK)


def test_a_report_says_what_it_leaves_to_people(tasks):
    chosen = [task for task in tasks if task.edit.kind == "color"][:2]
    report = editval_report(chosen, [task.truth for task in chosen], Thumbnails(), detector=Known())
    assert report.rows[0].decided == 0
    assert "| color | 2 | – | people |" in report.table()


def test_a_report_takes_tasks_of_pocketbench():
    chosen = pocket.bench().of_type("change style")[:2]
    truths = [task.truth for task in chosen]
    report = editval_report(chosen, truths, pocket_clip(), reader=load_reader(), fid_tower=Thumbnails())
    assert [row.kind for row in report.rows] == ["style", "all"]
    assert (report.similarity_tower, report.fid.tower) == ("pocket-CLIP", "thumbnails")


def test_pictures_that_do_not_belong_to_the_tasks_are_refused(tasks):
    with pytest.raises(EditbookError, match="edited holds 1 pictures for 2 tasks"):
        editval_report(tasks[:2], [BLANK], Thumbnails(), reader=load_reader())
    with pytest.raises(EditbookError, match="at least two pictures"):
        editval_report(tasks[:1], [BLANK], Thumbnails(), reader=load_reader())
