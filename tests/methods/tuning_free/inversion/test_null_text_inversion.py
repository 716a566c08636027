"""Null-text Inversion: what is tuned, what is not, what it costs, and that guided sampling comes back."""

from __future__ import annotations

import copy

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import ddim_inversion, make_inverter
from editbook.methods.base import reconstruct
from editbook.methods.tuning_free.inversion.null_text_inversion import NullTextTuning
from editbook.model import Model
from editbook.sampling import Schedule, Trajectory, follow

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


def invert(model, picture, steps=4, guidance_scale=7.5, **options):
    inverter = make_inverter("null-text-inversion", {"inner_steps": 3, **options})
    return inverter(
        model, model.encode(picture), SOURCE, Schedule(model.scheduler, steps), guidance_scale=guidance_scale
    )


def walk(model, inversion, scale=7.5, **options):
    """The tuning walk alone, recorded, with its guidance."""
    defaults = {"inner_steps": 3, "learning_rate": 1e-2, "tolerance": 0.0}
    tuning = NullTextTuning(inversion, model.embed(SOURCE), model.embed(""), scale, **{**defaults, **options})
    walked = Trajectory()
    follow(model, inversion.z_T, inversion.moves, tuning, callbacks=[walked])
    return tuning, walked


def test_without_guidance_the_embedding_stays_to_the_bit(random_model64, picture):
    """The null noise has weight 1 - w = 0; its gradient is zero, not small."""
    inversion = invert(random_model64, picture, guidance_scale=1.0)
    empty = random_model64.embed("")
    assert all(torch.equal(null, empty) for null in inversion.null)
    guided = invert(random_model64, picture, guidance_scale=1.001)
    assert not torch.equal(guided.null[-1], empty)


def test_no_inner_steps_is_ddim_with_guidance(random_model64, picture):
    model = random_model64
    plain = ddim_inversion(model, model.encode(picture), SOURCE, Schedule(model.scheduler, 4))
    expected = reconstruct(model, plain, 7.5)
    torch.testing.assert_close(reconstruct(model, invert(model, picture, inner_steps=0)), expected, rtol=0, atol=1e-10)
    assert not torch.allclose(reconstruct(model, invert(model, picture)), expected, rtol=0, atol=1e-3)


def test_sampling_back_repeats_the_tuning_walk(random_model64, picture):
    """Each step was tuned from the latent that sampling really reaches, so the losses are those of the way back."""
    model = random_model64
    inversion = invert(model, picture, tolerance=0.0)
    tuning, walked = walk(model, inversion)
    reconstruct(model, inversion)
    torch.testing.assert_close(inversion.sampled.latents[-1], walked.latents[-1], rtol=0, atol=1e-10)
    torch.testing.assert_close(inversion.null, torch.stack(tuning.embeddings), rtol=0, atol=0)
    for z, z_star, losses in zip(inversion.sampled.latents[1:], inversion.latents[1:], inversion.losses, strict=True):
        assert float((z - z_star).square().mean()) == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize("learning_rate", [1e-2, 30.0])
def test_the_best_iterate_is_kept(random_model64, picture, learning_rate):
    model = random_model64
    inversion = ddim_inversion(model, model.encode(picture), SOURCE, Schedule(model.scheduler, 4))
    tuning, walked = walk(model, inversion, learning_rate=learning_rate)
    rises = 0
    for z, z_star, losses in zip(walked.latents[1:], inversion.latents[1:], tuning.losses, strict=True):
        reached = float((z - z_star).square().mean())
        assert reached == pytest.approx(min(losses))
        assert reached <= losses[0]
        rises += losses[-1] > min(losses)
    assert (rises > 0) == (learning_rate > 1)  # far too large a rate does overshoot: then it matters


def test_the_gradient_is_that_of_the_loss(random_model64, picture):
    """Adam's first update is the rate times the sign of the gradient; compare with a difference quotient."""
    model = random_model64
    inversion = ddim_inversion(model, model.encode(picture), SOURCE, Schedule(model.scheduler, 4))
    condition, null, move = model.embed(SOURCE), model.embed(""), inversion.moves[0]
    moved = invert(model, picture, inner_steps=1, tolerance=0.0).null[0] - null

    @torch.no_grad()
    def loss(embedding):
        eps_c, eps_null = (model.noise(inversion.z_T, move.t, text) for text in (condition, embedding))
        return (move(inversion.z_T, eps_null + 7.5 * (eps_c - eps_null)) - inversion.latents[1]).square().mean()

    checked = 0
    for position, channel in ((0, 0), (3, 17), (9, 100), (39, 5)):
        step = torch.zeros_like(null)
        step[0, position, channel] = 1e-5
        slope = float(loss(null + step) - loss(null - step))
        if abs(slope) > 1e-12:
            checked += 1
            assert float(moved[0, position, channel]) == pytest.approx(-1e-2 if slope > 0 else 1e-2, rel=1e-2)
    assert checked >= 3


def test_rate_and_tolerance_are_the_official_ones_at_50_steps(random_model, picture, monkeypatch):
    model, rates = random_model, []
    inversion = ddim_inversion(model, model.encode(picture), SOURCE, Schedule(model.scheduler, 50))
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr: rates.append(lr) or adam(p, lr=lr))
    tuning = NullTextTuning(
        inversion, model.embed(SOURCE), model.embed(""), 7.5, inner_steps=0, learning_rate=1e-2, tolerance=1e-5
    )
    follow(model, inversion.z_T, inversion.moves, tuning)
    assert rates == pytest.approx([1e-2 * (1 - i / 100) for i in range(50)])
    for i in range(50):
        stop = 1e-5 + 2e-5 * i
        assert tuning._close([stop * 0.999], i / 50)
        assert not tuning._close([stop * 1.001], i / 50)


def test_a_step_that_is_close_enough_is_updated_once_more_and_left(random_model, picture):
    inversion = invert(random_model, picture, tolerance=1e6)
    assert [len(losses) - 1 for losses in inversion.losses] == [1] * 4
    assert [len(losses) - 1 for losses in invert(random_model, picture, tolerance=0.0).losses] == [3] * 4


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 1e6}, {"inner_steps": 0}])
def test_cost_is_three_evaluations_a_step_and_one_an_update(random_model, picture, options):
    before = random_model.nfe
    inversion = invert(random_model, picture, **options)
    updates = sum(len(losses) - 1 for losses in inversion.losses)
    assert random_model.nfe - before == 3 * 4 + updates


def test_cost_of_the_edit(random_model, picture):
    edit = editbook.edit(
        random_model,
        picture,
        "null-text-inversion",
        source=SOURCE,
        target=TARGET,
        steps=4,
        inner_steps=3,
        tolerance=0.0,
    )
    assert edit.nfe == 3 * 4 + 3 * 4 + 4 * 4  # both rows of the edit are guided
    assert edit.inversion.null.shape == (4, 1, *random_model.embed("").shape[1:])


def test_weights_and_text_stay(random_model, picture):
    def state():
        parts = (random_model.unet, random_model.text_encoder)
        return [p.clone() for part in parts for p in part.parameters()]

    before, condition = state(), random_model.embed(SOURCE)
    invert(random_model, picture)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert torch.equal(random_model.embed(SOURCE), condition)
    assert not any(p.requires_grad or p.grad is not None for p in random_model.unet.parameters())


def test_half_precision_is_refused_before_any_work(random_model, picture):
    parts = (random_model.unet, random_model.vae, random_model.text_encoder)
    half = Model(*(copy.deepcopy(p).half() for p in parts), random_model.tokenizer, random_model.scheduler)
    inverter = make_inverter("null-text-inversion", {})
    with pytest.raises(EditbookError, match="float16: load the model with dtype='float32'"):
        inverter(half, half.random_latent(0), SOURCE, Schedule(half.scheduler, 2))
    assert half.nfe == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("inner_steps", -1),
        ("inner_steps", 2.5),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("tolerance", -1e-5),
        ("tolerance", float("nan")),
    ],
)
def test_bad_options_raise(option, value):
    with pytest.raises(EditbookError, match=option):
        make_inverter("null-text-inversion", {option: value})


@pytest.mark.parametrize(
    ("options", "nearer", "near"),
    [({"inner_steps": 5, "learning_rate": 0.05}, 4, 1.5), ({}, 3, 2)],
    ids=["faster", "defaults"],
)
def test_guided_reconstruction_comes_back(pocket_model, options, nearer, near):
    """Many times nearer than DDIM's, and about as near as sampling without guidance."""
    model, task = pocket_model, editbook.pocket.task("cat-to-fox")
    z_0, schedule = model.encode(task.source_image), Schedule(model.scheduler, 20)
    plain = make_inverter("ddim-inversion", {})(model, z_0, task.source_prompt, schedule)
    tuned = make_inverter("null-text-inversion", options)(model, z_0, task.source_prompt, schedule)
    errors = [
        float((reconstruct(model, inversion, w) - z_0).square().mean().sqrt())
        for inversion, w in ((plain, 1.0), (plain, 7.5), (tuned, 7.5))
    ]
    assert errors[2] < errors[1] / nearer
    assert errors[2] < near * errors[0]
