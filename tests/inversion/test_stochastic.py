"""Stochastic inversion: prescribed latents are hit, maps repeat them, and the second-order solver is diffusers' own."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from editbook.errors import EditbookError
from editbook.inversion import SecondOrder, chained_noisings, extract_noise, independent_noisings, with_sigma
from editbook.inversion.stochastic import kept_part, source_guidance
from editbook.sampling import ClassifierFreeGuidance, Move, Schedule, ancestral_sigma, follow

SOURCE = "a photo of a cat on the beach"


def _randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def moves(random_model64):
    return with_sigma(Schedule(random_model64.scheduler, 6).sampling())


@pytest.mark.parametrize(("start", "end"), [(0.005, 0.02), (0.1, 0.5), (0.9, 0.999)])
def test_ddpm_noise_is_that_of_the_first_order_sde_solver(start, end):
    """sigma_to sqrt(1 - exp(-2h)), and the direction term sigma_to exp(-h) with it (Lu et al. 2022)."""
    h = 0.5 * (math.log(end / (1 - end)) - math.log(start / (1 - start)))
    sigma = ancestral_sigma(start, end)
    assert sigma == pytest.approx((1 - end) ** 0.5 * (1 - math.exp(-2 * h)) ** 0.5, rel=1e-12)
    assert (1 - end - sigma**2) ** 0.5 == pytest.approx((1 - end) ** 0.5 * math.exp(-h), rel=1e-12)


def test_sigma_scales_with_eta_and_nothing_else_changes(moves):
    plain = with_sigma(moves, 0.0)
    assert all(move.sigma == 0 for move in plain)
    for full, half, start in zip(moves, with_sigma(moves, 0.5), plain, strict=True):
        assert half.sigma == 0.5 * full.sigma > 0
        assert half.levels == start.levels
        assert half.t == start.t


@pytest.mark.parametrize("noisings", [independent_noisings, chained_noisings])
def test_noisings_have_the_distribution_of_the_forward_process(random_model64, noisings):
    moves = Schedule(random_model64.scheduler, 5).sampling()
    z_0 = torch.full((1, 4, 64, 64), 2.0, dtype=torch.float64)
    latents = noisings(z_0, moves, seed=3)
    assert latents[-1] is z_0
    assert len(latents) == 6
    for z, move in zip(latents, moves, strict=False):
        assert float(z.mean()) == pytest.approx(2 * move.alpha_from**0.5, abs=0.03)
        assert float(z.std()) == pytest.approx((1 - move.alpha_from) ** 0.5, rel=0.03)
    assert torch.equal(noisings(z_0, moves, seed=3)[0], latents[0])
    assert not torch.equal(noisings(z_0, moves, seed=4)[0], latents[0])


def test_only_a_chain_has_dependent_neighbours(random_model64):
    moves = Schedule(random_model64.scheduler, 10).sampling()
    z_0 = torch.zeros(1, 4, 64, 64, dtype=torch.float64)
    expected = [
        (a.alpha_from * (1 - b.alpha_from) / (b.alpha_from * (1 - a.alpha_from))) ** 0.5 for a, b in pairwise(moves)
    ]
    for noisings, share in ((independent_noisings, 0.0), (chained_noisings, 1.0)):
        for k, (a, b) in enumerate(pairwise(noisings(z_0, moves)[:-1])):
            correlation = float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
            assert correlation == pytest.approx(share * expected[k], abs=0.04)
    assert expected[-1] < 0.4 < expected[2]


@pytest.mark.parametrize("noisings", [independent_noisings, chained_noisings])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_maps_lead_back_whatever_the_path(random_model64, picture, noisings, scale, eta):
    model, z_0 = random_model64, random_model64.encode(picture)
    moves = with_sigma(Schedule(model.scheduler, 6).sampling(), eta)
    prescribed = noisings(z_0, moves)
    guidance = source_guidance(model, SOURCE, scale)
    inversion = extract_noise(model, prescribed, moves, guidance)
    for walked, wanted in zip(inversion.latents, prescribed, strict=True):
        torch.testing.assert_close(walked, wanted, rtol=0, atol=1e-10)
    back = follow(model, inversion.z_T, inversion.moves, guidance)
    torch.testing.assert_close(back, z_0, rtol=0, atol=1e-10)


def test_the_sampler_sees_the_very_same_numbers_in_float32(random_model, picture):
    """The drift correction: without it the walk would go on with latents that the sampler never has."""
    model, z_0 = random_model, random_model.encode(picture)
    moves = with_sigma(Schedule(model.scheduler, 6).sampling())
    guidance = source_guidance(model, SOURCE, 7.5)
    inversion = extract_noise(model, independent_noisings(z_0, moves), moves, guidance)
    assert torch.equal(follow(model, inversion.z_T, inversion.moves, guidance), inversion.latents[-1])


def test_a_zeroed_last_map_costs_exactly_its_noise(random_model64, picture, moves):
    model, z_0 = random_model64, random_model64.encode(picture)
    guidance = source_guidance(model, SOURCE, 3.5)
    prescribed = independent_noisings(z_0, moves)
    kept = extract_noise(model, prescribed, moves, guidance)
    zeroed = extract_noise(model, prescribed, moves, guidance, keep_last=False)
    back = follow(model, zeroed.z_T, zeroed.moves, guidance)
    last = kept.moves[-1]
    torch.testing.assert_close(z_0 - back, last.sigma * last.noise, rtol=0, atol=1e-10)
    torch.testing.assert_close(zeroed.latents[-1], back, rtol=0, atol=1e-12)
    assert (back - z_0).abs().max() > 1e-4
    assert 0.01 < last.sigma < 0.03  # 0.0206 at 50 steps or more


def test_a_step_without_noise_is_not_steered(random_model64, picture, moves):
    model, z_0 = random_model64, random_model64.encode(picture)
    moves = [*moves[:-1], replace(moves[-1], sigma=0.0)]
    guidance = source_guidance(model, SOURCE, 1.0)
    inversion = extract_noise(model, independent_noisings(z_0, moves), moves, guidance)
    assert inversion.moves[-1].noise is None
    back = follow(model, inversion.z_T, inversion.moves, guidance)
    torch.testing.assert_close(back, inversion.latents[-1], rtol=0, atol=1e-12)
    assert (back - z_0).abs().max() > 1e-4


def test_equation_9_vanishes_with_the_same_guidance_and_is_an_identity_with_another(random_model64, picture, moves):
    from editbook.methods.base import reconstruct

    model, z_0 = random_model64, random_model64.encode(picture)
    latents = independent_noisings(z_0, moves)
    inversion = extract_noise(model, latents, moves, source_guidance(model, SOURCE, 3.5), prompt=SOURCE)
    reconstruct(model, inversion, 3.5)
    assert inversion.gap().left.abs().max() < 1e-10
    reconstruct(model, inversion, 9.0)
    gap = inversion.gap()
    torch.testing.assert_close(gap.left, gap.right, rtol=1e-9, atol=1e-9)
    assert gap.left.abs().max() > 1e-3


@pytest.mark.parametrize(("steps", "skip", "left"), [(100, 0.36, 64), (50, 0.36, 32), (20, 0.0, 20), (3, 0.99, 1)])
def test_skip_is_a_fraction_of_the_steps(random_model64, steps, skip, left):
    schedule = Schedule(random_model64.scheduler, steps)
    assert kept_part(schedule, skip) == schedule.sampling()[steps - left :]


def test_bad_skip_raises(random_model64):
    for skip in (1.0, -0.1, float("nan")):
        with pytest.raises(EditbookError, match="skip"):
            kept_part(Schedule(random_model64.scheduler, 5), skip)


class Fixed:
    """A guidance that answers from a list, so that two solvers can be given the same estimates."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, model, z_t, t, i):
        return self.answers[i]


def _diffusers_solver(scheduler, steps, **settings):
    theirs = DPMSolverMultistepScheduler.from_config(
        scheduler.config,
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        timestep_spacing="leading",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
        **settings,
    )
    theirs.set_timesteps(steps)
    # set_timesteps keeps its sigmas in float32; the same numbers in float64 leave only mistakes.
    alphas = scheduler.alphas_cumprod.double()[theirs.timesteps]
    alphas = torch.cat([alphas, scheduler.alphas_cumprod.double()[:1]])
    exact = ((1 - alphas) / alphas) ** 0.5
    torch.testing.assert_close(theirs.sigmas.double(), exact, rtol=1e-4, atol=1e-6)
    theirs.sigmas = exact
    return theirs, [
        Move(int(t), float(a), float(b)) for t, a, b in zip(theirs.timesteps, alphas, alphas[1:], strict=False)
    ]


def test_second_order_is_the_solver_of_diffusers(random_model64):
    """Step by step in float64, with the same noise, against DPMSolverMultistepScheduler's own formulas."""
    theirs, moves = _diffusers_solver(random_model64.scheduler, 12)
    answers = [_randn(1, 4, 8, 8, seed=k) for k in range(12)]
    ours = SecondOrder(Fixed(answers), with_sigma(moves))
    z = expected = _randn(1, 4, 8, 8, seed=99)
    for i, move in enumerate(with_sigma(moves)):
        fresh = _randn(1, 4, 8, 8, seed=200 + i)
        z = replace(move, noise=fresh)(z, ours(None, z, move.t, i))
        expected = theirs.step(answers[i], theirs.timesteps[i], expected, variance_noise=fresh).prev_sample
        torch.testing.assert_close(z, expected.double(), rtol=0, atol=1e-5)  # their step computes in float32
    assert (z - with_sigma(moves)[-1](z, answers[-1])).abs().max() > 1e-3


def test_maps_are_those_of_the_ledits_pipeline_of_diffusers(random_model64, picture):
    """Its compute_noise, fed our latents and its own scheduler, gives our maps: solver and extraction agree."""
    from diffusers.pipelines.ledits_pp.pipeline_leditspp_stable_diffusion import compute_noise

    model, z_0 = random_model64, random_model64.encode(picture)
    theirs, moves = _diffusers_solver(model.scheduler, 8)
    moves = with_sigma(moves)
    latents = independent_noisings(z_0, moves)
    inversion = extract_noise(model, latents, moves, SecondOrder(source_guidance(model, SOURCE, 0), moves))
    with torch.no_grad():
        for i, move in enumerate(moves):
            eps = model.noise(inversion.latents[i], move.t, model.embed(""))
            noise, reached = compute_noise(theirs, latents[i + 1], inversion.latents[i], theirs.timesteps[i], eps, 1.0)
            torch.testing.assert_close(inversion.moves[i].noise, noise, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(inversion.latents[i + 1], reached, rtol=1e-9, atol=1e-9)


def test_second_order_begins_anew_at_step_0_and_only_there(random_model64, moves):
    answers = [_randn(1, 4, 8, 8, seed=k) for k in range(6)]
    guidance, z = SecondOrder(Fixed(answers), moves), _randn(1, 4, 8, 8, seed=9)
    with pytest.raises(EditbookError, match="from its beginning"):
        guidance(None, z, 0, 3)
    first = [guidance(None, z, 0, i) for i in range(3)]
    again = [guidance(None, z, 0, i) for i in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], answers[0])
    assert not torch.equal(first[1], answers[1])


def test_final_steps_may_be_first_order(moves):
    answers = [_randn(1, 4, 8, 8, seed=k) for k in range(6)]
    guidance, z = SecondOrder(Fixed(answers), moves, final_first_order=2), _randn(1, 4, 8, 8, seed=9)
    plain = [torch.equal(guidance(None, z, 0, i), answers[i]) for i in range(6)]
    assert plain == [True, False, False, False, True, True]


def _end(clean, scheduler, spacing, order):
    """From t = 901 to 301 with all fresh noise 0, where E[z_0 | z_t] is known."""
    times = range(901, 300, -spacing)
    levels = [float(scheduler.alphas_cumprod[t]) for t in times]
    moves = with_sigma([Move(t, a, b) for t, (a, b) in zip(times, pairwise(levels), strict=False)])

    def exact(model, z_t, t, i):
        alpha = moves[i].alpha_from
        return (z_t - alpha**0.5 * clean(z_t, alpha)) / (1 - alpha) ** 0.5

    guidance = SecondOrder(exact, moves) if order == 2 else exact
    z = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    for i, move in enumerate(moves):
        z = move(z, guidance(None, z, move.t, i))
    return float(z)


@pytest.mark.parametrize("order", [1, 2])
def test_on_normal_data_the_mean_of_both_solvers_is_exact(random_model64, order):
    """E[z_0 | z_t] is a martingale, and linear here: the step size cannot matter."""

    def clean(z, alpha):
        return (alpha**0.5 * 0.09 * z + (1 - alpha) * 0.7) / (alpha * 0.09 + 1 - alpha)

    coarse, fine = (_end(clean, random_model64.scheduler, spacing, order) for spacing in (100, 5))
    assert coarse == pytest.approx(fine, abs=1e-12)


def test_the_second_order_is_one(random_model64):
    """Data that are +1 or -1: halving the step halves the first order's error and quarters the second's."""

    def clean(z, alpha):
        return torch.tanh(alpha**0.5 * z / (1 - alpha))

    scheduler = random_model64.scheduler
    limit = _end(clean, scheduler, 1, 2)
    first, second = (
        [abs(_end(clean, scheduler, spacing, order) - limit) for spacing in (40, 20, 10)] for order in (1, 2)
    )
    assert all(1.6 < a / b < 2.4 for a, b in pairwise(first))
    assert all(3 < a / b < 5 for a, b in pairwise(second))


def test_unconditional_guidance_costs_one_evaluation(random_model, picture):
    model, z = random_model, random_model.random_latent(0)
    for scale, cost in ((0, 1), (1, 1), (3.5, 2)):
        before = model.nfe
        with torch.no_grad():
            eps = source_guidance(model, SOURCE, scale)(model, z, 500, 0)
        assert model.nfe - before == cost
    with torch.no_grad():
        mixed = ClassifierFreeGuidance(model.embed(SOURCE), model.embed(""), 0.0)(model, z, 500, 0)
        eps = source_guidance(model, SOURCE, 0)(model, z, 500, 0)
    torch.testing.assert_close(eps, mixed, rtol=1e-4, atol=1e-4)
