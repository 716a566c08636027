"""Shared fixtures: a tiny random model of the right shape, for everything that must hold for any weights."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pocket_model():
    import editbook

    return editbook.load("pocket")


@pytest.fixture(scope="session")
def random_model(pocket_model):
    """The pocket model's towers around a random U-Net with two layers per block: identities must hold here too."""
    from diffusers import UNet2DConditionModel

    from editbook.model import Model

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=pocket_model.unet.config.cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    parts = (pocket_model.vae, pocket_model.text_encoder, pocket_model.tokenizer, pocket_model.scheduler)
    return Model(unet, *parts, name="random")
