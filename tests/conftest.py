"""Shared fixtures: a random model of the pocket shape for what must hold for any weights, and the shipped one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """The pocket tokenizer's recipe with few merges, so that long words have several tokens."""
    from editbook.training.tokenizer import train_tokenizer

    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"), sentences=600, merges=160)


@pytest.fixture(scope="session")
def random_model(tokenizer):
    """Random weights: identities and counts must hold here too. Outputs are scaled up so that effects are visible."""
    from editbook.model import Model
    from editbook.training.clip import build_clip
    from editbook.training.unet import build_scheduler, build_unet
    from editbook.training.vae import build_vae

    torch.manual_seed(0)
    text_encoder = build_clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id).text_model
    vae, unet = build_vae(), build_unet(text_encoder.config.hidden_size)
    with torch.no_grad():
        text_encoder.final_layer_norm.weight.mul_(4)
        unet.conv_out.weight.mul_(3)
        for name, parameter in unet.named_parameters():
            if "attn" in name and "to_" in name:
                parameter.mul_(2)
        vae.encoder.conv_out.weight.mul_(8)
        vae.decoder.conv_out.weight.mul_(3)
        noise = torch.rand(4, 3, 64, 64) * 2 - 1
        vae.register_to_config(scaling_factor=float(1 / vae.eval().encode(noise).latent_dist.mode().std()))
    return Model(unet, vae, text_encoder, tokenizer, build_scheduler(), name="random")


@pytest.fixture(scope="session")
def random_model64(random_model):
    """The same weights in float64, the schedule too: what is left of an error is a mistake, not rounding."""
    from editbook.model import Model

    parts = [copy.deepcopy(part).double() for part in (random_model.unet, random_model.vae, random_model.text_encoder)]
    scheduler = copy.deepcopy(random_model.scheduler)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return Model(*parts, random_model.tokenizer, scheduler, name="random64")


def _seeing(model):
    """The model with a U-Net that also takes a picture; the weights for it are random, too."""
    from editbook.deltas import widen_input
    from editbook.model import Model

    unet = copy.deepcopy(model.unet)
    widen_input(unet, 8)
    with torch.no_grad():
        fresh = torch.randn(unet.conv_in.weight[:, 4:].shape, generator=torch.Generator().manual_seed(1))
        unet.conv_in.weight[:, 4:] = 0.2 * fresh.to(unet.dtype)
    return Model(unet, model.vae, model.text_encoder, model.tokenizer, model.scheduler, name="random-instruct")


@pytest.fixture(scope="session")
def instruct_model(random_model):
    """Random weights whose U-Net sees a picture, as InstructPix2Pix's does."""
    return _seeing(random_model)


@pytest.fixture(scope="session")
def instruct_model64(random_model64):
    """The same in float64."""
    return _seeing(random_model64)


@pytest.fixture(scope="session")
def fitting():
    """From a method's id and a plain model to one that the method can use: with a picture, where it needs that."""
    from editbook.methods import REGISTRY

    made = {}

    def fit(name, model):
        if not REGISTRY[name].takes_image:
            return model
        return made.setdefault(id(model), (_seeing(model), model))[0]

    return fit


@pytest.fixture(scope="session")
def pipeline_around():
    """From a class of diffusers' pipelines and a model to that pipeline on the model's own parts."""

    def build(pipeline_class, model, scheduler=None, **parts):
        pipeline = pipeline_class(
            vae=model.vae,
            text_encoder=model.text_encoder,
            tokenizer=model.tokenizer,
            unet=model.unet,
            scheduler=scheduler or copy.deepcopy(model.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="session")
def picture():
    """A picture with edges and colours, 64 x 64."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((64, 64), Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def pocket_model():
    """The shipped model; tests of effects that only trained weights have."""
    import editbook
    from editbook.model import SHIPPED

    if not (SHIPPED / "pocket").is_dir():
        pytest.skip("src/editbook/weights/pocket is absent: the shipped weights are not trained yet")
    return editbook.load("pocket")


@pytest.fixture(scope="session")
def pocket_instruct():
    """The shipped model that follows instructions."""
    import editbook
    from editbook.model import SHIPPED

    if not (SHIPPED / "instruct-pix2pix").is_dir():
        pytest.skip("src/editbook/weights/instruct-pix2pix is absent")
    return editbook.load("pocket-instruct-pix2pix")
