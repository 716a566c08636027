"""The exceptional prompt: it says the same everywhere, guidance cancels, and the picture comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook.attention import Capture
from editbook.errors import EditbookError
from editbook.inversion import ddim_inversion, make_inverter
from editbook.inversion.exceptional import exceptional_embedding, exceptional_inversion, without_positions
from editbook.methods.base import reconstruct
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow

SOURCE = "a photo of a cat on the beach"


def test_all_positions_are_alike_and_without_the_trick_they_are_not(random_model64):
    model = random_model64
    nothing = exceptional_embedding(model)
    assert nothing.shape == model.embed("").shape
    assert (nothing - nothing[:, :1]).abs().max() < 1e-12
    ids = torch.full((1, nothing.shape[1]), len(model.tokenizer) // 2)
    plain = model.text_encoder(ids)[0]
    assert (plain - plain[:, :1]).abs().max() > 0.1
    with without_positions(model.text_encoder):
        assert torch.equal(model.text_encoder(ids)[0], nothing)
    assert torch.equal(model.text_encoder(ids)[0], plain)  # the tower is as it was


def test_cross_attention_is_uniform(random_model64):
    model, capture = random_model64, Capture()
    nothing, z = exceptional_embedding(model), random_model64.random_latent(0)
    with torch.no_grad(), capture.attached(model.unet, (16, 16), 1):
        model.noise(z, 500, nothing)
    for record in capture.records.values():
        torch.testing.assert_close(record, torch.full_like(record, 1 / nothing.shape[1]), rtol=0, atol=1e-7)


def test_guidance_cancels_for_every_scale(random_model64):
    model = random_model64
    nothing, z = exceptional_embedding(model), random_model64.random_latent(0)
    with torch.no_grad():
        plain = model.noise(z, 500, nothing)
        for w in (0.0, 2.5, 7.5):
            guided = ClassifierFreeGuidance(nothing, nothing, w)(model, z, 500, 0)
            torch.testing.assert_close(guided, plain, rtol=0, atol=1e-10)


def test_the_inverter_repeats_the_picture_and_does_not_read_the_source_prompt(random_model64, picture):
    model = random_model64
    z_0, schedule = model.encode(picture), Schedule(model.scheduler, 4)
    inverter = make_inverter("exceptional-prompt", {})
    one, other = (inverter(model, z_0, prompt, schedule) for prompt in (SOURCE, "a fox"))
    assert torch.equal(one.z_T, other.z_T)
    torch.testing.assert_close(reconstruct(model, one), reconstruct(model, other), rtol=0, atol=0)
    pair = exceptional_inversion(model, torch.cat([z_0, z_0.flip(-1)]), schedule)
    torch.testing.assert_close(pair.z_T[:1], one.z_T)
    assert [move.levels for move in one.moves] == [move.levels for move in schedule.sampling()]


def test_another_token_another_inversion_and_bad_ones_raise(random_model, picture):
    z_0, schedule = random_model.encode(picture), Schedule(random_model.scheduler, 2)
    ends = [exceptional_inversion(random_model, z_0, schedule, token=token).z_T for token in (90, 200)]
    assert not torch.equal(*ends)
    for token in (-5, len(random_model.tokenizer), random_model.tokenizer.bos_token_id):
        with pytest.raises(EditbookError, match="token"):
            exceptional_embedding(random_model, token)


def test_error_falls_with_steps_and_stays_below_that_of_a_guided_source_prompt(pocket_model):
    task = editbook.pocket.task("cat-to-fox")
    z_0 = pocket_model.encode(task.source_image)

    def error(z):
        return float((z - z_0).square().mean().sqrt())

    errors = []
    for steps in (5, 20):
        inversion = exceptional_inversion(pocket_model, z_0, Schedule(pocket_model.scheduler, steps))
        errors.append(error(reconstruct(pocket_model, inversion)))
    assert errors[1] < 0.6 * errors[0]
    schedule = Schedule(pocket_model.scheduler, 20)
    worded = ddim_inversion(pocket_model, z_0, task.source_prompt, schedule)
    assert error(reconstruct(pocket_model, worded, 5.0)) > 3 * errors[1]
    nothing = exceptional_embedding(pocket_model)
    guided = ClassifierFreeGuidance(nothing, nothing, 5.0)
    back = follow(pocket_model, inversion.z_T, inversion.moves, guided)
    assert np.isclose(error(back), errors[1], rtol=1e-2)
