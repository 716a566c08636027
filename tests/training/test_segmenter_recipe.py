"""The segmenter's recipe: right answers, a loss that can be brought down, and a run that can be taken up again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from editbook.perception.base import box_of
from editbook.perception.oracle import levels
from editbook.perception.reader import load_reader
from editbook.perception.segmenter import TEXT, SegmenterNetwork, load_network, look_at
from editbook.pocket import Scene, Thing, sample
from editbook.training import segmenter as recipe
from editbook.training.loop import Plan
from editbook.training.recipes import run_recipe

SCENE = Scene("meadow", (Thing("cat", accessory="hat", x=0.27, size=0.42), Thing("car", "red", x=0.73, size=0.42)))


def test_clicks_show_what_they_are_answered_with():
    rng, parts = np.random.default_rng(0), levels(SCENE)
    seen = set()
    for _ in range(100):
        asked = recipe.ask(rng, SCENE, parts, "click")
        row, column = np.unravel_index(asked.maps[0].argmax(), (64, 64))
        assert asked.present == asked.masks[1].any() == parts[:, 1, row, column].any()
        if asked.present:
            assert asked.masks[1][row, column]
            assert asked.masks[0].any() == asked.masks[0][row, column]
            assert not asked.masks[1][np.unravel_index(asked.maps[1].argmax(), (64, 64))] or not asked.maps[1].any()
        seen.add((asked.present, bool(asked.masks[0].any()), bool(asked.maps[1].any())))
    assert len(seen) >= 5


def test_boxes_are_about_what_they_are_answered_with():
    rng, parts = np.random.default_rng(1), levels(SCENE)
    for _ in range(50):
        asked = recipe.ask(rng, SCENE, parts, "box")
        assert np.abs(np.array(box_of(asked.maps[2] > 0.5)) - box_of(asked.masks[1])).max() < 5


def test_phrases_name_what_they_are_answered_with():
    rng, parts = np.random.default_rng(2), levels(SCENE)
    present = []
    for _ in range(200):
        asked = recipe.ask(rng, SCENE, parts, "phrase")
        present.append(asked.present)
        if not asked.present:
            assert not asked.masks.any()
            assert not any(asked.phrase.endswith(there) for there in ("red car", " cat", " hat"))
        elif asked.phrase.endswith("hat") and "wearing" not in asked.phrase:
            assert np.array_equal(asked.masks[1], parts[0, 0])
        else:
            assert np.array_equal(asked.masks[1], parts[0 if "cat" in asked.phrase else 1, 1])
    assert 0.55 < np.mean(present) < 0.85


def test_names_of_objects():
    pencil = Scene("meadow", SCENE.objects, style="pencil sketch")
    labels = recipe.name_labels([SCENE, pencil, Scene("beach")])
    assert labels[0, 1].tolist() == [recipe.OBJECTS.index("car"), recipe.LOOKS.index("red")]
    assert labels[1, :, 1].tolist() == [-100, -100]
    assert (labels[2] == -100).all()


def test_the_right_answer_has_the_least_loss():
    masks = torch.from_numpy(np.stack([levels(SCENE)[0], np.zeros((3, 64, 64), bool)])).float()
    present = torch.tensor([1.0, 0.0])
    ious = torch.tensor([[1.0] * 3, [0.0] * 3])

    def loss(logits, judged=ious, there=present):
        answers = {"masks": 20 * (logits * 2 - 1), "ious": 20 * (judged * 2 - 1), "presence": 20 * (there * 2 - 1)}
        return float(recipe.answering_loss(answers, masks, present))

    assert loss(masks) == pytest.approx(0, abs=1e-2)
    assert loss(masks.roll(3, -1)) > 1
    assert loss(masks, 1 - ious) > 0.5
    assert loss(masks, ious, 1 - present) > 5


def test_a_few_steps_on_one_batch_bring_the_loss_down():
    torch.manual_seed(0)
    rng, network = np.random.default_rng(3), SegmenterNetwork()
    scenes = [sample(seed) for seed in range(8)]
    asked = [recipe.ask(rng, scene, levels(scene)) for scene in scenes]
    x = torch.from_numpy(np.stack([scene.array() for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    seen, texts = look_at(load_reader().network, x), recipe.texts_of(asked)
    assert texts.shape == (8, TEXT)
    maps = torch.from_numpy(np.stack([one.maps for one in asked]))
    masks = torch.from_numpy(np.stack([one.masks for one in asked])).float()
    present = torch.tensor([float(one.present) for one in asked])
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = recipe.answering_loss(network(seen, maps, texts), masks, present)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_a_run_is_saved_and_can_be_gone_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(
        recipe, "PartStream", lambda seed, batch, **options: Small(seed, batch, reuse=options["reuse"], pool=16)
    )
    monkeypatch.setattr(recipe, "measure_segmenter", lambda network: {"click": 0.5})
    record = run_recipe("segmenter", Plan(tmp_path / "one", 128))
    assert record["samples"] == 128
    assert json.loads((tmp_path / "one" / "segmenter" / "record.json").read_text()) == record
    first = load_network(tmp_path / "one" / "segmenter")
    from editbook.training.start import adopt

    adopt(tmp_path / "one" / "segmenter", tmp_path / "two")
    again = run_recipe("segmenter", Plan(tmp_path / "two", 64))
    assert again["samples"] == 192
    second = load_network(tmp_path / "two" / "segmenter")
    moved = [float((a - b).abs().max()) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert max(moved) < 0.05  # from there, not from nothing
    assert max(moved) > 0


Small = recipe.PartStream  # before a test puts something else in its place
