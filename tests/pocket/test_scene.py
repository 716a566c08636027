"""A scene checks what it is given, and its picture, masks and captions follow from it alone."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.pocket import PHRASINGS, Scene, Thing, sample


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"word": "foxx"}, "Did you mean 'fox'"),
        ({"word": "cat", "colour": "gren"}, "Did you mean 'green'"),
        ({"word": "cat", "material": "gold"}, "Did you mean 'golden'"),
        ({"word": "cat", "pose": "jump"}, "Did you mean 'jumping'"),
        ({"word": "cat", "accessory": "crwn"}, "Did you mean 'crown'"),
        ({"word": "cat", "colour": "red", "material": "ice"}, "one of the two"),
        ({"word": "ball", "pose": "upside-down"}, "cannot be upside-down"),
        ({"word": "cat", "facing": "left"}, "cannot face"),
        ({"word": "dog", "facing": "up"}, "cannot face"),
        ({"word": "car", "accessory": "hat"}, "no face"),
        ({"word": "cat", "size": 0}, "size must lie"),
        ({"word": "cat", "size": 1.01}, "size must lie"),
        ({"word": "cat", "size": float("nan")}, "size must lie"),
        ({"word": "cat", "x": float("inf")}, "must be finite"),
        ({"word": "cat", "y": float("nan")}, "must be finite"),
    ],
)
def test_impossible_things_raise_and_say_why(arguments, message):
    with pytest.raises(EditbookError, match=message):
        Thing(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"background": "medow"}, "Did you mean 'meadow'"),
        ({"background": "beach", "style": "pencil"}, "Unknown style"),
        ({"background": "beach", "objects": (Thing("cat"),) * 3}, "at most 2 objects, got 3"),
    ],
)
def test_impossible_scenes_raise_and_say_why(arguments, message):
    with pytest.raises(EditbookError, match=message):
        Scene(**arguments)


def test_scenes_cannot_be_changed_and_equal_ones_are_one_key():
    scene = sample(3)
    with pytest.raises(FrozenInstanceError):
        scene.background = "sea"
    assert {scene: 1}[replace(scene)] == 1
    assert replace(scene, seed=scene.seed + 1) != scene


@pytest.mark.parametrize("size", [16, 50, 64])
def test_picture_masks_and_image_have_the_asked_size(size):
    scene = Scene("beach", (Thing("cat", x=0.3), Thing("dog", x=0.7)))
    array, masks = scene.array(size), scene.masks(size)
    assert array.shape == (size, size, 3)
    assert array.dtype == np.uint8
    assert len(masks) == 2
    assert all(mask.shape == (size, size) and mask.dtype == np.float32 for mask in masks)
    assert scene.image(size).mode == "RGB"
    assert np.array_equal(np.asarray(scene.image(size)), array)


@pytest.mark.parametrize("size", [15, 0, -64, 64.0, "64"])
def test_sizes_that_cannot_be_drawn_raise(size):
    scene = Scene("beach", (Thing("cat"),))
    for draw in (scene.array, scene.masks):
        with pytest.raises(EditbookError, match="at least 16"):
            draw(size)


def test_an_empty_scene_has_no_masks_and_says_so():
    scene = Scene("sea")
    assert scene.masks() == []
    assert all("empty scene" in scene.caption(phrasing) for phrasing in range(PHRASINGS))


def test_a_picture_is_the_same_at_every_drawing_and_can_be_written_on():
    scene = sample(5)
    first = scene.array()
    kept = first.copy()
    first[:] = 0
    for mask in scene.masks():
        mask[:] = 0
    assert np.array_equal(scene.array(), kept)
    assert all(mask.max() > 0.5 for mask in scene.masks())


def test_the_scene_seed_varies_the_background_and_not_the_objects():
    scene = Scene("meadow", (Thing("cat", colour="red"),), seed=1)
    other = replace(scene, seed=2)
    inside = scene.masks()[0] == 1
    a, b = scene.array().astype(int), other.array().astype(int)
    assert np.abs(a - b)[~inside].max() > 20
    assert np.abs(a - b)[inside].max() <= 1
    assert np.array_equal(scene.masks(), other.masks())
