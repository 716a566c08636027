"""Masks of what a phrase names: `mask="segment:cat"`, with any detector and segmenter."""

from __future__ import annotations

import json

import numpy as np
import pytest

import editbook
from editbook.errors import EditbookError
from editbook.masks import find_mask, ground_and_segment

PROMPTS = {"source": "a photo of a cat on the beach", "target": "a photo of a fox on the beach"}


class Boxes:
    """Finds what it was told to, and fills the boxes."""

    def __init__(self, **found):
        self.found = found

    def ground(self, image, text):
        boxes = self.found.get(text, [])
        return [box for box, _ in boxes], [score for _, score in boxes], [text] * len(boxes)

    def segment(self, image, points=None, labels=None, boxes=None):
        masks = np.zeros((len(boxes), image.height, image.width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        return masks, np.ones(len(boxes))

    @property
    def options(self):
        return {"grounder": self, "segmenter": self}


@pytest.fixture
def tools():
    return Boxes(cat=[((4, 8, 20, 40), 0.4), ((40, 8, 60, 24), 0.9)])


def test_the_best_comes_first_with_its_mask(tools, picture):
    found = ground_and_segment(picture, "cat", tools, tools)
    assert found.scores.tolist() == [0.9, 0.4]
    assert found.boxes[0].tolist() == [40, 8, 60, 24]
    assert [int(mask.sum()) for mask in found.masks] == [20 * 16, 16 * 32]
    nothing = ground_and_segment(picture, "dog", tools, tools)
    assert nothing.boxes.shape == (0, 4)
    assert nothing.scores.shape == (0,)
    assert nothing.masks.shape == (0, 64, 64)


def test_the_threshold_is_one_of_scores(tools, random_model, picture):
    before = random_model.nfe
    both = find_mask(random_model, picture, "segment:cat", tools.options)
    assert both.name == "segment"
    assert both.mask.sum() == 20 * 16 + 16 * 32
    assert set(np.unique(both.heat)) == {np.float32(v) for v in (0.0, 0.4, 0.9)}
    sure = find_mask(random_model, picture, "segment: cat", {**tools.options, "threshold": 0.5, "dilate": 1})
    assert sure.mask.sum() == 22 * 18
    assert random_model.nfe == before


def test_editors_take_it_and_its_settings_can_be_saved(tools, random_model, picture):
    options = {**PROMPTS, "steps": 2, "mask": "segment:cat", "mask_options": tools.options}
    one = editbook.edit(random_model, picture, "diffedit", **options)
    assert one.mask.sum() == 5 * 4 + 4 * 8
    settings = json.loads(json.dumps(one.settings))
    assert settings["mask"] == "segment:cat"
    assert settings["mask_options"]["grounder"] == "an object of the class Boxes"


def test_nothing_found_and_no_phrase_raise(tools, random_model, picture):
    options = {**PROMPTS, "steps": 2, "mask_options": tools.options}
    with pytest.raises(EditbookError, match="'segment:dog' found nothing"):
        editbook.edit(random_model, picture, "diffedit", mask="segment:dog", **options)
    with pytest.raises(EditbookError, match="needs a phrase"):
        editbook.edit(random_model, picture, "diffedit", mask="segment", **options)


def test_a_model_that_is_not_here_is_named(tools, random_model, picture):
    both = {"grounder": tools, "segmenter": "no such"}
    for given, missing in (({"grounder": "no such"}, "Grounding DINO"), (both, "Segment Anything")):
        with pytest.raises(EditbookError, match=f"Could not load {missing}"):
            find_mask(random_model, picture, "segment:cat", given)
