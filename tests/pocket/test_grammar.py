"""Captions and instructions are correct English, tell everything that was chosen, and nothing twice."""

from __future__ import annotations

import itertools
import re

import pytest

from editbook.errors import EditbookError
from editbook.pocket import (
    ACCESSORIES,
    BACKGROUNDS,
    COLOURS,
    EDIT_TYPES,
    MATERIALS,
    OBJECTS,
    PHRASINGS,
    STYLES,
    Scene,
    Thing,
    corpus,
    grammar,
    sprites,
)

LOOKS = [(colour, None) for colour in (None, *COLOURS)] + [(None, material) for material in MATERIALS]
# Every word of this world that is spoken with a vowel first; none of them is an exception such as "hour" or "unit".
SPOKEN_VOWELS = {"orange", "ice", "elephant", "owl", "apple", "upside-down", "empty", "image"}


def things():
    """Every object in every colour, material, pose, direction and dress that it can take."""
    for word in OBJECTS:
        row = sprites.sprite(word)
        for look, pose in itertools.product(LOOKS, row.poses):
            for facing in (None, "left", "right") if row.facing else (None,):
                for accessory in (None, *ACCESSORIES) if row.eyes else (None,):
                    yield Thing(word, *look, pose, facing, accessory)


def wrong_articles(sentence):
    pairs = re.findall(r"\b(an?) ([\w-]+)", sentence)
    return [pair for pair in pairs if (pair[0] == "an") != (pair[1] in SPOKEN_VOWELS) or pair[1] == "sunglasses"]


def test_every_phrase_of_every_possible_thing_has_the_right_article():
    count = 0
    for thing in things():
        phrase = grammar.noun_phrase(thing)
        assert phrase.startswith(("a ", "an "))
        assert not wrong_articles(phrase), phrase
        count += 1
    assert count > 10_000


def test_a_phrase_tells_each_chosen_thing_once():
    for thing in things():
        words = grammar.noun_phrase(thing).split()
        chosen = [thing.word, thing.colour, thing.material, thing.facing, thing.accessory]
        chosen += [] if thing.pose == "standing" else [thing.pose]
        assert all(words.count(word) == 1 for word in chosen if word), words


def test_different_things_are_said_differently():
    phrases = [grammar.noun_phrase(thing) for thing in things()]
    assert len(set(phrases)) == len(phrases)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_captions_name_place_and_style_in_every_phrasing(background, style):
    for objects in ((), (Thing("owl"),), (Thing("apple", x=0.3), Thing("dog", "orange", x=0.7))):
        scene = Scene(background, objects, style)
        captions = [scene.caption(phrasing) for phrasing in range(PHRASINGS)]
        assert len(set(captions)) == PHRASINGS
        for text in captions:
            assert grammar.PLACES[background] in text
            assert all(grammar.noun_phrase(thing) in text for thing in objects)
            assert not wrong_articles(text), text
            assert text == " ".join(text.split())
            if style != "photo":
                assert style.removesuffix(" painting") in text


def test_canonical_captions_tell_scenes_apart():
    scenes = [
        Scene(background, objects, style)
        for background in BACKGROUNDS
        for style in STYLES
        for objects in ((), (Thing("cat"),), (Thing("cat", "red"),), (Thing("cat"), Thing("dog")))
    ]
    assert len({scene.caption() for scene in scenes}) == len(scenes)


def test_known_sentences():
    car = Scene("beach", (Thing("car", "red"),))
    assert car.caption() == "a photo of a red car on the beach"
    dog = Scene("night", (Thing("dog", None, "ice", "jumping", "left", "sunglasses"),), "pixel art")
    assert dog.caption() == "a pixel art picture of a jumping ice dog facing left wearing sunglasses at night"
    assert grammar.instruction("change object", "cat", "owl") == "turn the cat into an owl"
    assert grammar.instruction("change material", "cat", "ice", 1) == "turn the cat into an ice one"
    assert grammar.instruction("change content", "cat", "sunglasses", 2) == "give the cat sunglasses"


def test_every_sentence_of_the_corpus_has_the_right_articles_and_no_gap():
    for line in corpus(3000):
        assert line == " ".join(line.split())
        assert "{" not in line
        assert "None" not in line
        assert not wrong_articles(line), line


@pytest.mark.parametrize("kind", EDIT_TYPES)
def test_every_edit_type_has_three_different_instructions(kind):
    value = {"change background": "sea", "change style": "mosaic", "change pose": "lying"}.get(kind, "owl")
    assert len({grammar.instruction(kind, "cat", value, phrasing) for phrasing in range(3)}) == 3


@pytest.mark.parametrize("phrasing", [-1, PHRASINGS])
def test_unknown_phrasings_of_a_caption_raise(phrasing):
    with pytest.raises(EditbookError, match="phrasing must be 0 to 3"):
        Scene("sea").caption(phrasing)


@pytest.mark.parametrize(("kind", "phrasing"), [("change colours", 0), ("change colour", 3), ("change colour", -1)])
def test_unknown_instructions_raise(kind, phrasing):
    with pytest.raises(EditbookError):
        grammar.instruction(kind, "cat", "red", phrasing)
