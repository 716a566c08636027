"""Captioners: the form that the reader fills, the oracle, and the real model's code on random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from editbook.errors import EditbookError
from editbook.perception import Blip2Captioner, OracleCaptioner, PocketCaptioner, load_captioner
from editbook.perception.captioner import scene_of
from editbook.perception.parser import read_caption
from editbook.perception.reader import Reader, ReaderNetwork, Reading, ReadObject
from editbook.pocket import Scene, Thing, sample_held_out, task

SCENE = Scene("room", (Thing("cat", colour="red", x=0.3, size=0.4), Thing("apple", x=0.7, size=0.4)), "mosaic")


def read(word, look="own", pose="standing", facing="left", accessory=None):
    return ReadObject(word, look, pose, facing, accessory, np.ones((64, 64), np.float32), 1.0)


def test_a_reading_becomes_a_sentence_of_the_grammar():
    objects = (read("dog", "golden", "lying", "right", "crown"), read("apple", "red"))
    said = scene_of(Reading("beach", "watercolour", objects)).caption()
    assert said == (
        "a watercolour of a golden dog lying on its side facing right wearing a crown and a red apple on the beach"
    )
    assert scene_of(Reading("sea", "photo", ())).caption() == "a photo of an empty scene on the sea"


def test_what_no_scene_can_be_is_left_out():
    said = scene_of(Reading("city", "photo", (read("bus", pose="lying", facing="right", accessory="hat"),)))
    assert said.caption() == "a photo of a bus facing right in the city"
    assert scene_of(Reading("city", "photo", (read("apple", facing="right"),))).caption() == (
        "a photo of an apple in the city"
    )


def test_any_network_says_sentences_of_the_grammar():
    torch.manual_seed(0)
    captioner = PocketCaptioner(Reader(ReaderNetwork()))
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    for picture in (noise, SCENE.image(), SCENE.image(128)):
        assert read_caption(captioner.caption(picture)) is not None


def test_the_shipped_one_is_right_on_most_held_out_scenes_and_says_what_it_is():
    captioner = load_captioner()
    assert "stand-in for BLIP-2" in captioner.name
    scenes = [sample_held_out(50_000_000 + seed) for seed in range(120)]
    # "facing left" is the usual, and a caption may say it or not: the picture is the same.
    right = [captioner.caption(scene.image()) == scene.caption().replace(" facing left", "") for scene in scenes]
    assert np.mean(right) > 0.85
    assert captioner.caption(task("cat-to-fox").source_image) == "a photo of a cat in the meadow"


def test_a_prompt_is_refused_by_the_stand_in():
    with pytest.raises(EditbookError, match="answers no prompt"):
        load_captioner().caption(SCENE.image(), "what kind of picture is this?")


def test_the_oracle_reads_the_scene_and_not_the_picture():
    blank = np.zeros((64, 64, 3), np.uint8)
    assert OracleCaptioner(SCENE).caption(blank) == SCENE.caption()
    assert OracleCaptioner(SCENE, 2).caption(blank, "a prompt") == SCENE.caption(2)


class Words:
    """A processor and model of one sentence, with transformers' calls."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        self.asked = []

    def eval(self):
        return self

    def __call__(self, images, text=None, return_tensors="pt"):
        self.asked.append(text)
        return self

    def to(self, *_):
        return {"pixel_values": torch.zeros(1)}

    def generate(self, pixel_values, max_new_tokens, do_sample):
        assert not do_sample
        return torch.zeros(1, max_new_tokens)

    def batch_decode(self, rows, skip_special_tokens):
        return [" a cat on a sofa\n"] * len(rows)


def test_the_real_one_is_asked_with_and_without_a_prompt():
    words = Words()
    captioner = Blip2Captioner(words, words, "BLIP-2 echo")
    assert captioner.caption(SCENE.image()) == captioner.caption(SCENE.image(), "Question: what? Answer:")
    assert captioner.caption(SCENE.image()) == "a cat on a sofa"
    assert words.asked == [None, "Question: what? Answer:", None]


def test_an_unknown_name_is_told():
    with pytest.raises(EditbookError, match="BLIP-2"):
        load_captioner("no/such-model-here")
