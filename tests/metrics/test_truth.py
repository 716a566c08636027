"""Edit success, judged on perfect readings: what a reader without errors would say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from editbook import pocket
from editbook.errors import EditbookError
from editbook.metrics.truth import edit_success
from editbook.perception.reader import OWN, Reading, ReadObject
from editbook.pocket import Change, Scene, Thing, make_task


def perfect(scene: Scene) -> Reading:
    objects = [
        ReadObject(
            thing.word,
            thing.colour or thing.material or OWN,
            thing.pose,
            thing.facing or "left",
            thing.accessory,
            mask,
            1.0,
        )
        for thing, mask in zip(scene.objects, scene.masks(), strict=True)
    ]
    return Reading(scene.background, scene.style, tuple(objects))


@pytest.mark.parametrize("name", pocket.NAMED)
def test_the_truth_succeeds_and_the_copied_source_does_not(name):
    task = pocket.task(name)
    verdict = edit_success(perfect(task.target_scene), task)
    assert verdict.success
    assert verdict.asked, "something was asked for"
    copied = edit_success(perfect(task.source_scene), task)
    assert copied.kept
    assert not copied.changed


@pytest.mark.parametrize("name", ["cat-to-fox", "golden-car", "add-apple", "drag-car"])
def test_a_changed_background_is_a_side_effect(name):
    task = pocket.task(name)
    verdict = edit_success(perfect(replace(task.target_scene, background="night")), task)
    assert verdict.changed
    assert not verdict.kept


def test_an_object_added_on_the_left_does_not_make_the_old_one_asked_for():
    scene = Scene("room", (Thing("cat", x=0.7, size=0.4),))
    task = make_task(scene, Change("add object", Thing("apple", x=0.25, size=0.38)))
    verdict = edit_success(perfect(task.target_scene), task)
    assert verdict.success
    assert "word of object 1 is apple" in verdict.asked
    assert "word of object 2 is cat" in verdict.rest


@pytest.mark.parametrize("kind", pocket.TYPES)
def test_a_copied_source_keeps_the_rest_and_does_nothing_else_and_the_truth_does_all(kind):
    for task in pocket.bench().of_type(kind):
        copied, exact = (edit_success(perfect(s), task) for s in (task.source_scene, task.target_scene))
        assert (copied.changed, copied.kept) == (False, True)
        assert (exact.changed, exact.kept) == (True, True)


def test_objects_are_known_by_their_words_where_one_is_missing_or_too_many():
    pair = Scene("room", (Thing("owl", x=0.25, size=0.38), Thing("cat", colour="red", x=0.7, size=0.4)))
    task = make_task(pair, Change("remove object", index=0))
    verdict = edit_success(perfect(pair), task)
    assert verdict.kept
    assert not verdict.changed
    blue = replace(pair, objects=(pair.objects[0], replace(pair.objects[1], colour="blue")))
    assert not edit_success(perfect(blue), task).rest["look of object 1 is red"]
    adding = make_task(replace(pair, objects=pair.objects[1:]), Change("add object", pair.objects[0]))
    assert edit_success(perfect(adding.source_scene), adding).rest["word of object 2 is cat"]


def test_nobody_asks_which_way_a_new_object_looks_unless_the_caption_says_so():
    burger = Scene("room", (Thing("hamburger"),))
    task = make_task(burger, Change("change object", "sheep"))
    (thing,) = task.target_scene.objects
    for facing in ("left", "right"):
        assert edit_success(perfect(replace(burger, objects=(replace(thing, facing=facing),))), task).success
    added = make_task(burger, Change("add object", Thing("sheep", facing="right", x=0.9, size=0.38)))
    assert "facing of object 2 is right" in edit_success(perfect(added.target_scene), added).asked


def test_a_drag_past_another_object_succeeds_where_the_truth_does():
    street = Scene("city", (Thing("cat", x=0.35, size=0.3), Thing("bus", x=0.52, size=0.3)))
    task = make_task(street, Change("drag", "right", 0))
    assert [thing.word for thing in task.target_scene.objects] == ["bus", "cat"]
    assert edit_success(perfect(task.target_scene), task).success
    assert not edit_success(perfect(street), task).changed


@pytest.mark.parametrize("reading", [None, [Reading("room", "photo", ())], "a picture"])
def test_what_is_no_reading_is_refused(reading):
    with pytest.raises(EditbookError, match="load_reader"):
        edit_success(reading, pocket.task("cat-to-fox"))


def test_an_empty_picture_fails_every_statement_about_objects():
    task = pocket.task("cat-to-fox")
    verdict = edit_success(replace(perfect(task.target_scene), objects=()), task)
    assert not verdict.changed
    assert not verdict.kept


def test_a_drag_that_stops_half_way_has_not_arrived():
    task = pocket.task("drag-car")
    (thing,) = task.source_scene.objects
    half = replace(task.source_scene, objects=(replace(thing, x=thing.x + 0.1),))
    assert not edit_success(perfect(half), task).changed


def test_real_data_has_no_scenes_to_compare_with():
    task = replace(pocket.task("cat-to-fox"), target_scene=None)
    with pytest.raises(EditbookError, match="scenes"):
        edit_success(Reading("room", "photo", ()), task)
