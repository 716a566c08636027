"""How the reader is measured, with answers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from editbook.perception.reader import HEADS, OWN, SCENE_HEADS
from editbook.pocket import sample_held_out
from editbook.pocket.styles import COLOURLESS
from editbook.training.reader import labels, measure_reader

COUNT = 64
SCENES = [sample_held_out(40_000_000 + seed) for seed in range(COUNT)]


class Told:
    """In place of a network: the right answers, but for the looks that it is told to mistake for another."""

    def __init__(self, mistaken=(), other=OWN):
        self.mistaken, self.other = mistaken, other

    def __call__(self, pictures):
        assert len(pictures) == COUNT
        answers = {
            name: torch.stack([torch.from_numpy(labels(scene)[name]).clamp(min=0) for scene in SCENES])
            for name in (*HEADS, *SCENE_HEADS)
        }
        wrong = torch.isin(answers["look"], torch.tensor([HEADS["look"].index(look) for look in self.mistaken]))
        answers["look"][wrong] = HEADS["look"].index(self.other)
        logits = {name: functional.one_hot(said, 60).float() for name, said in answers.items()}
        masks = torch.full((COUNT, 3, 64, 64), 0.5)
        for row, scene in enumerate(SCENES):
            masks[row, 1:] = 0
            for slot, mask in enumerate(scene.masks()):
                masks[row, 1 + slot] = torch.from_numpy(mask)
        return logits | {"masks": masks}


def looks(kind):
    """Of what colour, or of what material, the objects of these scenes are."""
    shown = [thing for scene in SCENES if scene.style not in COLOURLESS for thing in scene.objects]
    return [getattr(thing, kind) for thing in shown if getattr(thing, kind)]


def test_right_answers_are_measured_as_such():
    measured = measure_reader(Told(), COUNT)
    assert measured.pop("mask_iou") > 0.99
    assert set(measured) == {*HEADS, "colour", "material", *SCENE_HEADS, "objects"}
    assert set(measured.values()) == {1.0}


@pytest.mark.parametrize(("kind", "other_kind"), [("colour", "material"), ("material", "colour")])
def test_colours_and_materials_are_measured_apart(kind, other_kind):
    mistaken = looks(kind)[0]
    measured = measure_reader(Told([mistaken]), COUNT)
    assert measured[kind] == pytest.approx(np.mean([look != mistaken for look in looks(kind)]), abs=1e-4)
    assert measured[other_kind] == 1
    assert measured[kind] < measured["look"] < 1, "objects in their own colours count for looks only"


def test_what_no_scene_asks_is_left_out(monkeypatch):
    plain = [scene for scene in SCENES if not any(thing.material for thing in scene.objects)]
    monkeypatch.setattr("editbook.training.reader.sample_held_out", lambda seed: plain[seed % len(plain)])
    measured = measure_reader(Told(), COUNT)
    assert "material" not in measured
    assert "colour" in measured
