"""The pocket grounder with its shipped weights, and the oracle: boxes of what a text names."""

from __future__ import annotations

import numpy as np
import pytest

from editbook.errors import EditbookError
from editbook.masks import ground_and_segment
from editbook.perception import SceneOracle, load_grounder
from editbook.perception.base import box_of, iou, phrases_of
from editbook.perception.oracle import levels
from editbook.pocket import OBJECTS, Scene, Thing, sample_held_out

PAIR = Scene("meadow", (Thing("cat", x=0.27, size=0.42), Thing("car", colour="red", x=0.73, size=0.42)))
TWO_CATS = Scene("beach", (Thing("cat", "red", x=0.25, size=0.4), Thing("cat", "blue", x=0.75, size=0.4)))
SCENES = [scene for seed in range(60) if (scene := sample_held_out(44_000_000 + seed)).objects]


def filled(box, side=64):
    full = np.zeros((side, side), bool)
    x0, y0, x1, y1 = np.round(box).astype(int)
    full[y0:y1, x0:x1] = True
    return full


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a cat", ["a cat"]),
        ("a cat. a car.", ["a cat", "a car"]),
        ("the cat, the car and a tree", ["the cat", "the car", "a tree"]),
        ("sandcastle", ["sandcastle"]),
    ],
)
def test_texts_are_split_into_phrases(text, phrases):
    assert phrases_of(text) == phrases


def test_the_oracle_reads_words_looks_and_what_is_worn():
    oracle = SceneOracle(TWO_CATS)
    boxes, scores, phrases = oracle.ground(TWO_CATS.image(), "cat. the blue cat. a green cat")
    left, right = (box_of(part[1]) for part in levels(TWO_CATS))
    assert boxes.tolist() == [list(left), list(right), list(right)]
    assert scores.tolist() == [1, 1, 1]
    assert phrases == ["cat", "cat", "the blue cat"]
    assert len(oracle.ground(TWO_CATS.image(), "dog")[0]) == 0
    worn = Scene("room", (Thing("cat", accessory="hat"),))
    (box,) = SceneOracle(worn).ground(worn.image(), "a hat")[0]
    assert tuple(box) == box_of(levels(worn)[0, 0])


def test_words_find_their_objects_and_absent_words_find_nothing():
    """Better than the real one at the second: it was trained on it, in a world of few words."""
    grounder, rng = load_grounder(), np.random.default_rng(0)
    hits, silent = [], []
    for scene in SCENES[:40]:
        for thing in scene.objects:
            boxes, _, _ = grounder.ground(scene.image(), f"a {thing.word}")
            exact = levels(scene)[scene.objects.index(thing), 1]
            hits.append(any(iou(filled(box), filled(box_of(exact))) > 0.5 for box in boxes))
        absent = [word for word in OBJECTS if word not in {thing.word for thing in scene.objects}]
        silent += [not len(grounder.ground(scene.image(), f"a {rng.choice(absent)}")[0]) for _ in range(2)]
    assert np.mean(hits) > 0.5
    assert np.mean(silent) > 0.5


def test_of_two_objects_the_named_one_is_found():
    boxes, _, phrases = load_grounder().ground(PAIR.image(), "cat, car")
    assert sorted(phrases) == ["car", "cat"]
    for box, phrase in zip(boxes, phrases, strict=True):
        exact = levels(PAIR)[("cat", "car").index(phrase), 1]
        assert iou(filled(box), filled(box_of(exact))) > 0.6


def test_boxes_are_in_the_pictures_own_pixels():
    (small,) = load_grounder().ground(PAIR.image(64), "car")[0]
    (large,) = load_grounder().ground(PAIR.image(192), "car")[0]
    assert np.abs(large / 3 - small).max() < 3


def test_a_phrase_that_is_too_long_is_refused():
    with pytest.raises(EditbookError, match="tokens"):
        load_grounder().ground(PAIR.image(), "cat " * 60)


def test_grounder_and_segmenter_by_default_are_the_pocket_ones():
    found = ground_and_segment(PAIR.image(), "the car")
    assert len(found.boxes) == 1
    assert iou(found.masks[0], levels(PAIR)[1, 1]) > 0.7
