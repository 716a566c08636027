"""Masks by name, for every editor alike."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

import editbook
from editbook.errors import EditbookError
from editbook.masks import MASKS, find_mask
from editbook.pocket import bench

PROMPTS = {"source": "a photo of a cat on the beach", "target": "a photo of a fox on the beach"}


def overlap(mask, exact):
    inside = mask > 0.5
    return (inside & (exact > 0.5)).sum() / (inside | (exact > 0.5)).sum()


def test_an_array_is_taken_as_it_is(random_model, picture):
    mask = np.random.default_rng(0).random((64, 64), np.float32)
    found = find_mask(random_model, picture, mask)
    assert found.name == "array"
    assert np.array_equal(found.mask, mask)


def test_options_shape_arrays_and_found_maps_alike(random_model, picture):
    mask = np.zeros((64, 64), np.float32)
    mask[30, 30] = 0.4
    assert not find_mask(random_model, picture, mask, {"threshold": 0.5}).mask.any()
    assert find_mask(random_model, picture, mask, {"threshold": 0.3, "dilate": 1}).mask.sum() == 9
    plain = find_mask(random_model, picture, "diffedit", **PROMPTS)
    wide = find_mask(random_model, picture, "diffedit", {"dilate": 2}, **PROMPTS)
    assert np.array_equal(plain.heat, wide.heat)
    assert (wide.mask >= plain.mask).all()
    assert wide.mask.sum() > plain.mask.sum()
    assert np.array_equal(plain.mask, np.kron(plain.heat > 0.5, np.ones((4, 4))))


def test_every_source_of_masks_costs_what_it_says(random_model, picture):
    before = random_model.nfe
    find_mask(random_model, picture, "diffedit", {"maps": 3}, **PROMPTS)
    assert random_model.nfe - before == 6
    find_mask(random_model, picture, "attention:cat", {"steps": 5}, **PROMPTS)
    assert random_model.nfe - before == 11


def test_diffedit_finds_nothing_where_texts_are_equal(random_model, picture):
    same = {"source": PROMPTS["source"], "target": PROMPTS["source"]}
    assert not find_mask(random_model, picture, "diffedit", **same).heat.any()
    with pytest.raises(EditbookError, match="found nothing"):
        editbook.edit(random_model, picture, "img2img", **same, steps=2, mask="diffedit")


@pytest.mark.parametrize("method", ["img2img", "prompt-to-prompt", "masactrl"])
def test_every_editor_takes_any_source_of_masks(method, random_model, picture):
    for mask in ("diffedit", "attention:cat"):
        given = find_mask(random_model, picture, mask, **PROMPTS, seed=3)
        named = editbook.edit(random_model, picture, method, **PROMPTS, steps=3, seed=3, mask=mask)
        array = editbook.edit(random_model, picture, method, **PROMPTS, steps=3, seed=3, mask=given.mask)
        assert named.image.tobytes() == array.image.tobytes()
        assert np.array_equal(named.mask, given.mask.reshape(16, 4, 16, 4).max((1, 3)))
        assert named.nfe > array.nfe
        assert named.settings["mask"] == mask


@pytest.mark.parametrize(
    ("mask", "options", "known", "message"),
    [
        ("difedit", {}, PROMPTS, "Did you mean 'diffedit'"),
        ("diffedit:cat", {}, PROMPTS, "takes nothing behind a colon"),
        ("attention", {}, PROMPTS, "needs a word"),
        ("attention:dog", {}, PROMPTS, "dog"),
        ("attention:cat", {"levels": 0}, PROMPTS, "levels"),
        ("diffedit", {"map": 3}, PROMPTS, "Did you mean 'maps'"),
        ("diffedit", {"maps": 0}, PROMPTS, "at least 1"),
        ("diffedit", {"maps": 2.5}, PROMPTS, "whole number"),
        ("diffedit", {"strength": 1.0}, PROMPTS, "between 0 and 1"),
        ("diffedit", {"clamp_ratio": 1.0}, PROMPTS, "above 1"),
        ("diffedit", {"reference": "sauce"}, PROMPTS, "Did you mean 'source'"),
        ("diffedit", {"reference": "source"}, {"target": "a fox"}, "needs a source prompt"),
        ("diffedit", {}, {}, "give a target prompt"),
        (np.ones((64, 128)), {}, {}, "same proportions"),
        (np.ones((64, 64)), {"maps": 3}, {}, "option of the mask 'array'"),
        (np.full((64, 64), 255), {}, {}, "divide"),
    ],
)
def test_bad_masks_raise(mask, options, known, message, random_model, picture):
    with pytest.raises(EditbookError, match=message):
        find_mask(random_model, picture, mask, options, **known)


def test_what_an_edit_says_about_masks(random_model, picture):
    with pytest.raises(EditbookError, match="give a mask, too"):
        editbook.edit(random_model, picture, "img2img", **PROMPTS, mask_options={"dilate": 1})
    with pytest.raises(EditbookError, match="looked for in a picture"):
        editbook.edit(random_model, None, "masactrl", **PROMPTS, mask="diffedit")
    wide = Image.new("RGB", (128, 64), "red")
    with pytest.raises(EditbookError, match="same proportions"):
        editbook.edit(random_model, wide, "img2img", **PROMPTS, mask=np.ones((64, 64)))


def test_sources_have_documented_options():
    for name, source in MASKS.items():
        assert source.name == name
        assert source.__doc__
        assert all(f"{option}:" in source.__doc__ for option in (item.name for item in dataclasses.fields(source)))


def test_on_the_world_masks_lie_on_the_object_that_changes(pocket_model):
    tasks = [task for task in bench().of_type("change colour")[:6] if task.blended_words]
    assert len(tasks) >= 4
    scores = {"diffedit": [], "attention": [], "elsewhere": []}
    for task in tasks:
        known = {"source": task.source_prompt, "target": task.target_prompt}
        found = find_mask(pocket_model, task.source_image, "diffedit", **known).mask
        scores["diffedit"].append(overlap(found, task.mask))
        scores["elsewhere"].append(overlap(np.roll(found, 32, 1), task.mask))
        word = task.blended_words[0]
        found = find_mask(pocket_model, task.source_image, f"attention:{word}", {"steps": 5}, **known).mask
        scores["attention"].append(overlap(found, task.mask))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    assert means["diffedit"] > 0.6
    assert means["attention"] > 0.5
    assert means["elsewhere"] < 0.3
