"""What is drawn at random is the same everywhere, and training never sees what is kept for tests."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys

import numpy as np

from editbook.pocket import (
    BACKGROUNDS,
    COLOURS,
    MATERIALS,
    OBJECTS,
    STYLES,
    Scene,
    Thing,
    corpus,
    distribution,
    is_held_out,
    sample,
    sample_edit,
    sample_held_out,
)

# Checksums of the first hundred draws. A change here means that trained weights no longer belong to this world.
GOLDEN = {
    sample: "588e67b0e0e29757e9a2ad07c69d1cf8493946fbe341f38dac22e0cc298d4746",
    sample_held_out: "0fd922bd388d30732e3902a16541760f25bc8818bf75ab1d1c9ce85ddfad375f",
    sample_edit: "068da2f24c7499d5d79fce877c6e5b80720cd57546585a068f008a178789de02",
}


def checksum(lines):
    return hashlib.sha256("\n".join(map(repr, lines)).encode()).hexdigest()


def combinations():
    for word, look, place in itertools.product(OBJECTS, (None, *COLOURS, *MATERIALS), BACKGROUNDS):
        yield Scene(place, (Thing(word, look if look in COLOURS else None, look if look in MATERIALS else None),))


def test_draws_are_the_recorded_ones():
    assert {draw.__name__: checksum(draw(seed) for seed in range(100)) for draw in GOLDEN} == {
        draw.__name__: known for draw, known in GOLDEN.items()
    }


def test_a_fresh_process_with_another_hash_seed_draws_the_same():
    code = "from editbook.pocket import sample, sample_edit; print(sample(7)); print(sample_edit(7))"
    run = [sys.executable, "-c", code]
    answers = {
        subprocess.run(run, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert answers == {f"{sample(7)}\n{sample_edit(7)}\n"}


def test_training_scenes_are_never_held_out_and_test_scenes_always_are():
    for seed in range(1500):
        assert not is_held_out(sample(seed))
        assert is_held_out(sample_held_out(seed))


def test_neither_side_of_a_training_edit_is_held_out_and_they_differ():
    for seed in range(1500):
        before, after, instruction = sample_edit(seed)
        assert not is_held_out(before)
        assert not is_held_out(after)
        assert before != after
        assert instruction == instruction.strip() != ""


def test_one_combination_in_eight_is_held_out():
    flags = np.array([is_held_out(scene) for scene in combinations()])
    # Four standard deviations of as many fair draws.
    assert abs(flags.mean() - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / len(flags))


def test_no_word_look_or_place_is_held_out_altogether():
    scenes = [scene for scene in combinations() if not is_held_out(scene)]
    assert {scene.objects[0].word for scene in scenes} == set(OBJECTS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.objects[0].colour for scene in scenes} == {None, *COLOURS}
    assert {scene.objects[0].material for scene in scenes} == {None, *MATERIALS}


def test_being_held_out_depends_on_word_look_and_place_alone():
    for seed in range(200):
        scene = sample(seed)
        plain = [Thing(thing.word, thing.colour, thing.material) for thing in scene.objects]
        assert not is_held_out(Scene(scene.background, tuple(plain), "mosaic", seed=9))
        held = sample_held_out(seed)
        plain = [Thing(thing.word, thing.colour, thing.material) for thing in held.objects]
        assert is_held_out(Scene(held.background, tuple(plain), "mosaic", seed=9))


def test_an_empty_scene_is_not_held_out():
    assert not any(is_held_out(Scene(place)) for place in BACKGROUNDS)


def test_everything_is_drawn_sooner_or_later():
    scenes = [sample(seed) for seed in range(3000)]
    things = [thing for scene in scenes for thing in scene.objects]
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.style for scene in scenes} == set(STYLES)
    assert {len(scene.objects) for scene in scenes} == {0, 1, 2}
    assert {thing.word for thing in things} == set(OBJECTS)
    assert {thing.colour for thing in things} == {None, *COLOURS}
    assert {thing.material for thing in things} == {None, *MATERIALS}


def test_every_edit_type_is_drawn():
    kinds = set()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        kinds.add(distribution.random_change(rng, distribution.random_scene(rng)).kind)
    assert kinds == set(distribution.grammar.EDIT_TYPES)


def test_two_objects_stand_side_by_side_in_order():
    for seed in range(1000):
        objects = sample(seed).objects
        assert [thing.x for thing in objects] == sorted(thing.x for thing in objects)
        assert all(0 < thing.x < 1 and 0.5 < thing.y <= 0.92 for thing in objects)


def test_the_corpus_depends_on_its_seed_and_grows_at_its_end():
    short, long = corpus(50), corpus(80)
    assert long[: len(short)] == short
    assert len(long) == len(short) + 30
    assert corpus(50, seed=1) != short
