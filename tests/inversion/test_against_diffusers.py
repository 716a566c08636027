"""DDIM inversion against diffusers' DDIMInverseScheduler, in float64: where they agree, and where theirs differs.

Theirs agrees with ours step for step: it is told the noisier timestep t, and moves from t - r up to t, with
`initial_alpha_cumprod` below timestep 0, whenever its config has `steps_offset` and `set_alpha_to_one` of the sampling
scheduler. Its defaults have neither (offset 0, alpha 1): then its path misses the sampler's levels by one timestep.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMInverseScheduler

from editbook.inversion import ddim_inversion
from editbook.sampling import Schedule

PROMPT = "a photo of a cat on the beach"


def inverse_scheduler(scheduler, steps, **settings):
    theirs = DDIMInverseScheduler.from_config(scheduler.config, **settings)
    theirs.alphas_cumprod = scheduler.alphas_cumprod.double()
    theirs.initial_alpha_cumprod = (
        torch.tensor(1.0, dtype=torch.float64) if theirs.config.set_alpha_to_one else theirs.alphas_cumprod[0]
    )
    theirs.set_timesteps(steps)
    return theirs


@pytest.fixture(scope="module")
def shipped(pocket_model):
    """The shipped U-Net in float64."""
    import editbook

    return editbook.load("pocket", dtype="float64")


def test_the_shipped_config_gives_the_same_walk(shipped):
    import editbook

    model, task, steps = shipped, editbook.pocket.task("cat-to-fox"), 20
    z_0 = model.encode(task.source_image)
    ours = ddim_inversion(model, z_0, task.source_prompt, Schedule(model.scheduler, steps))
    theirs, z, condition = inverse_scheduler(model.scheduler, steps), z_0, model.embed(task.source_prompt)
    assert theirs.timesteps.tolist() == ours.timesteps[::-1]
    for k, t in enumerate(theirs.timesteps.tolist()):
        with torch.no_grad():
            eps = model.unet(z, t, encoder_hidden_states=condition).sample
        z = theirs.step(eps, t, z).prev_sample
        torch.testing.assert_close(z, ours.latents[steps - 1 - k], rtol=0, atol=1e-6)
    assert (z - z_0).abs().max() > 0.5


@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_every_step_has_the_same_levels(random_model64, steps):
    scheduler = random_model64.scheduler
    theirs, schedule = inverse_scheduler(scheduler, steps), Schedule(scheduler, steps)
    generator = torch.Generator().manual_seed(0)
    for t, move in zip(theirs.timesteps.tolist(), schedule.inversion(), strict=True):
        z, eps = torch.randn(2, 1, 4, 4, 4, generator=generator, dtype=torch.float64)
        assert t == move.t
        torch.testing.assert_close(theirs.step(eps, t, z).prev_sample, move(z, eps), rtol=1e-10, atol=1e-10)


def test_its_own_defaults_do_not_meet_the_levels_of_the_sampler(random_model64):
    """Without the offset each timestep is one lower; the first is told t = 0, and ends where z_0 already is."""
    scheduler = random_model64.scheduler
    theirs = inverse_scheduler(scheduler, 20, steps_offset=0, set_alpha_to_one=True)
    moves = Schedule(scheduler, 20).inversion()
    assert [t + 1 for t in theirs.timesteps.tolist()] == [move.t for move in moves]
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = torch.ones_like(z)
    first = theirs.step(eps, theirs.timesteps[0], z).prev_sample
    assert (first - moves[0](z, eps)).abs().max() > 1e-2
