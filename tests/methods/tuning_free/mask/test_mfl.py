"""MFL, as reconstructed: entities, the query's mask, candidates and the choice among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import editbook
from editbook import pocket
from editbook.clip_guidance import load_clip_distance
from editbook.errors import EditbookError
from editbook.masks import latent_mask
from editbook.methods.base import Request
from editbook.methods.tuning_free.mask.mfl import MFL
from editbook.perception.oracle import SceneOracle
from editbook.pocket.grammar import noun_phrase
from editbook.ranking import similarities

SCENE = pocket.Scene(
    "meadow",
    (pocket.Thing("car", "red", x=0.28, size=0.42), pocket.Thing("penguin", material="golden", x=0.74, size=0.42)),
)


class Halves:
    """A segmenter whose entities overlap and leave a strip."""

    def everything(self, image):
        masks = np.zeros((2, image.height, image.width), bool)
        masks[0, :, :40] = masks[1, :, 30:56] = True
        return masks, np.ones(2)


def request(model, **changes):
    made = Request(SCENE.image(64), SCENE.caption(), replace(SCENE, objects=SCENE.objects[1:]).caption())
    return replace(made, **changes)


def test_entities_share_no_pixel_and_cover_the_picture():
    entities = MFL(segmenter=Halves()).entities(SCENE.image(64))
    assert len(entities) == 3
    assert (sum(mask.astype(int) for mask in entities) == 1).all()
    assert len(MFL(segmenter=SceneOracle(SCENE)).entities(SCENE.image(64))) == 3


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_the_mask_is_a_union_of_entities_and_a_wide_margin_takes_all(margin, random_model):
    mask, entities, near = MFL(segmenter=Halves(), margin=margin, dilate=0).find(random_model, SCENE.image(64), "a car")
    assert mask.max() == 1
    for entity, value in zip(entities, near, strict=True):
        assert mask[entity].all() == (value >= near.max() - margin)
        assert mask[entity].all() or not mask[entity].any()


@pytest.mark.parametrize("index", [0, 1])
def test_with_exact_entities_a_query_gives_the_exact_mask(index, random_model):
    found, _, _ = MFL(segmenter=SceneOracle(SCENE), dilate=0).find(
        random_model, SCENE.image(64), noun_phrase(SCENE.objects[index])
    )
    assert np.array_equal(found > 0.5, SCENE.masks(64)[index] > 0.5)
    around, _, _ = MFL(segmenter=SceneOracle(SCENE), dilate=0, invert=True).find(
        random_model, SCENE.image(64), noun_phrase(SCENE.objects[index])
    )
    assert np.array_equal(around, 1 - found)


def test_pocket_clip_finds_phrases_far_better_than_chance_but_not_always():
    clip, right = load_clip_distance(), []
    for seed in range(60):
        scene = pocket.sample_held_out(seed)
        masks = scene.masks(64)
        if len(masks) != 2 or min((mask > 0.5).sum() for mask in masks) < 40:
            continue
        masks = [*masks, 1 - np.clip(sum(masks), 0, 1)]
        for index, thing in enumerate(scene.objects):
            near = similarities([scene.image(64)] * 3, noun_phrase(thing), clip, masks)
            right.append(near.argmax() == index)
    assert len(right) >= 16
    assert np.mean(right) > 0.6


def test_outside_the_mask_the_latent_is_the_sources(random_model64):
    last = []
    editbook.edit(
        random_model64,
        SCENE.image(64),
        MFL(segmenter=SceneOracle(SCENE), query="a red car", candidates=2, steps=3),
        target="a photo of a golden penguin in the meadow",
        callbacks=[last.append],
    )
    mask = latent_mask(
        MFL(segmenter=SceneOracle(SCENE)).find(random_model64, SCENE.image(64), "a red car")[0], last[-1].z_t
    )
    outside = (mask <= 0.5).expand_as(last[-1].z_next[:1])
    z_0 = random_model64.encode(SCENE.image(64))
    for row in last[-1].z_next:
        torch.testing.assert_close(row[None][outside], z_0[outside], atol=1e-9, rtol=0)


def test_the_choice_does_not_depend_on_the_order_and_one_candidate_is_the_choice(random_model):
    method = MFL(query="a red car", steps=2)
    mask = (SCENE.masks(64)[0] > 0.5).astype(np.float32)
    asked = request(random_model, pixel_mask=mask)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(4)]
    judged = method.assess(random_model, asked, "a red car", pictures)
    other = method.assess(random_model, asked, "a red car", pictures[::-1])
    assert [one.picture.tobytes() for one in judged] == [one.picture.tobytes() for one in other]
    assert [one.score for one in judged] == sorted((one.score for one in judged), reverse=True)
    for one in judged:
        assert one.score == pytest.approx(one.fits - 0.5 * one.old - 0.1 * one.seam)
    assert len(method.assess(random_model, asked, "a red car", pictures[:1])) == 1


def test_the_source_has_no_seam_against_itself(random_model):
    mask = (SCENE.masks(64)[0] > 0.5).astype(np.float32)
    asked = request(random_model, pixel_mask=mask)
    (same,) = MFL(query="a red car").assess(random_model, asked, "a red car", [SCENE.image(64)])
    assert same.seam == 0


def test_the_query_is_what_only_the_source_prompt_has(random_model):
    assert "red car" in MFL().asked(request(random_model))
    assert MFL(query="the dog").asked(request(random_model)) == "the dog"
    with pytest.raises(EditbookError, match="must know what to look for"):
        MFL().asked(request(random_model, source="", target="a fox"))


def test_a_segmenter_that_finds_nothing_is_named(random_model):
    class Blind:
        def everything(self, image):
            return np.zeros((0, image.height, image.width), bool), np.zeros(0)

    with pytest.raises(EditbookError, match="found no entity"):
        MFL(segmenter=Blind()).entities(SCENE.image(64))
    with pytest.raises(EditbookError, match="margin"):
        MFL(margin=-1.0)


def test_on_the_world_an_object_is_replaced_where_the_query_says(pocket_model):
    changed = replace(SCENE, objects=(replace(SCENE.objects[0], colour="blue"), SCENE.objects[1]))
    method = MFL(segmenter=SceneOracle(SCENE), query="a red car", candidates=3, steps=15)
    edit = editbook.edit(pocket_model, SCENE.image(64), method, target=changed.caption(), seed=1)
    inside = SCENE.masks(64)[0] > 0.5
    before, after = (np.asarray(image, float)[inside].mean(0) for image in (edit.source_image, edit.image))
    assert before[0] > before[2]
    assert after[2] > after[0]
    other = SCENE.masks(64)[1] > 0.5
    kept = [np.asarray(image, float)[other] for image in (edit.reconstruction, edit.image)]
    assert np.abs(kept[0] - kept[1]).mean() < 4
    assert len(edit.settings["scores"]) == 3
