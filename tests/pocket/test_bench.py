"""What PocketBench promises: counts, ids, edits that show and are well posed, and nothing that training has seen."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.pocket import ACCESSORIES, COLOURS, EDIT_TYPES, MATERIALS, OBJECTS, POSES, STYLES, Scene
from editbook.pocket.backgrounds import GROUND
from editbook.pocket.bench import (
    _ALIKE,
    _OWN_LOOKS,
    COUNTS,
    FIRST_SEED,
    FOLDERS,
    _plans,
    bench,
)
from editbook.pocket.benchmark import TYPES, Benchmark, BenchTask, Entry
from editbook.pocket.distribution import is_held_out, random_scene, sample, sample_edit
from editbook.pocket.sprites import dressed, sprite
from editbook.pocket.tasks import changed_words

PLANS = _plans()
BOTH = [(plan, (plan.scene, plan.change.apply(plan.scene))) for plan in PLANS]


@pytest.fixture(scope="module")
def tasks():
    """Every seventh task, so ten of each small type."""
    return list(bench()[::7])


def combinations(scene: Scene) -> set[tuple[str, str | None, str]]:
    return {(thing.word, thing.colour or thing.material, scene.background) for thing in scene.objects}


def test_it_has_pie_benchs_types_and_counts():
    assert len(bench()) == 700
    assert Counter(plan.type_id for plan in PLANS) == dict(enumerate(COUNTS))
    assert TYPES[1:] == tuple(kind for kind in EDIT_TYPES if kind != "drag")
    assert all(plan.change.kind == TYPES[plan.type_id] for plan in PLANS if plan.type_id)
    kinds = Counter(plan.change.kind for plan in PLANS if plan.type_id == 0)
    assert set(kinds) == set(TYPES[1:])
    assert max(kinds.values()) - min(kinds.values()) <= 1, "the random ones take turns"


def test_it_never_changes_unnoticed():
    """Results on another PocketBench could not be compared; a change of this sum has to be a decision."""
    said = "\n".join(repr((p.id, *scenes, p.change.instruction(p.scene, p.phrasing))) for p, scenes in BOTH)
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "e7541de2569758e8"


def test_ids_and_paths_are_pie_benchs():
    assert len(set(bench().ids)) == 700
    categories = {"animal": "1", "human": "2", "indoor": "3", "outdoor": "4"}
    for plan in PLANS:
        *folders, name = plan.image_path.split("/")
        assert name == f"{plan.id}.jpg"
        assert len(plan.id) == 12
        assert folders[0] == FOLDERS[plan.type_id]
        assert folders[0].endswith(f"_{COUNTS[plan.type_id]}")
        if plan.type_id == 0:
            assert plan.id.startswith("000")
            continue
        source, category = folders[1], folders[2]
        assert source == ("2_natural" if plan.scene.style == "photo" else "1_artificial")
        thing = plan.scene.objects[plan.change.index]
        kind = {"animal": "animal", "character": "human"}.get(sprite(thing.word).kind)
        assert category.split("_")[1] == kind or (kind is None and category.split("_")[1] in ("indoor", "outdoor"))
        assert (category == "3_indoor") == (kind is None and plan.scene.background == "room")
        assert plan.id[:3] == f"{plan.type_id}{source[0]}{categories[category.split('_')[1]]}"


def test_every_object_before_and_after_is_a_held_out_combination():
    for plan, scenes in BOTH:
        for scene in scenes:
            for thing in scene.objects:
                assert is_held_out(Scene(scene.background, (thing,))), plan.id
            assert scene.objects or plan.change.kind == "remove object"


def test_no_scene_can_be_a_training_scene():
    """Not even the empty one: the largest seed that the training sampler can draw is below the smallest one here."""

    class Largest:
        def integers(self, high):
            return high - 1

        def random(self):
            return 0.5

        def uniform(self, low, high):
            return high

    assert random_scene(Largest()).seed == FIRST_SEED - 1
    assert min(scene.seed for _, scenes in BOTH for scene in scenes) >= FIRST_SEED


def test_training_never_shows_a_combination_of_the_benchmark():
    trained = [sample(number) for number in range(3500)]
    trained += [scene for number in range(1000) for scene in sample_edit(number)[:2]]
    seen = set().union(*map(combinations, trained))
    asked = set().union(*(combinations(scene) for _, scenes in BOTH for scene in scenes))
    assert len(seen) > 2000, "or this says little"
    assert not seen & asked
    assert max(scene.seed for scene in trained) < FIRST_SEED


def test_prompts_differ_and_no_two_tasks_share_them():
    pairs = [tuple(scene.caption() for scene in scenes) for _, scenes in BOTH]
    assert len(set(pairs)) == 700
    assert all(any(changed_words(*pair)) for pair in pairs)


def test_an_edit_changes_what_its_type_says_and_nothing_else():
    expected = {
        "change object": {"word"},
        "change colour": {"colour", "material"},
        "change material": {"colour", "material"},
        "change pose": {"pose"},
        "change content": {"accessory"},
    }
    for plan, (before, after) in BOTH:
        whole = {field.name for field in fields(Scene) if getattr(before, field.name) != getattr(after, field.name)}
        kind = plan.change.kind
        if kind in ("change background", "change style"):
            assert whole == {kind.removeprefix("change ")}
            continue
        assert whole == {"objects"}
        if kind == "add object":
            assert set(before.objects) < set(after.objects)
        elif kind == "remove object":
            assert set(after.objects) < set(before.objects)
        else:
            old, new = (scene.objects[plan.change.index] for scene in (before, after))
            different = {field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)}
            assert different
            assert different <= expected[kind], plan.id


def test_the_instruction_can_name_its_object():
    for plan, scenes in BOTH:
        for scene in scenes:
            words = [thing.word for thing in scene.objects]
            assert len(words) == len(set(words)), plan.id


def test_objects_are_large_and_inside_the_picture():
    for plan, scenes in BOTH:
        for scene in scenes:
            for thing in scene.objects:
                assert thing.size >= 0.36, plan.id
                assert 0 < thing.x - thing.size / 2 < thing.x + thing.size / 2 < 1, plan.id
                assert thing.y >= max(GROUND.values()), "it stands on the ground, wherever it is taken"


def test_of_two_objects_neither_covers_the_other():
    for plan in [plan for plan in PLANS if len(plan.scene.objects) == 2][::4]:
        for thing, mask in zip(plan.scene.objects, plan.scene.masks(), strict=True):
            (alone,) = Scene(plan.scene.background, (thing,)).masks()
            assert mask.sum() > 0.93 * alone.sum(), plan.id


def test_layouts_and_styles_come_as_often_as_promised():
    for type_id in range(1, 10):
        plans = [plan for plan in PLANS if plan.type_id == type_id]
        pairs = sum(len(plan.scene.objects) == 2 for plan in plans) / len(plans)
        assert pairs == {"add object": 0, "remove object": 0.4, "change content": 0}.get(TYPES[type_id], 0.2)
        assert sum(plan.scene.style != "photo" for plan in plans) / len(plans) == 0.2


def test_the_tasks_of_a_type_vary():
    for type_id in range(1, 10):
        scenes = [plan.scene for plan in PLANS if plan.type_id == type_id]
        assert len({scene.background for scene in scenes}) >= 8
        words = Counter(thing.word for scene in scenes for thing in scene.objects)
        assert len(words) >= 18
        assert max(words.values()) <= 0.2 * len(scenes)
    values = {kind: {plan.change.value for plan in PLANS if plan.change.kind == kind} for kind in TYPES[1:]}
    assert values["change colour"] == set(COLOURS)
    assert values["change material"] == set(MATERIALS)
    assert values["change background"] == set(GROUND)
    assert values["change style"] == set(STYLES)
    assert values["change pose"] == set(POSES)
    assert values["change content"] == {*ACCESSORIES, None}
    assert len(values["change object"]) > 0.75 * len(OBJECTS)
    assert {plan.scene.style for plan in PLANS} == set(STYLES)
    assert {plan.scene.background for plan in PLANS} == set(GROUND)


def test_no_edit_of_the_look_leads_to_one_that_is_alike():
    for plan, scenes in BOTH:
        if plan.change.kind in ("change colour", "change material"):
            before, after = (scene.objects[plan.change.index] for scene in scenes)
            old, new = (thing.colour or thing.material for thing in (before, after))
            assert {old, new} not in _ALIKE, plan.id
            assert old or new not in _OWN_LOOKS.get(before.word, ()), plan.id
            assert plan.scene.style != "pencil sketch", "which has no colours"


def check_that_it_shows(task: BenchTask) -> None:
    source, truth = (np.asarray(image, np.int16) for image in (task.source_image, task.truth))
    change = np.abs(truth - source).max(axis=2)
    assert (change > 24).sum() >= 30, f"{task.id}: {task.source_prompt} -> {task.target_prompt}"
    if task.edit_type != "change background":  # its soft edges are in the mask, and the light on the objects is not
        assert change[task.mask == 0].max(initial=0) <= 1, task.id


def test_every_edit_shows_inside_its_mask(tasks):
    for task in tasks:
        check_that_it_shows(task)


@pytest.mark.slow
def test_every_single_edit_shows_inside_its_mask():
    for task in bench():
        check_that_it_shows(task)


def test_a_task_is_what_its_scenes_say(tasks):
    for task in tasks:
        assert task.source_image.size == task.truth.size == task.mask.shape == (64, 64)
        assert task.mask.dtype == np.float32
        assert task.source_prompt == task.source_scene.caption()
        assert task.target_prompt == task.target_scene.caption()
        assert np.array_equal(task.truth, task.target_scene.array())
        plain = [prompt.replace("[", "").replace("]", "") for prompt in task.bracketed]
        assert plain == [task.source_prompt, task.target_prompt]
        assert "[" in "".join(task.bracketed)
        if task.blended_words:
            assert task.blended_words[0] in task.source_prompt.split()
            assert task.blended_words[1] in task.target_prompt.split()
        assert (task.blended_words is None) == (
            task.edit_type in ("add object", "remove object", "change background", "change style")
        )


def test_taking_something_off_names_it():
    plan = next(plan for plan in PLANS if plan.change.kind == "change content" and plan.change.value is None)
    worn = plan.scene.objects[plan.change.index].accessory
    assert all(worn in plan.change.instruction(plan.scene, phrasing).split() for phrasing in range(3))


def test_looks_that_are_alike_are_listed():
    """Whatever an edit of the look may lead to is another picture of the object."""

    def painted(word, look):
        colour, material = (look if look in names else None for names in (COLOURS, MATERIALS))
        return np.asarray(dressed(word, 32, colour, material, 0, None), np.float32)

    between: dict[tuple[str, str], list[float]] = {}
    for word in OBJECTS:
        own = painted(word, None)
        opaque = own[..., 3] > 128
        looks = {look: painted(word, look)[opaque][:, :3] for look in (*COLOURS, *MATERIALS)}
        for look, pixels in looks.items():
            if look not in _OWN_LOOKS.get(word, ()):
                assert np.abs(pixels - own[opaque][:, :3]).mean() > 30, (word, look)
            for other in looks:
                if other < look:
                    between.setdefault((other, look), []).append(float(np.abs(pixels - looks[other]).mean()))
    for pair, differences in between.items():
        assert set(pair) in _ALIKE or np.mean(differences) > 33, pair


def test_a_task_is_the_same_each_time_and_at_each_size():
    small, large = bench()[123], bench(size=128)[123]
    assert np.array_equal(small.source_image, bench().task(small.id).source_image)
    assert small.source_scene == large.source_scene
    assert large.source_image.size == large.truth.size == large.mask.shape == (128, 128)


def test_no_task_is_made_before_it_is_asked_for():
    made = []

    def entry(number):
        return Entry(f"task-{number}", 1 + number % 2, lambda: made.append(number))

    tasks = Benchmark("test", [entry(number) for number in range(6)])
    assert len(tasks) == 6
    assert tasks.ids[2] == "task-2"
    half = tasks[1:4]
    assert isinstance(half, Benchmark)
    assert tasks.of_type("add object").ids == ("task-1", "task-3", "task-5")
    assert made == []
    half[-1]
    assert made == [3]
    next(iter(half))
    assert made == [3, 1]
    with pytest.raises(IndexError):
        tasks[6]


def test_unknown_names_suggest_the_nearest():
    tasks = bench()
    with pytest.raises(EditbookError, match=r"Did you mean 'change colour'"):
        tasks.of_type("change color")
    with pytest.raises(EditbookError, match=r"Did you mean '11[0-9]{10}'"):
        tasks.task("11100000000")
    with pytest.raises(EditbookError, match=r"has no tasks of type 'random'"):
        tasks.of_type("add object").of_type("random")


def test_it_needs_no_torch():
    code = "import sys; from editbook.pocket.bench import bench; bench()[0]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
