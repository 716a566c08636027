"""InstructEdit: every stage can be another, what they say is told, and the rest is DiffEdit."""

from __future__ import annotations

import json

import numpy as np
import pytest

import editbook
from editbook.errors import EditbookError
from editbook.masks import find_mask
from editbook.methods.tuning_free.mask.instructedit import InstructEdit
from editbook.metrics import mask_iou, truth_psnr
from editbook.pocket import bench, grammar

INSTRUCTION = "turn the cat into a fox"
SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a fox on the beach"


class Stages:
    """All four stages, which say what they are told to, and remember what they were asked."""

    def __init__(self, boxes=((4, 8, 20, 40), (40, 8, 60, 24)), scores=(0.6, 0.9)):
        self.boxes, self.scores = np.array(boxes, float).reshape(-1, 4), np.array(scores[: len(boxes)])
        self.asked = []

    def caption(self, image, prompt=None):
        self.asked.append("caption")
        return SOURCE

    def parse(self, instruction, caption=None):
        self.asked.append(("parse", instruction, caption))
        return "cat", caption or "a cat", TARGET if caption else "a fox"

    def ground(self, image, text):
        self.asked.append(("ground", text))
        return self.boxes, self.scores, [text] * len(self.boxes)

    def segment(self, image, points=None, labels=None, boxes=None):
        self.asked.append(("segment", np.asarray(boxes).tolist()))
        masks = np.zeros((len(boxes), image.height, image.width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, np.asarray(boxes, int), strict=True):
            mask[y0:y1, x0:x1] = True
        return masks, np.ones(len(boxes))

    @property
    def options(self):
        return {"captioner": self, "parser": self, "grounder": self, "segmenter": self}


@pytest.fixture
def stages():
    return Stages()


def edit(model, picture, stages, instruction=INSTRUCTION, **options):
    seen = []
    settings = {"steps": 6, "guidance_scale": 3.0, **stages.options, **options}
    one = editbook.edit(model, picture, "instructedit", instruction=instruction, **settings, callbacks=[seen.append])
    return one, seen[-1].z_next[-1]


def test_the_stages_are_asked_in_order_and_told_what_the_one_before_said(stages, picture):
    plan = InstructEdit(**stages.options).plan(picture, INSTRUCTION)
    assert stages.asked == [
        "caption",
        ("parse", INSTRUCTION, SOURCE),
        ("ground", "cat"),
        ("segment", [[40.0, 8.0, 60.0, 24.0], [4.0, 8.0, 20.0, 40.0]]),  # the best box first
    ]
    assert (plan.caption, plan.segment, plan.source, plan.target) == (SOURCE, "cat", SOURCE, TARGET)
    assert plan.boxes.tolist() == stages.boxes[::-1].tolist()
    assert plan.scores.tolist() == [0.9, 0.6]
    assert plan.mask.dtype == np.float32
    assert plan.mask.sum() == 20 * 16
    assert plan.mask[8:24, 40:60].all()


def test_the_rest_is_diffedit_encoded_half_way_under_the_source_prompt(random_model64, picture, stages):
    one, z = edit(random_model64, picture, stages)
    mask, seen = InstructEdit(**stages.options).plan(picture, INSTRUCTION).mask, []
    other = editbook.edit(
        random_model64,
        picture,
        "diffedit",
        source=SOURCE,
        target=TARGET,
        steps=6,
        guidance_scale=3.0,
        mask=mask,
        encode_with="source",
        encoding_ratio=0.5,
        callbacks=[seen.append],
    )
    assert one.image.tobytes() == other.image.tobytes()
    assert one.nfe == other.nfe == 3 * 4
    assert np.array_equal(one.mask, other.mask)
    inside = one.mask > 0
    z_0 = random_model64.encode(picture)[0]
    assert np.abs((z - z_0).numpy()[:, ~inside]).max() < 1e-12
    assert np.abs((z - z_0).numpy()[:, inside]).max() > 1e-2


def test_what_the_stages_said_is_told(random_model, picture, stages):
    one, _ = edit(random_model, picture, stages)
    settings = json.loads(json.dumps(one.settings))
    assert settings["plan"] == {
        "caption": SOURCE,
        "segment": "cat",
        "source": SOURCE,
        "target": TARGET,
        "boxes": stages.boxes[::-1].tolist(),
        "scores": [0.9, 0.6],
    }
    assert settings["instruction"] == INSTRUCTION
    assert settings["options"]["parser"] == "an object of the class Stages"


def test_first_is_one_box_and_merge_is_all(picture, stages):
    first, merged = (
        InstructEdit(**stages.options, mask_mode=mode).plan(picture, INSTRUCTION) for mode in ("first", "merge")
    )
    assert first.mask.sum() == 20 * 16
    assert merged.mask.sum() == 20 * 16 + 16 * 32
    assert np.array_equal(first.boxes, merged.boxes)
    wide = InstructEdit(**stages.options, dilate=2).plan(picture, INSTRUCTION)
    assert wide.mask.sum() == 24 * 20


def test_prompts_that_are_given_take_the_place_of_those_that_are_made(picture, stages):
    method = InstructEdit(**stages.options)
    plan = method.plan(picture, INSTRUCTION, source="a red cat", target="a red fox")
    assert (plan.caption, plan.source, plan.target) == ("a red cat", "a red cat", "a red fox")
    assert stages.asked[0] == ("parse", INSTRUCTION, "a red cat")
    plan = method.plan(picture, INSTRUCTION, target="a wolf")
    assert (plan.source, plan.target) == (SOURCE, "a wolf")


def test_without_a_caption_the_parser_is_on_its_own(picture, stages):
    plan = InstructEdit(**{**stages.options, "captioner": ""}).plan(picture, INSTRUCTION)
    assert stages.asked[0] == ("parse", INSTRUCTION, None)
    assert (plan.caption, plan.source, plan.target) == ("", "a cat", "a fox")


def test_a_mask_that_is_given_leaves_out_the_third_stage(random_model, picture, stages):
    one, _ = edit(random_model, picture, stages, mask=np.tri(64))
    assert [asked if isinstance(asked, str) else asked[0] for asked in stages.asked] == ["caption", "parse"]
    assert "boxes" not in one.settings["plan"]
    assert np.array_equal(one.mask, np.tri(16))
    stages.asked.clear()
    edit(random_model, picture, stages, mask=np.tri(64), source=SOURCE, target=TARGET)
    assert not stages.asked  # nothing is left to ask


def test_where_nothing_is_found_it_says_what_was_looked_for(random_model, picture):
    before = random_model.nfe
    with pytest.raises(EditbookError, match="looked for 'cat' in the picture and found nothing"):
        edit(random_model, picture, Stages(boxes=()))
    assert random_model.nfe == before


def test_feedback_changes_the_encoding_ratio_and_nothing_else(stages):
    method = InstructEdit(**stages.options, mask_mode="merge", steps=7)
    for answer, ratio in (
        ("Encoding ratio: 0.7", 0.7),
        ("encoding ratio: 1", 1.0),
        ("Sure! Encoding ratio: 0.35.", 0.35),
        ('"Encoding ratio": .8', 0.8),
    ):
        revised = method.revised(answer)
        assert revised.encoding_ratio == ratio
        assert (revised.mask_mode, revised.steps, revised.parser) == ("merge", 7, stages)
    for answer in ("make it stronger", "Encoding ratio: high"):
        with pytest.raises(EditbookError, match="No line 'Encoding ratio: x'"):
            method.revised(answer)
    with pytest.raises(EditbookError, match="fraction of the steps"):
        method.revised("Encoding ratio: 0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_mode": "all"}, "mask_mode of instructedit"),
        ({"parser": "no/such-parser"}, "Could not load a chat model"),
        ({"encoding_ratio": 0.0}, "fraction of the steps"),
        ({"encoding_ratio": 0.1}, "is no step"),
        ({"dilate": 1.5}, "whole number"),
        ({"instruction": ""}, "needs an instruction"),
        ({"target": "cat " * 60}, "limit is 40"),
    ],
)
def test_bad_options_raise_before_any_work(random_model, picture, stages, options, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        edit(random_model, picture, stages, **options)
    assert random_model.nfe == before


def test_without_a_picture_it_says_so(random_model, stages):
    with pytest.raises(EditbookError, match="needs a picture"):
        edit(random_model, None, stages)


class Oracle(Stages):
    """All four stages, read off the scene of a task."""

    def __init__(self, task):
        self.task, self.asked = task, []
        self.masks = [mask > 0.5 for mask in task.source_scene.masks(64)]

    def caption(self, image, prompt=None):
        return self.task.source_prompt

    def parse(self, instruction, caption=None):
        gone = [thing.word for thing in self.task.source_scene.objects if thing not in self.task.target_scene.objects]
        return gone[0], self.task.source_prompt, self.task.target_prompt

    def ground(self, image, text):
        words = [thing.word for thing in self.task.source_scene.objects]
        boxes = [box_of(mask) for word, mask in zip(words, self.masks, strict=True) if word == text]
        return np.array(boxes).reshape(-1, 4), np.ones(len(boxes)), [text] * len(boxes)

    def segment(self, image, points=None, labels=None, boxes=None):
        found = [mask for box in boxes for mask in self.masks if np.array_equal(box_of(mask), box)]
        return np.array(found), np.ones(len(found))


def box_of(mask):
    rows, columns = np.where(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)


def pairs(kind, n):
    """Tasks of a type that have two objects in the source picture."""
    tasks = (task for task in bench().of_type(kind) if len(task.source_scene.objects) == 2)
    return [task for task, _ in zip(tasks, range(n), strict=False)]


def test_on_the_world_a_segmenter_that_is_right_is_better_than_diffedits_mask_where_there_are_two_objects(pocket_model):
    scores = {"segmented": [], "diffedit": []}
    for task in [*pairs("change colour", 4), *pairs("remove object", 4)]:
        plan = InstructEdit(**Oracle(task).options).plan(task.source_image, task.instruction)
        found = find_mask(
            pocket_model, task.source_image, "diffedit", source=task.source_prompt, target=task.target_prompt
        )
        scores["segmented"].append(mask_iou(plan.mask, task.mask))
        scores["diffedit"].append(mask_iou(found.mask, task.mask))
    assert np.mean(scores["segmented"]) > np.mean(scores["diffedit"]) + 0.05


def test_on_the_world_the_other_object_stays_and_the_target_prompt_decides_what_a_removal_leaves(pocket_model):
    """A caption of what remains puts a second one of it into the hole; the mask is the same."""
    better = []
    for task in pairs("remove object", 3):
        inside = []
        empty = f"a photo of an empty scene {grammar.PLACES[task.source_scene.background]}"
        for target in ("", empty):
            options = {**Oracle(task).options, "steps": 10, "dilate": 2, "target": target}
            one = editbook.edit(
                pocket_model, task.source_image, "instructedit", instruction=task.instruction, **options
            )
            inside.append(truth_psnr(one.image, task).inside)
            assert truth_psnr(one.image, task).outside > 18
        better.append(inside[1] - inside[0])
    assert np.mean(better) > 4
