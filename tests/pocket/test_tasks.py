"""Tasks: prompts, brackets and changed words agree with each other and with the scenes."""

from __future__ import annotations

import numpy as np
import pytest

from editbook import pocket
from editbook.errors import EditbookError
from editbook.pocket import NAMED, changed_words, make_task
from editbook.pocket.distribution import random_change, random_scene

TASKS = {name: pocket.task(name) for name in NAMED}


@pytest.mark.parametrize("name", NAMED)
def test_named_tasks_are_what_their_scenes_say(name):
    task = TASKS[name]
    assert task.source_prompt == task.source_scene.caption()
    assert task.target_prompt == task.target_scene.caption()
    assert np.array_equal(np.asarray(task.truth), task.target_scene.array())
    assert np.array_equal(np.asarray(task.source_image), task.source_scene.array())
    assert task.mask.max() == 1


@pytest.mark.parametrize("seed", range(40))
def test_brackets_hold_the_changed_words_and_come_off(seed):
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    task = make_task(scene, random_change(rng, scene), size=32)
    plain = (task.source_prompt, task.target_prompt)
    for bracketed, prompt, changed in zip(task.bracketed, plain, task.changed_words, strict=True):
        assert bracketed.replace("[", "").replace("]", "") == prompt
        inside = [part.split("]")[0] for part in bracketed.split("[")[1:]]
        assert " ".join(inside).split() == list(changed)


def test_changed_words():
    assert changed_words("a cat in the snow", "a fox in the snow") == (("cat",), ("fox",))
    assert changed_words("a car", "a golden car") == ((), ("golden",))
    assert changed_words("a car", "a car") == ((), ())


def test_the_same_task_at_512_pixels():
    large = pocket.task("cat-to-fox", size=512)
    assert large.truth.size == (512, 512)
    assert large.mask.shape == (512, 512)
    small = np.asarray(large.truth.resize((64, 64), 4), float)
    assert np.abs(small - np.asarray(TASKS["cat-to-fox"].truth, float)).mean() < 4


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(EditbookError, match="cat-to-fox"):
        pocket.task("cat-to-dog")
