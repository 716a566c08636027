"""The schedule's pairs, the step's algebra, guidance, and agreement with diffusers in float64."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from editbook.errors import EditbookError
from editbook.sampling import (
    ClassifierFreeGuidance,
    Schedule,
    Trajectory,
    add_noise,
    clean_estimate,
    ddim_step,
    follow,
    whole_steps,
    within,
)

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


@pytest.fixture
def scheduler(random_model64):
    return copy.deepcopy(random_model64.scheduler)


def _randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("start", "end"), [(0.01, 0.5), (0.5, 0.01), (0.9, 0.99), (0.3, 0.3)])
def test_step_and_its_exchange_compose_to_the_identity(start, end):
    z, eps = _randn(2, 4, 8, 8), _randn(2, 4, 8, 8, seed=1)
    back = ddim_step(ddim_step(z, eps, start, end), eps, end, start)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-12)


def test_step_keeps_the_clean_estimate():
    z, eps = _randn(1, 4, 8, 8), _randn(1, 4, 8, 8, seed=1)
    moved = ddim_step(z, eps, 0.2, 0.7)
    torch.testing.assert_close(clean_estimate(moved, eps, 0.7), clean_estimate(z, eps, 0.2), rtol=0, atol=1e-12)


def test_noising_is_undone_by_the_true_noise():
    z, eps = _randn(1, 4, 8, 8), _randn(1, 4, 8, 8, seed=1)
    torch.testing.assert_close(clean_estimate(add_noise(z, eps, 0.3), eps, 0.3), z, rtol=0, atol=1e-12)
    assert torch.equal(add_noise(z, eps, 1.0), z)
    assert torch.equal(add_noise(z, eps, 0.0), eps)


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 333])
@pytest.mark.parametrize("settings", [{}, {"set_alpha_to_one": True, "steps_offset": 0}])
def test_schedule_and_step_agree_with_diffusers(random_model64, steps, settings):
    scheduler = DDIMScheduler.from_config(random_model64.scheduler.config, **settings)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    schedule = Schedule(scheduler, steps)
    assert schedule.timesteps == scheduler.timesteps.tolist()
    z = _randn(1, 4, 4, 4)
    for k, move in enumerate(schedule.sampling()):
        eps = _randn(1, 4, 4, 4, seed=k + 1)
        theirs = scheduler.step(eps, move.t, z, eta=0.0).prev_sample
        z = ddim_step(z, eps, move.alpha_from, move.alpha_to)
        torch.testing.assert_close(z, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 501, 998, 999])
def test_path_is_contiguous_and_inversion_walks_it_backwards(scheduler, steps):
    schedule = Schedule(scheduler, steps)
    down, up = schedule.sampling(), schedule.inversion()
    assert len(down) == len(up) == steps
    assert len(set(schedule.timesteps)) == steps
    for before, after in pairwise(down):
        assert before.alpha_to == after.alpha_from
    for a, b in zip(down, reversed(up), strict=True):
        assert (a.alpha_from, a.alpha_to, a.t) == (b.alpha_to, b.alpha_from, b.t)
        assert a.alpha_from <= a.alpha_to
    assert down[-1].alpha_to == float(scheduler.final_alpha_cumprod)


def test_current_convention_tells_the_level_that_the_latent_is_at(scheduler):
    moves = Schedule(scheduler, 50).inversion("current")
    assert moves[0].t == 0
    assert all(move.alpha_from == float(scheduler.alphas_cumprod[move.t]) for move in moves)
    following = Schedule(scheduler, 50).inversion("next")
    assert all(move.alpha_to == float(scheduler.alphas_cumprod[move.t]) for move in following)


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 0), (0.02, 1), (0.3, 15), (0.58, 29), (0.8, 40), (1.0, 50)])
def test_strength_takes_the_last_part_of_the_path(scheduler, strength, steps):
    schedule = Schedule(scheduler, 50)
    part = schedule.sampling(strength)
    assert len(part) == steps
    assert part == schedule.sampling()[50 - steps :]


@pytest.mark.parametrize("total", [7, 50, 100, 999])
def test_fractions_of_the_steps_are_whole_steps_whatever_floating_point_says(total):
    assert [whole_steps(k / total, total) for k in range(total + 1)] == list(range(total + 1))
    assert [whole_steps(k / total, total, nearest=True) for k in range(total + 1)] == list(range(total + 1))


def test_fractions_between_steps_go_down_or_to_the_nearest():
    assert int(0.29 * 100) == 28  # what is to be avoided
    assert whole_steps(0.29, 100) == 29
    assert [whole_steps(0.08, 20, nearest=nearest) for nearest in (False, True)] == [1, 2]
    assert [whole_steps(0.5, 5, nearest=nearest) for nearest in (False, True)] == [2, 3]


def test_spans_that_touch_share_no_step_and_leave_none_out():
    spans = [(0, 0.08), (0.08, 0.29), (0.29, 0.7), (0.7, 1.0)]
    for total in (3, 20, 50, 100):
        assert all(sum(within(span, i, total) for span in spans) == 1 for i in range(total))
    assert [i for i in range(50) if within((0.08, 0.1), i, 50)] == [4]


def test_bad_schedules_raise(scheduler):
    for steps in (0, -1, 1000, 2.5, "50", float("nan")):
        with pytest.raises(EditbookError, match="steps must be"):
            Schedule(scheduler, steps)
    schedule = Schedule(scheduler, 10)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(EditbookError, match="strength"):
            schedule.sampling(strength)
    with pytest.raises(EditbookError, match="next"):
        schedule.inversion("nxt")


def test_guided_sampling_equals_the_pipeline_of_diffusers(random_model64, pipeline_around):
    model = random_model64
    pipeline = pipeline_around(StableDiffusionPipeline, model)
    z_T = model.random_latent(3)
    theirs = pipeline(
        [SOURCE], num_inference_steps=8, guidance_scale=7.5, latents=z_T.clone(), output_type="latent"
    ).images
    guidance = ClassifierFreeGuidance(model.embed(SOURCE), model.embed(""), 7.5)
    ours = follow(model, z_T, Schedule(model.scheduler, 8).sampling(), guidance)
    assert theirs.dtype == torch.float64
    assert (ours - theirs).abs().max() < 1e-9
    assert (ours - z_T).abs().max() > 0.1


def test_guidance_mixes_rows_each_with_its_own_scale(random_model64):
    model = random_model64
    z, condition, null = model.random_latent(0, 3), model.embed([SOURCE, TARGET, SOURCE]), model.embed("")
    guided = ClassifierFreeGuidance(condition, null, [1.0, 3.0, 7.5])(model, z, 500, 0)
    with torch.no_grad():
        alone, empty = model.noise(z, 500, condition), model.noise(z, 500, null.expand(3, -1, -1))
    scales = torch.tensor([1.0, 3.0, 7.5], dtype=torch.float64).view(3, 1, 1, 1)
    torch.testing.assert_close(guided, empty + scales * (alone - empty), rtol=0, atol=1e-11)
    assert (guided[1] - alone[1]).abs().max() > 1e-3


def test_rows_at_scale_one_cost_no_second_evaluation(random_model):
    model, z = random_model, random_model.random_latent(0, 3)
    condition, null = model.embed([SOURCE, TARGET, SOURCE]), model.embed("")
    for scale, cost in ((1.0, 3), (7.5, 6), ([1.0, 7.5, 1.0], 4)):
        before = model.nfe
        with torch.no_grad():
            ClassifierFreeGuidance(condition, null, scale)(model, z, 500, 0)
        assert model.nfe - before == cost


def test_null_embeddings_may_change_with_the_step(random_model64):
    model, z = random_model64, random_model64.random_latent(0)
    condition, nulls = model.embed(SOURCE), torch.stack([model.embed(""), model.embed(TARGET)])
    for i in range(2):
        with torch.no_grad():
            ours = ClassifierFreeGuidance(condition, nulls, 4.0)(model, z, 500, i)
            fixed = ClassifierFreeGuidance(condition, nulls[i], 4.0)(model, z, 500, 0)
        assert torch.equal(ours, fixed)


def test_guidance_that_lacks_something_raises(random_model):
    condition = random_model.embed([SOURCE, TARGET])
    with pytest.raises(EditbookError, match="empty prompt"):
        ClassifierFreeGuidance(condition, None, 2.0)
    with pytest.raises(EditbookError, match="3 guidance scales"):
        ClassifierFreeGuidance(condition, random_model.embed(""), [1.0, 2.0, 3.0])


def test_callbacks_see_what_the_blend_made_and_the_trajectory_holds_it(random_model):
    model, path = random_model, Schedule(random_model.scheduler, 3).sampling()
    walked, seen = Trajectory(), []
    z_T = model.random_latent(0)
    end = follow(
        model,
        z_T,
        path,
        ClassifierFreeGuidance(model.embed(SOURCE)),
        blend=lambda step: torch.full_like(step.z_next, float(step.i)),
        callbacks=[walked, lambda step: seen.append((step.i, step.t, step.total))],
    )
    assert (end == 2).all()
    assert [float(z.mean()) for z in walked.latents[1:]] == [0.0, 1.0, 2.0]
    assert torch.equal(walked.latents[0], z_T)
    assert walked.moves == path
    assert seen == [(i, move.t, 3) for i, move in enumerate(path)]


def test_steps_know_their_clean_estimate(random_model64):
    model, steps = random_model64, []
    guidance = ClassifierFreeGuidance(model.embed(SOURCE))
    path = Schedule(model.scheduler, 3).sampling()
    z_0 = follow(model, model.random_latent(0), path, guidance, callbacks=[steps.append])
    for step in steps:
        torch.testing.assert_close(add_noise(step.z_0, step.eps, step.move.alpha_from), step.z_t)
    # The last level is alphas_cumprod[0], not 1: what comes out is the last estimate with a trace of noise.
    torch.testing.assert_close(z_0, add_noise(steps[-1].z_0, steps[-1].eps, path[-1].alpha_to))


def test_nan_never_passes_silently(random_model):
    model, path = random_model, Schedule(random_model.scheduler, 2).sampling()
    z = model.random_latent(0)
    with pytest.raises(EditbookError, match="starting latent"):
        follow(model, z * float("nan"), path, ClassifierFreeGuidance(model.embed(SOURCE)))
    with pytest.raises(EditbookError, match="finite number"):
        follow(model, z, path, ClassifierFreeGuidance(model.embed(SOURCE), model.embed(""), float("nan")))


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (3, 0.85), (30, 0.85), (50, 0.7), (849, 0.85), (999, 1.0)])
def test_spread_keeps_the_number_of_steps_and_ends_at_timestep_0(scheduler, steps, strength):
    path = Schedule(scheduler, steps).spread(strength)
    times = [move.t for move in path]
    assert len(path) == len(set(times)) == steps
    assert times == sorted(times, reverse=True)
    assert times[0] == round(1000 * strength) - 1
    assert times[-1] == 1 or steps == 1
    for before, after in pairwise(path):
        assert before.alpha_to == after.alpha_from
    for move in path:
        assert move.alpha_from == float(scheduler.alphas_cumprod[move.t])
    assert path[-1].alpha_to == float(scheduler.alphas_cumprod[0])
    gaps = {a - b for a, b in pairwise(times)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_bad_spread_raises(scheduler):
    for strength in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(EditbookError, match="strength"):
            Schedule(scheduler, 10).spread(strength)
    with pytest.raises(EditbookError, match="do not fit into 99 timesteps"):
        Schedule(scheduler, 100).spread(0.1)
