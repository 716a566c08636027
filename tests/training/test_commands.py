"""The commands that go on from the shipped model, each run twice, and export: what finishes the job on a GPU."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

import editbook
from editbook.cli import main
from editbook.model import SHIPPED
from editbook.sampling import Schedule
from editbook.training import clip, unet, vae
from editbook.training.recipes import RECIPES
from editbook.training.report import samples
from editbook.training.start import kept_start
from editbook.training.stream import EditStream, SceneStream

BATCHES = {"vae": 16, "decoder": 16, "clip": 128, "unet": 32}
SMALL = 1e-4  # what a few steps of Adam, while the learning rate warms up, can change at most


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def quick():
    """Small pools of scenes, few held-out pictures, two denoising steps for the sheet of samples."""
    pictures = functools.cache(lambda count: vae_pictures(min(count, 32)))
    vae_pictures, retrieval = vae.held_out_pictures, clip.retrieval
    with pytest.MonkeyPatch.context() as patch:
        for module in (vae, clip, unet):
            patch.setattr(module, "SceneStream", lambda *args, **options: SceneStream(*args, **{**options, "pool": 32}))
        patch.setattr(clip, "EditStream", lambda *args, **options: EditStream(*args, **{**options, "pool": 16}))
        patch.setattr(vae, "held_out_pictures", pictures)
        patch.setattr(clip, "retrieval", lambda *args: retrieval(*args, count=16))
        patch.setattr(unet, "Schedule", lambda scheduler, _: Schedule(scheduler, 2))
        yield patch


@pytest.fixture(scope="module")
def run(quick, pocket_model, tmp_path_factory):
    """The run's folder, and for each recipe what its two commands printed, stepped and compiled."""
    folder = tmp_path_factory.mktemp("run")
    steps, compiled, calls = [], [], {}
    step = torch.optim.AdamW.step
    quick.setattr(torch.optim.AdamW, "step", lambda self, *args: (steps.append(1), step(self, *args))[1])
    quick.setattr(torch, "compile", lambda function: (compiled.append(function), function)[1])
    for name, batch in BATCHES.items():
        for number, more in ((1, []), (2, ["--compile"])):
            steps.clear()
            compiled.clear()
            start = ["--run", folder, "--start", SHIPPED / "pocket", "--samples", number * batch]
            result = invoke("train", name, *start, *more)
            assert result.exit_code == 0, (result.output, result.exception)
            record = json.loads(result.stdout.splitlines()[-1])
            calls.setdefault(name, []).append((record, len(steps), len(compiled)))
    return folder, calls


@pytest.mark.parametrize("name", BATCHES)
def test_a_second_command_takes_up_the_first(run, name):
    (_, first_steps, _), (_, more_steps, _) = run[1][name]
    assert (first_steps, more_steps) == (1, 1), "begun anew, the second would take both steps"


@pytest.mark.parametrize("name", BATCHES)
def test_the_record_counts_what_the_adopted_part_was_trained_for(run, name):
    shipped = json.loads((SHIPPED / "pocket" / "training.json").read_text())
    before = shipped["vae"]["decoder"] if name == "decoder" else shipped[name]
    for number, (record, _, _) in enumerate(run[1][name], start=1):
        own = record["decoder"] if name == "decoder" else record
        assert own["samples"] == before["samples"] + number * BATCHES[name]
        assert own["seconds"] > before["seconds"]


@pytest.mark.parametrize("name", BATCHES)
def test_only_what_is_asked_to_be_is_compiled(run, name):
    assert [compiled for _, _, compiled in run[1][name]] == [0, 1]


@pytest.mark.parametrize(
    ("part", "kind"),
    [("vae", AutoencoderKL), ("clip", CLIPModel), ("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)],
)
def test_the_weights_are_the_adopted_ones_trained_a_little_further(run, part, kind):
    adopted, trained = (kind.from_pretrained(folder / part).float() for folder in (SHIPPED / "pocket", run[0]))
    changes = [
        float((after - before).detach().abs().max())
        for before, after in zip(adopted.parameters(), trained.parameters(), strict=True)
    ]
    assert 0 < max(changes) < SMALL


def test_the_export_loads_and_draws_what_the_shipped_model_draws(run, pocket_model, tmp_path):
    result = invoke("train", "export", "--run", run[0], "-o", tmp_path / "model")
    assert result.exit_code == 0, result.output
    model = editbook.load(tmp_path / "model")
    drawn, usual, other = (
        np.asarray(samples(drawer, [prompt], steps=8)[0], float)
        for drawer, prompt in (
            (model, "a photo of a red car on a beach"),
            (pocket_model, "a photo of a red car on a beach"),
            (pocket_model, "a photo of a red car at night"),
        )
    )
    assert drawn.shape == (64, 64, 3)
    assert np.abs(drawn - usual).mean() < 0.25 * np.abs(drawn - other).mean()


def test_from_nothing_the_towers_get_a_tokenizer_and_the_denoiser_a_text_encoder(quick, tmp_path):
    learn = clip.train_tokenizer
    quick.setattr(clip, "train_tokenizer", lambda folder: learn(folder, sentences=300, merges=100))
    result = invoke("train", "clip", "--run", tmp_path, "--samples", 128)
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout.splitlines()[-1])["samples"] == 128
    tower, text_encoder = CLIPModel.from_pretrained(tmp_path / "clip").text_model, tmp_path / "text_encoder"
    for one, other in zip(tower.parameters(), CLIPTextModel.from_pretrained(text_encoder).parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_that_is_not_there_is_named_before_anything_is_written(tmp_path, name):
    result = invoke("train", name, "--run", tmp_path / "run", "--start", SHIPPED / "pocket", "--device", "cuda")
    assert result.exit_code == 2
    assert "editbook: The device 'cuda' cannot be used here" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "start", "can"),
    [
        ("vae", "reader", "reader, segmenter, inpainter"),
        ("unet", "pixel", "pixel"),
        ("reader", "pocket", "vae, decode"),
    ],
)
def test_a_start_that_the_recipe_would_not_use_is_refused(tmp_path, name, start, can):
    result = invoke("train", name, "--run", tmp_path / "run", "--start", SHIPPED / start)
    assert result.exit_code == 2
    assert f"{name} cannot go on from {SHIPPED / start}; from that folder {can}" in result.output
    assert not (tmp_path / "run").exists()


def test_a_start_is_kept_until_the_recipe_has_a_checkpoint_of_its_own(tmp_path):
    assert kept_start(tmp_path, "vae", "decoder") is None
    (tmp_path / "vae").mkdir()
    assert kept_start(tmp_path, "vae", "decoder") is None, "it is not finished"
    for content in ("first", "second"):
        (tmp_path / "vae" / "record.json").write_text(content)
        (tmp_path / "vae" / "checkpoint.pt").write_text("large")
        assert (kept_start(tmp_path, "vae", "decoder") / "record.json").read_text() == content
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "checkpoint.pt").write_text("")
    (tmp_path / "vae" / "record.json").write_text("the recipe's own result")
    start = kept_start(tmp_path, "vae", "decoder")
    assert [path.name for path in start.iterdir()] == ["record.json"]
    assert (start / "record.json").read_text() == "second"
