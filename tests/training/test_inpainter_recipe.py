"""The inpainter's recipe: exact removals, holes of every kind, the loss, a run from its beginning to its files."""

from __future__ import annotations

import json

import numpy as np
import torch

from editbook.perception import load_inpainter
from editbook.perception.inpainter import PocketLaMa
from editbook.perception.reader import ReaderNetwork
from editbook.pocket import Scene, Thing
from editbook.training import inpainter as module
from editbook.training.inpainter import RemovalStream, box_mask, filling_loss, hole_psnr, removal, stroke_mask, widened
from editbook.training.loop import Plan

SCENE = Scene("room", (Thing("cat", x=0.3, size=0.4), Thing("apple", x=0.7, size=0.4)), seed=3)


def test_a_removal_is_exact_and_its_second_mask_holds_all_that_differs():
    before, after, masks = removal(SCENE, 0)
    assert (before == SCENE.array()).all()
    assert (after == Scene("room", SCENE.objects[1:], seed=3).array()).all()
    differs = np.abs(before.astype(int) - after).max(-1) > 1
    tight, wide = masks[..., 0] > 127, masks[..., 1] > 127
    assert (wide | ~differs).all()
    assert (differs & ~tight).any(), "the shadow lies outside the silhouette"
    assert (tight <= wide).all()


def test_holes_of_all_kinds_are_neither_empty_nor_everything():
    rng = np.random.default_rng(0)
    for make in (box_mask, stroke_mask):
        shares = [make(rng).mean() for _ in range(100)]
        assert 0 < min(shares) < max(shares) < 1
    assert (widened(np.eye(9, dtype=bool), 1) == (np.abs(np.subtract.outer(range(9), range(9))) <= 2)).sum() > 60


def test_what_is_seen_equals_the_answer_outside_the_hole():
    stream = RemovalStream(1, 8, pool=16)
    for _ in range(4):
        stream.advance()
        seen, right, hole = stream.holes(stream.choose())
        assert seen.shape == right.shape == (8, 3, 64, 64)
        assert hole.shape == (8, 1, 64, 64)
        assert set(hole.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(seen * (1 - hole), right * (1 - hole))
        assert 0 <= right.min() <= right.max() <= 1


def test_the_stream_goes_on_where_it_stood():
    stream, again = RemovalStream(1, 8, pool=16), RemovalStream(1, 8, pool=16)
    stream.advance()
    stream.holes(stream.choose())
    again.load_state_dict(stream.state_dict())
    stream.advance(), again.advance()
    for one, other in zip(stream.holes(stream.choose()), again.holes(again.choose()), strict=True):
        assert torch.equal(one, other)


def test_the_loss_is_least_for_the_right_answer_and_weighs_the_hole_more():
    torch.manual_seed(0)
    reader = ReaderNetwork().eval().requires_grad_(False)
    right, hole = torch.rand(4, 3, 64, 64), torch.zeros(4, 1, 64, 64)
    hole[..., 16:48, 16:48] = 1
    wrong = (right + 0.1).clamp(max=1)
    inside, outside = (filling_loss(reader, m * wrong + (1 - m) * right, right, hole) for m in (hole, 1 - hole))
    assert filling_loss(reader, right, right, hole) == 0 < outside < inside
    assert hole_psnr(np.full((2, 2, 3), 10), np.zeros((2, 2, 3)), np.ones((2, 2), bool)) == 20 * np.log10(25.5)


def test_a_short_run_learns_saves_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measure_inpainter", lambda _: {"removal": 1.0})
    monkeypatch.setattr(module, "PocketLaMa", lambda fourier=True: PocketLaMa(8, 1, fourier=fourier))
    made = RemovalStream
    monkeypatch.setattr(module, "RemovalStream", lambda seed, size, **_: made(seed, size, pool=16))
    record = module.train_inpainter(Plan(tmp_path, samples=64), batch_size=8)
    assert record["samples"] == 64
    assert json.loads((tmp_path / "inpainter" / "record.json").read_text())["held_out"] == {"removal": 1.0}
    assert (tmp_path / "inpainter" / "samples.png").is_file()


def test_weights_survive_as_float16(tmp_path):
    torch.manual_seed(0)
    network = PocketLaMa()
    module.save_inpainter(network, {"samples": 1}, tmp_path)
    x, mask = SCENE.array(), np.zeros((64, 64), bool)
    mask[10:30, 10:30] = True
    filled = np.asarray(load_inpainter(tmp_path).inpaint(x, mask), int)
    exact = np.asarray(module.PocketInpainter(network).inpaint(x, mask), int)
    assert np.abs(filled - exact).max() <= 2
