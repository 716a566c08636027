"""Text optimisation: it changes the embedding, nothing else, and by as much as the loss and Adam say."""

from __future__ import annotations

import copy

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion.text_optimisation import denoising_loss, fit_embedding
from editbook.sampling import Schedule, add_noise

PROMPT = "a photo of a cat on the beach"


@pytest.fixture
def problem(random_model64, picture):
    """A model, a latent and an embedding to begin with."""
    return random_model64, random_model64.encode(picture), random_model64.embed(PROMPT)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_of_a_batch_is_that_of_its_rows(problem, prediction):
    model, z_0, embedding = problem
    model = copy.copy(model)
    model.scheduler = copy.deepcopy(model.scheduler)
    model.scheduler.register_to_config(prediction_type=prediction)
    timesteps = [3, 400, 999]
    noise = torch.randn(3, *z_0.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    schedule = Schedule(model.scheduler, 10)
    with torch.no_grad():
        rows = [
            (model.noise(add_noise(z_0, eps[None], schedule.alpha(t)), t, embedding) - eps).square().mean()
            for t, eps in zip(timesteps, noise, strict=True)
        ]
        torch.testing.assert_close(denoising_loss(model, z_0, embedding, timesteps, noise), torch.stack(rows))


def test_the_first_step_is_adams(problem):
    """Whatever the size of the gradient, Adam's first step goes learning_rate far in each coordinate, downhill."""
    model, z_0, start = problem
    fitted, losses = fit_embedding(model, z_0, start, steps=1, learning_rate=0.02, batch=2)
    step = (fitted - start).abs()
    assert float(step.max()) == pytest.approx(0.02, rel=1e-3)
    assert float(step.median()) > 0.019
    assert len(losses) == 1


def test_it_goes_downhill_on_the_pairs_that_it_draws(problem):
    model, z_0, start = problem
    fitted, (loss,) = fit_embedding(model, z_0, start, steps=1, learning_rate=1e-4, batch=2, seed=3)
    again, (lower,) = fit_embedding(model, z_0, fitted, steps=1, learning_rate=1e-4, batch=2, seed=3)
    assert lower < loss
    assert not torch.equal(again, fitted)


def test_the_model_and_the_start_are_left_alone(problem):
    model, z_0, start = problem
    before = [parameter.clone() for parameter in model.unet.parameters()]
    start_before = start.clone()
    with torch.no_grad():  # as inside a walk
        fitted, _ = fit_embedding(model, z_0, start, steps=2, batch=1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.unet.parameters(), strict=True))
    assert all(p.grad is None and not p.requires_grad for p in model.unet.parameters())
    assert torch.equal(start, start_before)
    assert not fitted.requires_grad


def test_seed_callback_and_cost(problem):
    model, z_0, start = problem
    seen = []
    before = model.nfe
    fitted, losses = fit_embedding(
        model, z_0, start, steps=3, batch=2, seed=1, callback=lambda i, e: seen.append((i, e))
    )
    assert model.nfe - before == 3 * 2
    assert [i for i, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], fitted)
    assert not torch.equal(seen[0][1], seen[1][1])
    repeated = fit_embedding(model, z_0, start, steps=3, batch=2, seed=1)
    assert torch.equal(repeated[0], fitted)
    assert repeated[1] == losses
    assert not torch.equal(fit_embedding(model, z_0, start, steps=3, batch=2, seed=2)[0], fitted)


def test_no_steps_return_the_start(problem):
    model, z_0, start = problem
    fitted, losses = fit_embedding(model, z_0, start, steps=0)
    assert torch.equal(fitted, start)
    assert losses == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": -1}, "steps of text"),
        ({"steps": 1.5}, "steps of text"),
        ({"batch": 0}, "batch of text"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"learning_rate": float("nan")}, "learning rate"),
    ],
)
def test_bad_options_raise(problem, option, message):
    with pytest.raises(EditbookError, match=message):
        fit_embedding(*problem, **option)


def test_it_lowers_the_loss_on_pairs_that_it_never_saw(pocket_model):
    """Begun at the target prompt, which describes the picture less well than the source prompt does."""
    task = editbook.pocket.task("jumping-dog")
    z_0 = pocket_model.encode(task.source_image)
    source, target = pocket_model.embed([task.source_prompt, task.target_prompt]).split(1)
    fitted, _ = fit_embedding(pocket_model, z_0, target, steps=30, learning_rate=2e-2)
    timesteps = list(range(20, 1000, 40))
    noise = torch.randn(len(timesteps), *z_0.shape[1:], generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        before, asked, after = (
            float(denoising_loss(pocket_model, z_0, e, timesteps, noise).mean()) for e in (target, source, fitted)
        )
    assert asked < before
    assert after < 0.8 * before


def test_timesteps_span_the_schedule_and_noise_is_fresh(problem, monkeypatch):
    model, z_0, start = problem
    drawn = []

    def recorded(model, z_0, embedding, timesteps, noise):
        drawn.append((timesteps, noise))
        return denoising_loss(model, z_0, embedding, timesteps, noise)

    monkeypatch.setattr("editbook.inversion.text_optimisation.denoising_loss", recorded)
    fit_embedding(model, z_0, start, steps=2, batch=16)
    seen = {t for timesteps, _ in drawn for t in timesteps}
    total = model.scheduler.config.num_train_timesteps
    assert len(seen) > 16
    assert min(seen) < 0.25 * total
    assert max(seen) > 0.75 * total
    assert not torch.equal(drawn[0][1], drawn[1][1])
