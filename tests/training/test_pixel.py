"""The recipe of the pocket model of pixels."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from editbook.model import SHIPPED, verify
from editbook.pixel_diffusion import load_pixel_diffusion
from editbook.training import pixel
from editbook.training.loop import Plan
from editbook.training.pixel import build_pixel_unet, denoising_loss, picture_weight, warm_start
from editbook.training.recipes import run_recipe
from editbook.training.start import adopt
from editbook.training.stream import SceneStream
from editbook.training.unet import noise_weight


def test_a_warm_start_takes_what_fits_from_both_ends(random_model):
    unet = build_pixel_unet((64, 96))
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    copied = warm_start(unet, random_model.unet)
    after, other = unet.state_dict(), random_model.unet.state_dict()
    assert copied > 0.5 * sum(weight.numel() for weight in after.values())
    for name in ("time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"):
        assert torch.equal(after[name], other[name])
    last = "up_blocks.{}.resnets.1.conv1.weight"
    assert torch.equal(after[last.format(1)], other[last.format(2)])  # the finest level is the last of either
    for name in ("conv_in.weight", "conv_out.weight", "down_blocks.1.attentions.0.to_q.weight"):
        assert torch.equal(after[name], before[name])


def test_the_weight_is_that_of_the_noise_seen_as_a_picture():
    """Error of the noise = sqrt(SNR) times error of the clean picture, with weights to match where neither is cut."""
    alpha = torch.tensor([0.2, 0.5, 0.75, 0.9, 0.99])
    snr = alpha / (1 - alpha)
    assert torch.allclose(picture_weight(alpha), noise_weight(alpha) * snr, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel, "SceneStream", lambda seed, n, **_: SceneStream(seed, n, pool=64))
        patch.setattr(pixel, "held_out_pictures", lambda _: torch.zeros(4, 3, 64, 64))
        patch.setattr(pixel, "sample_pixels", lambda *_, **__: [Image.new("RGB", (64, 64))] * 16)
        run_recipe("pixel", Plan(folder, samples=128))
    return folder


def test_what_is_saved_loads_and_was_checked(run):
    folder = run / "pixel"
    verify(folder)
    record = json.loads((folder / "record.json").read_text())
    assert record["samples"] == 128
    loaded = load_pixel_diffusion(str(folder))
    assert loaded.scheduler.config.prediction_type == "sample"
    assert denoising_loss(loaded, torch.zeros(4, 3, 64, 64)) == pytest.approx(record["held_out_loss"], rel=0.02)
    assert f"{128} samples" in (folder / "MODEL_CARD.md").read_text()


def test_a_run_goes_on_from_a_saved_one(run, tmp_path):
    adopt(run / "pixel", tmp_path)
    assert (tmp_path / "pixel_start" / "unet" / "config.json").is_file()


def test_the_recipe_begins_as_the_latent_u_net_where_there_is_one(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(pixel, "warm_start", lambda *_: taken.append(1))
    monkeypatch.setattr(pixel, "SceneStream", lambda seed, n, **_: SceneStream(seed, n, pool=64))
    monkeypatch.setattr(pixel, "train", lambda *_: {"samples": 0, "seconds": 0.0})
    monkeypatch.setattr(pixel, "save_pixel", lambda *_: None)
    run_recipe("pixel", Plan(tmp_path, samples=32))
    assert not taken
    adopt(SHIPPED / "pocket", tmp_path)
    run_recipe("pixel", Plan(tmp_path, samples=32))
    assert taken
