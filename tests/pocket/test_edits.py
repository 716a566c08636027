"""Edits are pure: what is named changes, all else stays, and the mask says where."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.pocket import Change, Scene, Thing
from editbook.pocket.distribution import random_change, random_scene
from editbook.pocket.edits import move_object, remove_object, replace_object, set_accessory

CAT = Scene("meadow", (Thing("cat", x=0.3, size=0.4), Thing("apple", x=0.75, size=0.35)), seed=3)
LOCAL = [
    (Change("change object", "fox"), "word", "cat"),
    (Change("change colour", "red"), "colour", None),
    (Change("change material", "golden"), "material", None),
    (Change("change pose", "jumping"), "pose", "standing"),
    (Change("change content", "crown"), "accessory", None),
]


@pytest.mark.parametrize(("change", "field", "_"), LOCAL, ids=[change.kind for change, *_ in LOCAL])
def test_only_the_named_field_of_the_named_object_changes(change, field, _):
    after = change.apply(CAT)
    before, now = CAT.objects[0], after.objects[0]
    assert {f.name for f in fields(before) if getattr(before, f.name) != getattr(now, f.name)} == {field}
    assert getattr(now, field) == change.value
    assert after.objects[1] == CAT.objects[1]
    assert (after.background, after.style, after.seed) == (CAT.background, CAT.style, CAT.seed)


@pytest.mark.parametrize(("change", "field", "undone"), LOCAL, ids=[change.kind for change, *_ in LOCAL])
def test_undoing_gives_the_scene_back(change, field, undone):
    if change.kind in ("change colour", "change material"):
        from editbook.pocket.edits import set_colour

        assert set_colour(change.apply(CAT), 0, None) == CAT
    elif change.kind == "change content":
        assert set_accessory(change.apply(CAT), 0, None) == CAT
    else:
        assert Change(change.kind, undone).apply(change.apply(CAT)) == CAT


def test_adding_and_removing_are_inverse():
    one = remove_object(CAT, 1)
    assert Change("add object", CAT.objects[1]).apply(one) == CAT
    assert Change("drag", "left", 1).apply(Change("drag", "right", 1).apply(CAT)).objects[1].x == pytest.approx(0.75)


def test_a_move_moves_the_mask_by_as_many_pixels():
    before, after = CAT.masks(64)[0], move_object(CAT, 0, 4 / 64).masks(64)[0]
    assert np.abs(before[:, :-4] - after[:, 4:]).max() < 0.05


@pytest.mark.parametrize("seed", range(60))
def test_outside_the_mask_the_truth_is_the_source(seed):
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    change = random_change(rng, scene)
    size = (64, 48, 100)[seed % 3]
    mask = change.mask(scene, size)
    assert mask.dtype == np.float32
    assert mask.shape == (size, size)
    assert 0 <= mask.min() <= mask.max() <= 1
    if change.kind in ("change background", "change style"):
        return
    difference = np.abs(change.apply(scene).array(size).astype(int) - scene.array(size)).max(axis=2)
    assert difference[mask == 0].max(initial=0) <= 1
    assert difference.max() > 1  # the edit shows


def test_the_mask_of_a_new_place_spares_the_objects():
    mask = Change("change background", "snow").mask(CAT)
    for visible in CAT.masks():
        assert (mask + visible).max() <= 1 + 1e-6
    assert Change("change style", "mosaic").mask(CAT).min() == 1


@pytest.mark.parametrize(
    "change",
    [
        Change("change colours", "red"),
        Change("change colour", "beige"),
        Change("change object", "unicorn"),
        Change("change object", "fox", index=2),
        Change("remove object", index=-1),
        Change("add object", "apple"),
    ],
)
def test_edits_that_cannot_be_made_raise(change):
    with pytest.raises(EditbookError):
        change.apply(CAT)


def test_a_facing_is_dropped_where_the_new_object_has_none():
    horse = Scene("meadow", (Thing("horse", facing="right"),))
    assert replace_object(horse, 0, "dog").objects[0].facing == "right"
    assert replace_object(horse, 0, "apple").objects[0].facing is None
