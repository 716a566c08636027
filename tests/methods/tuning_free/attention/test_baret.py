"""BARET: what is tuned, how the three processes hang together, and what balanced attention hands over."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import editbook
from editbook import pocket
from editbook.attention import Capture, Chain
from editbook.errors import EditbookError
from editbook.inversion import ddim_inversion, make_inverter
from editbook.methods.base import reconstruct
from editbook.methods.tuning_free.attention.baret import BalancedAttention, Transition
from editbook.metrics import truth_psnr
from editbook.model import Model
from editbook.sampling import ClassifierFreeGuidance, Schedule, follow

TARGET = "a photo of a fox on the beach"
OFF = {"self_replace": 0.0, "cross_replace": 0.0}


def run(model, image, steps=4, **options):
    """The edit, and the rows [reconstruction, transition, edit] after each step of the last walk."""
    walked = []
    options = {"steps": steps, "inner_steps": 2, **options}
    if "inversion" in options:
        del options["inner_steps"]
    edit = editbook.edit(
        model, image, "baret", target=TARGET, callbacks=[lambda step: walked.append(step.z_next)], **options
    )
    return edit, [z for z in walked if len(z) == 3]


def same(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_the_prompt_is_tuned_and_nothing_else(random_model64, picture):
    model = random_model64
    weights = [p.clone() for part in (model.unet, model.text_encoder) for p in part.parameters()]
    invert = make_inverter("target-text-inversion", {"inner_steps": 3, "tolerance": 0.0})
    inversion = invert(model, model.encode(picture), TARGET, Schedule(model.scheduler, 4), guidance_scale=3.0)
    assert inversion.null is None
    assert all(min(losses) < losses[0] for losses in inversion.losses)
    after = [p for part in (model.unet, model.text_encoder) for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    rows = inversion.embed(model, [TARGET, TARGET, "a photo of a castle"])
    assert rows.shape[:2] == (4, 3)
    assert not torch.equal(rows[0, 0], rows[0, 1])
    assert all(torch.equal(row, model.embed(TARGET)[0]) for row in rows[:, 1])


def test_the_first_update_goes_down_the_slope_of_the_guided_loss(random_model64, picture):
    """Adam's first update is the rate times the sign of the gradient; compare with a difference quotient."""
    model = random_model64
    z_0, schedule = model.encode(picture), Schedule(model.scheduler, 4)
    pivot = ddim_inversion(model, z_0, TARGET, schedule)
    invert = make_inverter("target-text-inversion", {"inner_steps": 1, "learning_rate": 1e-4, "tolerance": 0.0})
    target = model.embed(TARGET)
    moved = invert(model, z_0, TARGET, schedule, guidance_scale=3.0).embed(model, [TARGET])[0] - target

    @torch.no_grad()
    def loss(embedding):
        eps = ClassifierFreeGuidance(embedding, model.embed(""), 3.0)(model, pivot.z_T, pivot.moves[0].t, 0)
        return float((pivot.moves[0](pivot.z_T, eps) - pivot.latents[1]).square().mean())

    checked = 0
    for position, channel in ((0, 0), (3, 17), (9, 100), (39, 5)):
        step = torch.zeros_like(target)
        step[0, position, channel] = 1e-5
        slope = loss(target + step) - loss(target - step)
        if abs(slope) > 1e-12:
            checked += 1
            assert float(moved[0, position, channel]) == pytest.approx(-1e-4 if slope > 0 else 1e-4, rel=1e-2)
    assert checked >= 3


def test_eta_0_is_the_reconstruction_and_eta_1_the_edit(random_model64, picture):
    _, walked = run(random_model64, picture, eta_start=0.0, eta_end=0.0, **OFF)
    for z in walked:
        same(z[1], z[0])
    assert (walked[-1][2] - walked[-1][0]).abs().max() > 1e-3
    _, walked = run(random_model64, picture, eta_start=1.0, eta_end=1.0, **OFF)
    for z in walked:
        same(z[1], z[2])
    assert (walked[-1][1] - walked[-1][0]).abs().max() > 1e-3


def test_the_transition_is_interpolated_from_the_first_row_to_the_last(random_model):
    tuned = torch.randn(5, 3, 40, 8)
    rows = Transition(lambda model, prompts: tuned, torch.linspace(0.2, 0.6, 5))(random_model, [])
    torch.testing.assert_close(rows[:, [0, 2]], tuned[:, [0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(rows[2, 1], 0.4 * tuned[2, 2] + 0.6 * tuned[2, 0])


@pytest.mark.parametrize(
    "options", [OFF, {"self_from": "transition"}, {"cross_from": "reconstruction"}, {"eta_end": 1}]
)
def test_the_reconstruction_is_what_the_inversion_promises(random_model64, picture, options):
    edit, walked = run(random_model64, picture, **{key: float(v) if v == 1 else v for key, v in options.items()})
    inversion = edit.inversion
    same(reconstruct(random_model64, inversion), walked[-1][:1])
    z = (walked[-1][:1] - inversion.latents[-1]).square().mean()
    assert float(z) == pytest.approx(min(inversion.losses[-1]), rel=1e-6)


def test_equal_rows_stay_equal_under_balanced_attention(random_model64, picture):
    """With DDIM inversion transition and edit have one embedding: borrowing from each other changes nothing."""
    options = {"inversion": "ddim-inversion", "self_from": "transition", "self_replace": 1.0, "cross_replace": 1.0}
    _, walked = run(random_model64, picture, **options)
    for z in walked:
        same(z[1], z[2])
    _, walked = run(random_model64, picture, **{**options, "self_from": "reconstruction"})
    assert (walked[-1][1] - walked[-1][2]).abs().max() > 1e-3


def test_the_edit_has_the_maps_of_the_other_two(random_model64):
    model = random_model64
    texts = model.embed([TARGET, "a photo of a castle", "a drawing of a red bus"])
    guidance = ClassifierFreeGuidance(texts, model.embed(""), 3.0)
    seen, free = (Capture(kinds=("cross", "self")) for _ in range(2))
    balance = BalancedAttention(0.5, 0.75, 8)
    z_T, path = torch.cat([model.random_latent(k) for k in range(3)]), Schedule(model.scheduler, 4).sampling()
    end = follow(model, z_T, path, guidance, attention=Chain([balance, seen]))
    plain = follow(model, z_T, path, guidance, attention=free)
    same(end[:2], plain[:2])
    assert set(seen.records) == set(free.records)
    for (site, step), record in seen.records.items():
        lender, until = (1, 3) if site.kind == "cross" else (0, 2)
        taken = step < until and (site.kind == "cross" or site.resolution <= 8)
        assert torch.allclose(record[2], record[lender], rtol=0, atol=1e-7) == taken, (site, step)


def test_it_stays_on_fused_attention():
    assert not BalancedAttention.reads_probabilities
    assert not BalancedAttention.reads_scores


def test_cost_is_that_of_null_text_inversion_and_three_guided_rows(random_model, picture):
    edit, _ = run(random_model, picture, tolerance=0.0)
    assert edit.nfe == 3 * 4 + 2 * 4 + 6 * 4


def test_outside_a_mask_the_edit_is_the_reconstruction(random_model64, picture):
    mask = np.zeros((16, 16))
    mask[4:12, 4:12] = 1
    _, walked = run(random_model64, picture, mask=mask)
    outside = torch.from_numpy(mask == 0)
    assert torch.equal(walked[-1][2][:, outside], walked[-1][0][:, outside])
    assert not torch.equal(walked[-1][2], walked[-1][0])


def test_half_precision_is_refused_before_any_work(random_model, picture):
    parts = (random_model.unet, random_model.vae, random_model.text_encoder)
    half = Model(*(copy.deepcopy(p).half() for p in parts), random_model.tokenizer, random_model.scheduler)
    with pytest.raises(EditbookError, match="float16: load the model with dtype='float32'"):
        run(half, picture)
    assert half.nfe == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta_end": 1.5}, "eta_end"),
        ({"eta_start": float("nan")}, "eta_start"),
        ({"self_replace": -0.1}, "self_replace"),
        ({"cross_from": "edit"}, "cross_from"),
        ({"self_from": "transitoin"}, "Did you mean 'transition'"),
        ({"self_limit": 8.5}, "self_limit"),
        ({"guidance_scale": 0.0}, "leaves out"),
        ({"inversion": "null-text-inversion"}, "cannot follow null-text-inversion"),
        ({"inversion": "ddim-inversion", "guidance_scale": 1.0}, "nothing would change"),
    ],
)
def test_bad_options_raise(random_model, picture, options, message):
    with pytest.raises(EditbookError, match=message):
        run(random_model, picture, steps=2, **options)


def test_effects_on_the_trained_model(pocket_model):
    """Back to the photo under guidance, without a source prompt; the edit arrives; attention keeps the background."""
    model, schedule = pocket_model, Schedule(pocket_model.scheduler, 15)
    errors, outside, inside = [], [], []
    chosen = [pocket.task("golden-car"), *pocket.bench().of_type("change colour")[:2]]
    for task in chosen:
        z_0 = model.encode(task.source_image)
        tuned = make_inverter("target-text-inversion", {"inner_steps": 4, "learning_rate": 0.04})(
            model, z_0, task.target_prompt, schedule, guidance_scale=3.0
        )
        plain = ddim_inversion(model, z_0, task.target_prompt, schedule)
        errors.append([float((reconstruct(model, i, 3.0) - z_0).square().mean().sqrt()) for i in (plain, tuned)])
        edits = []
        for taus in (OFF, {}):
            method = editbook.methods["baret"].configured(steps=15, guidance_scale=3.0, **taus)
            method.invert = lambda *_, tuned=tuned: tuned
            edits.append(editbook.edit(model, task.source_image, method, target=task.target_prompt))
        outside.append([truth_psnr(edit.image, task).outside for edit in edits])
        inside.append([truth_psnr(image, task).inside for image in (task.source_image, edits[1].image)])
    plain, tuned = np.mean(errors, 0)
    assert tuned < plain / 3
    assert np.diff(np.mean(outside, 0)) > 1
    assert np.diff(np.mean(inside, 0)) > 3
