"""DDIM inversion: exact bookkeeping, Eq. 9 as an identity, and the order of its error where the denoiser is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from editbook.errors import EditbookError
from editbook.inversion import DDIM, INVERSIONS, ddim_inversion
from editbook.sampling import ClassifierFreeGuidance, Schedule, Trajectory, ddim_step, follow

PROMPT = "a photo of a cat on the beach"


class Gaussian:
    """The exact denoiser of pictures that are normal around a mean that the prompt names: eps has a closed form."""

    def __init__(self, scheduler, spread=0.3):
        self.scheduler, self.variance = scheduler, spread**2
        means = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.means = {"cat": means[0], "": means[1]}
        self.unet, self.nfe = None, 0

    def embed(self, prompts):
        texts = [prompts] if isinstance(prompts, str) else prompts
        return torch.stack([self.means[text] for text in texts]).flatten(2)

    def noise(self, z_t, t, embeddings):
        alpha = float(self.scheduler.alphas_cumprod[t])
        mean = embeddings.view_as(z_t)
        return (1 - alpha) ** 0.5 * (z_t - alpha**0.5 * mean) / (alpha * self.variance + 1 - alpha)


def reconstruction_error(model, steps, scale=1.0, timestep="next"):
    z_0 = model.means["cat"][None] + 0.3 * torch.randn(
        (3, 4, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    inversion = ddim_inversion(model, z_0, "cat", Schedule(model.scheduler, steps), timestep=timestep)
    guidance = ClassifierFreeGuidance(model.embed(["cat"] * 3), model.embed(""), scale)
    back = follow(model, inversion.z_T, inversion.moves, guidance)
    return float((back - z_0).square().mean().sqrt())


@pytest.fixture(scope="module")
def gaussian(random_model64):
    return Gaussian(random_model64.scheduler)


def test_error_halves_when_the_steps_double(gaussian):
    errors = [reconstruction_error(gaussian, steps) for steps in (25, 50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.4
    assert errors[0] > 1e-3


def test_the_guidance_gap_does_not_shrink_with_more_steps(gaussian):
    coarse, fine = (reconstruction_error(gaussian, steps, scale=7.5) for steps in (50, 200))
    assert fine > 0.5 * coarse
    assert fine > 10 * reconstruction_error(gaussian, 200)


def test_the_next_convention_is_the_better_one(gaussian):
    assert reconstruction_error(gaussian, 50) < reconstruction_error(gaussian, 50, timestep="current")


@pytest.mark.parametrize("timestep", ["next", "current"])
def test_constant_noise_inverts_exactly(random_model64, timestep):
    class Constant(Gaussian):
        def noise(self, z_t, t, embeddings):
            return torch.full_like(z_t, 0.7)

    assert reconstruction_error(Constant(random_model64.scheduler), 20, 7.5, timestep) < 1e-12


@pytest.fixture(scope="module")
def inversion(random_model64, picture):
    model = random_model64
    return ddim_inversion(model, model.encode([picture, picture.rotate(90)]), PROMPT, Schedule(model.scheduler, 6))


def test_lists_stand_in_sampling_order(inversion, random_model64, picture):
    assert len(inversion.latents) == 7
    assert len(inversion.noises) == len(inversion.moves) == 6
    assert inversion.timesteps == sorted(inversion.timesteps, reverse=True)
    assert inversion.z_T is inversion.latents[0]
    torch.testing.assert_close(inversion.latents[-1][:1], random_model64.encode(picture))
    for i, (move, eps) in enumerate(zip(inversion.moves, inversion.noises, strict=True)):
        noisier, cleaner = inversion.latents[i], inversion.latents[i + 1]
        torch.testing.assert_close(ddim_step(cleaner, eps, move.alpha_to, move.alpha_from), noisier)
        torch.testing.assert_close(ddim_step(noisier, eps, move.alpha_from, move.alpha_to), cleaner)


def test_a_batch_is_inverted_row_by_row(inversion, random_model64, picture):
    model = random_model64
    alone = ddim_inversion(model, model.encode(picture.rotate(90)), PROMPT, Schedule(model.scheduler, 6))
    torch.testing.assert_close(alone.z_T, inversion.z_T[1:], rtol=0, atol=1e-9)


def test_inversion_costs_one_evaluation_a_step(random_model, picture):
    z_0 = random_model.encode(picture)
    for scale, rows in ((1.0, 1), (3.0, 2)):
        before = random_model.nfe
        ddim_inversion(random_model, z_0, PROMPT, Schedule(random_model.scheduler, 5), guidance_scale=scale)
        assert random_model.nfe - before == 5 * rows


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("timestep", ["next", "current"])
def test_equation_9_is_an_identity(random_model64, picture, scale, timestep):
    model, schedule = random_model64, Schedule(random_model64.scheduler, 8)
    z_0 = model.encode(picture)
    inversion = ddim_inversion(model, z_0, PROMPT, schedule, timestep=timestep)
    inversion.sampled = Trajectory()
    guidance = ClassifierFreeGuidance(model.embed(PROMPT), model.embed(""), scale)
    end = follow(model, inversion.z_T, inversion.moves, guidance, callbacks=[inversion.sampled])
    gap = inversion.gap()
    torch.testing.assert_close(gap.left, gap.right, rtol=1e-10, atol=1e-10)
    assert gap.left[-1].abs().max() > 1e-3
    final = schedule.sampling()[-1].alpha_to
    torch.testing.assert_close(final**0.5 * gap.right[-1], end - z_0, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gap.terms.cumsum(0), gap.right)
    left, right = gap.norms()
    assert left.shape == (8,)
    torch.testing.assert_close(left, right)
    assert gap.timesteps == inversion.timesteps


def test_equation_9_refuses_paths_that_do_not_belong_together(random_model64, inversion):
    model = random_model64
    with pytest.raises(EditbookError, match="recorded sampling"):
        inversion.gap()
    guidance = ClassifierFreeGuidance(model.embed([PROMPT] * 2))
    other, elsewhere = Trajectory(), Trajectory()
    follow(model, inversion.z_T, Schedule(model.scheduler, 5).sampling(), guidance, callbacks=[other])
    follow(model, inversion.z_T + 1, inversion.moves, guidance, callbacks=[elsewhere])
    with pytest.raises(EditbookError, match="same steps"):
        inversion.gap(other)
    with pytest.raises(EditbookError, match="z_T"):
        inversion.gap(elsewhere)


def test_callbacks_see_the_way_up(random_model, picture):
    seen = []
    schedule = Schedule(random_model.scheduler, 4)
    ddim_inversion(random_model, random_model.encode(picture), PROMPT, schedule, callbacks=[lambda s: seen.append(s.t)])
    assert seen == schedule.timesteps[::-1]


def test_the_registry_names_it():
    assert INVERSIONS["ddim-inversion"] is DDIM


def test_a_real_picture_survives_without_guidance_and_drifts_with_it(pocket_model):
    import editbook

    model, task = pocket_model, editbook.pocket.task("cat-to-fox")
    z_0, schedule = model.encode(task.source_image), Schedule(model.scheduler, 50)
    inversion = ddim_inversion(model, z_0, task.source_prompt, schedule)
    errors = []
    for scale in (1.0, 7.5):
        guidance = ClassifierFreeGuidance(model.embed(task.source_prompt), model.embed(""), scale)
        back = follow(model, inversion.z_T, inversion.moves, guidance)
        errors.append(float((back - z_0).square().mean()))
    assert errors[0] < 0.5 * errors[1]
