"""EditVal's rules, on boxes and readings that are known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from editbook.errors import EditbookError
from editbook.metrics.editval import (
    EDITVAL_TYPES,
    Detection,
    EditValEdit,
    OwlViT,
    ReaderDetector,
    editval_detection,
    editval_reading,
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
        (EditValEdit("viewpoint", "cat", "right"), read(facing="right")),
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


def test_every_type_is_decided_but_shape():
    for kind in EDITVAL_TYPES:
        edit = EditValEdit(kind, "cat", {"size": "bigger", "position_replacement": "left"}.get(kind, "x"), "left")
        decided = 0
        for decide in (
            lambda edit=edit: editval_detection(edit, BLANK, BLANK, Known([], [])),
            lambda edit=edit: editval_reading(edit, read()),
        ):
            try:
                decide()
                decided += 1
            except EditbookError:
                pass
        assert decided == (0 if kind == "shape" else 2 if kind == "alter_parts" else 1), kind


def test_boxes_of_a_reading_are_those_of_its_masks():
    detector = ReaderDetector(lambda pictures: [read()])  # type: ignore[arg-type]
    (found,) = detector(BLANK, ["cat", "dog"])
    assert found.box == (0.5, 0.25, 1.0, 0.5)
    assert detector(BLANK, ["dog"]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("colour", "cat", "red"), "Did you mean 'color'"),
        (("positional_addition", "cat", "dog"), "side"),
        (("position_replacement", "cat", "up"), "side"),
        (("size", "cat", "huge"), "size"),
    ],
)
def test_malformed_edits_are_refused(arguments, message):
    with pytest.raises(EditbookError, match=message):
        EditValEdit(*arguments)


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
    detector = OwlViT(str(tmp_path), threshold=0.0)
    found = detector(BLANK, ["cat", "dog"])
    assert len(found) == 16, "one box for each patch"
    assert {detection.word for detection in found} <= {"cat", "dog"}
    assert [detection.score for detection in found] == sorted((d.score for d in found), reverse=True)


def test_owlvit_that_cannot_be_had_says_so(tmp_path):
    with pytest.raises(EditbookError, match="OWL-ViT"):
        OwlViT(str(tmp_path / "nowhere"))
