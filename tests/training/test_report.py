"""The report: what it asks, on readings that are known, and that every part runs on the shipped model."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import editbook
from editbook.metrics import Reader
from editbook.model import SHIPPED
from editbook.perception.reader import OWN, ReaderNetwork, Reading, ReadObject
from editbook.pocket import Scene, Thing, bench, sample_held_out
from editbook.pocket.distribution import is_held_out
from editbook.training import report as module
from editbook.training.report import Figure, agreement, redrawn, report, samples, scenes, sizes, speed


@pytest.fixture
def one_thread(monkeypatch):
    """A second thread on a busy machine waits more than it works, and no time is tested."""
    monkeypatch.setattr(module, "_two_threads", nullcontext)


def perfect(scene: Scene) -> Reading:
    things = [
        ReadObject(t.word, t.colour or t.material or OWN, t.pose, t.facing or "left", t.accessory, np.ones((64, 64)), 1)
        for t in scene.objects
    ]
    return Reading(scene.background, scene.style, tuple(things))


def test_a_perfect_reader_agrees_with_everything():
    shown = [sample_held_out(seed) for seed in range(200)]
    found = agreement([perfect(scene) for scene in shown], shown)
    assert all(len(answers) > 3 and all(answers) for answers in found.values())
    assert len(found["word"]) == sum(len(scene.objects) == 1 for scene in shown)
    assert len(found["both objects"]) == sum(len(scene.objects) == 2 for scene in shown)


def test_what_was_not_asked_for_is_not_counted_and_what_is_missing_is_wrong():
    plain = Scene("room", (Thing("cat"),))
    dressed = Scene("room", (Thing("cat", colour="red", accessory="crown", pose="jumping"),))
    assert agreement([perfect(plain)], [plain])["colour"] == []
    nothing = Reading("room", "photo", ())
    found = agreement([nothing], [dressed])
    assert found["background"] == [True]
    assert found["word"] == found["colour"] == found["accessory"] == found["pose"] == [False]


def test_a_sketch_is_not_asked_for_colours():
    sketch = Scene("room", (Thing("cat", colour="red"),), "pencil sketch")
    assert agreement([perfect(sketch)], [sketch])["colour"] == []


def test_bars_count_in_their_own_direction():
    assert Figure("a", 0.5).met is None
    assert Figure("a", 0.5, 0.4).met
    assert not Figure("a", 0.5, 0.4, at_most=True).met


def test_its_scenes_are_held_out_and_of_the_kind_asked_for():
    pairs = scenes(5, objects=2)
    assert [len(scene.objects) for scene in pairs] == [2] * 5
    assert all(is_held_out(scene) for scene in [*pairs, *scenes(10)])


def test_a_scene_drawn_anew_has_the_same_caption_in_another_layout():
    for number, scene in enumerate(scenes(30)):
        other = redrawn(scene, number)
        assert other.caption() == scene.caption()
        assert other == redrawn(scene, number)
        assert other.seed != scene.seed
        for old, new in zip(scene.objects, other.objects, strict=True):
            assert (old.x, old.y, old.size) != (new.x, new.y, new.size)
            assert abs(old.x - new.x) < 0.25  # left stays left


def test_pictures_do_not_depend_on_the_batch(pocket_model):
    prompts = ["a red ball in a room", "a cat on a beach", "a blue bus in a city"]
    one = samples(pocket_model, prompts, steps=4, batch=3)
    other = samples(pocket_model, prompts, steps=4, batch=2)
    for a, b in zip(one, other, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 2


def test_every_part_runs_and_is_written_as_it_goes(pocket_model, one_thread, tmp_path, monkeypatch):
    """With an untrained reader: what is tested is the report, not the weights."""
    torch.manual_seed(0)
    monkeypatch.setattr(module, "load_reader", lambda: Reader(ReaderNetwork()))
    monkeypatch.setattr(module, "samples", lambda model, prompts: samples(model, prompts, steps=2))
    figures = report(pocket_model, tmp_path, count=2)
    written = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert [entry["what"] for entry in written] == [figure.what for figure in figures]
    assert all(np.isfinite(figure.value) for figure in figures)
    assert written[0]["met"] == figures[0].met
    assert {"autoencoder, PSNR in dB", "reader, mask_iou", "pocket-FID of samples"} <= {f.what for f in figures}


def weight_megabytes(folder):
    return sum(path.stat().st_size for path in folder.glob("**/*.safetensors")) / 1e6


def test_what_ships_is_counted_and_nothing_that_lies_beside_it(pocket_model, tmp_path):
    _, shipped = sizes(pocket_model)
    assert shipped == Figure("all shipped weights, MB", weight_megabytes(SHIPPED), 40.0, at_most=True)
    shutil.copytree(SHIPPED / "pocket", tmp_path / "run" / "model")
    shutil.copytree(SHIPPED / "pocket" / "vae", tmp_path / "run" / "vae")
    unet, whole = sizes(editbook.load(tmp_path / "run" / "model"))
    assert whole == Figure("all weights of this model, MB", weight_megabytes(SHIPPED / "pocket"))
    assert unet.value == (SHIPPED / "pocket/unet/diffusion_pytorch_model.safetensors").stat().st_size / 2**20


def test_a_model_without_a_folder_has_no_files_but_a_speed(random_model, one_thread):
    assert sizes(random_model) == []
    (figure,) = speed(random_model)
    assert (figure.what, figure.bar) == ("50 steps of a batch of 4, seconds on two CPU threads", 2.5)
    assert figure.value > 0


def test_speed_is_the_fastest_of_three_runs_on_two_threads_after_a_step_to_warm_up(random_model, monkeypatch):
    calls, clock = [], iter([0.0, 5.0, 6.0, 9.0, 10.0, 14.0])

    def spy(model, noise, path, guidance):
        calls.append((torch.get_num_threads(), len(noise), len(path)))

    monkeypatch.setattr(module, "follow", spy)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    before = torch.get_num_threads()
    assert speed(random_model)[0].value == 3.0
    assert calls == [(2, 4, 1), *[(2, 4, 50)] * 3]
    assert torch.get_num_threads() == before


def test_by_default_every_object_change_is_edited(random_model, tmp_path, monkeypatch):
    counts = []
    for part in ("sizes", "speed", "autoencoder", "reading", "pointing", "inverting", "drawing", "load_reader"):
        monkeypatch.setattr(module, part, lambda *_: [])
    monkeypatch.setattr(module, "swapping", lambda model, reader, count: counts.append(count) or [])
    report(random_model, tmp_path)
    assert counts[0] >= len(bench().of_type("change object")) == 80


def test_a_kill_loses_one_part_only(pocket_model, one_thread, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "load_reader", lambda: Reader(ReaderNetwork()))
    monkeypatch.setattr(module, "reading", stop)
    with pytest.raises(KeyboardInterrupt):
        report(pocket_model, tmp_path, count=1)
    kept = [entry["what"] for entry in json.loads((tmp_path / "report.json").read_text())["figures"]]
    assert "autoencoder, SSIM" in kept
