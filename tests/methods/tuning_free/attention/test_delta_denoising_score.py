"""Delta Denoising Score: what cancels, what is left, and that only what is left edits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook import pocket
from editbook.errors import EditbookError
from editbook.methods.tuning_free.attention.delta_denoising_score import DeltaGradient, DistilledGradient
from editbook.metrics import truth_psnr
from editbook.sampling import add_noise, clean_estimate
from editbook.score import Draw, descend, draws

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a fox on the beach"


def latent(model, seed=0):
    return 0.5 * model.random_latent(seed)


def test_equal_prompts_give_exactly_nothing_whatever_the_level_and_noise(random_model):
    z = latent(random_model)
    delta = DeltaGradient(random_model, z, SOURCE, SOURCE, 7.5)
    distilled = DistilledGradient(random_model, SOURCE, 7.5)
    for draw in draws(random_model, 5, seed=3):
        assert delta(random_model, z, draw)[0].abs().max() == 0
        assert distilled(random_model, z, draw)[0].abs().max() > 0.1
    assert torch.equal(descend(random_model, z, delta, steps=3, step_size=1.0), z)


def test_the_noise_must_be_shared(random_model64):
    """The classic bug: two noises leave a large gradient even between equal pictures with equal prompts."""
    model = random_model64
    z = latent(model)
    delta = DeltaGradient(model, z, SOURCE, SOURCE, 7.5)
    one, other = draws(model, 2)
    apart = delta(model, z, one)[1] - delta(model, z, Draw(0, one.t, one.alpha, other.noise))[1]
    assert apart.square().mean() > 0.1


def test_the_first_gradient_is_w_times_a_direction_between_texts(random_model64):
    model = random_model64
    z, draw = latent(model), next(iter(draws(model, 1, seed=1)))
    texts = model.embed([TARGET, SOURCE])
    estimates = model.noise(draw(z).repeat(2, 1, 1, 1), draw.t, texts)
    for w in (1.0, 3.0, 6.0):
        g, _ = DeltaGradient(model, z, SOURCE, TARGET, w)(model, z, draw)
        torch.testing.assert_close(g, w * (estimates[:1] - estimates[1:]), rtol=0, atol=1e-10)
        back, _ = DeltaGradient(model, z, TARGET, SOURCE, w)(model, z, draw)
        torch.testing.assert_close(back, -g, rtol=0, atol=1e-12)


def test_the_update_is_the_official_loss_under_sgd(random_model64):
    """lr 0.1 on 2000 sum(g z) / (H W), g detached, at Stable Diffusion's 64 x 64."""
    model, z = random_model64, latent(random_model64)
    z64 = torch.randn(1, 4, 64, 64, dtype=torch.float64, requires_grad=True)
    g64 = torch.randn(1, 4, 64, 64, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(2000 * (g64 * z64).sum() / 64**2, z64)
    method = editbook.methods["delta-denoising-score"]()
    torch.testing.assert_close(0.1 * gradient, method.step_size * g64)
    delta = DeltaGradient(model, z, SOURCE, TARGET, 2.0)
    moved = descend(model, z, delta, steps=1, step_size=method.step_size, seed=4)
    g, _ = delta(model, z, next(iter(draws(model, 1, seed=4))))
    torch.testing.assert_close(moved, z - method.step_size * g)


def test_draws_are_uniform_over_the_official_timesteps_and_standard_normal(random_model):
    drawn = list(draws(random_model, 1000, seed=1))
    times = np.array([draw.t for draw in drawn])
    assert times.min() >= 50
    assert times.max() <= 948
    assert abs(times.mean() - 499) < 25
    ends = [{draw.t for draw in draws(random_model, 40, t_range=ends)} for ends in ((0.05, 0.053), (0.947, 0.95))]
    assert ends == [{50, 51}, {947, 948}]
    noises = torch.cat([draw.noise for draw in drawn[:300]])
    assert abs(float(noises.mean())) < 0.01
    assert abs(float(noises.std()) - 1) < 0.01
    again = list(draws(random_model, 2, seed=1))
    assert again[1].t == drawn[1].t
    assert torch.equal(again[1].noise, drawn[1].noise)
    assert [draw.t for draw in draws(random_model, 20, seed=2)] != [draw.t for draw in drawn[:20]]


def test_callbacks_get_the_noised_and_the_clean_latent(random_model64):
    model, z, seen = random_model64, latent(random_model64), []
    delta = DeltaGradient(model, z, SOURCE, TARGET, 2.0)
    end = descend(model, z, delta, steps=3, step_size=0.1, seed=5, callbacks=[seen.append])
    clean = z
    for step, draw in zip(seen, draws(model, 3, seed=5), strict=True):
        assert (step.i, step.total, step.t, step.move.alpha_to) == (draw.i, 3, draw.t, 1.0)
        torch.testing.assert_close(step.z_t, add_noise(clean, draw.noise, draw.alpha))
        torch.testing.assert_close(step.z_0, clean_estimate(step.z_t, step.eps, draw.alpha))
        clean = step.z_next
    assert torch.equal(clean, end)


def test_a_mask_keeps_what_is_outside(random_model):
    z, mask = latent(random_model), torch.zeros(1, 1, 16, 16)
    mask[..., 4:9, 3:12] = 1
    moved = descend(
        random_model, z, DeltaGradient(random_model, z, SOURCE, TARGET, 2.0), steps=2, step_size=0.1, mask=mask
    )
    changed = (moved != z).any(1, keepdim=True)
    assert torch.equal(changed, mask.bool())


def test_no_step_is_the_autoencoder_and_dds_costs_four_rows(random_model, picture):
    options = {"source": SOURCE, "target": TARGET, "steps": 3}
    still = editbook.edit(random_model, picture, "delta-denoising-score", step_size=0.0, **options)
    assert still.image.tobytes() == still.reconstruction.tobytes()
    alone = np.asarray(random_model.decode(random_model.encode(picture)), int)
    assert np.abs(np.asarray(still.image, int) - alone).max() <= 1  # rounding: one picture, or two at once
    assert still.nfe == 3 * 4
    assert editbook.edit(random_model, picture, "delta-denoising-score", loss="sds", **options).nfe == 3 * 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"loss": "mse"}, "loss"),
        ({"step_size": -1.0}, "step_size"),
        ({"t_low": 0.9, "t_high": 0.2}, "t_low"),
        ({"steps": 4, "step_size": 1e38}, "step_size|not finite"),
    ],
)
def test_bad_options(bad, message, random_model, picture):
    with pytest.raises(EditbookError, match=message):
        editbook.edit(
            random_model, picture, "delta-denoising-score", source=SOURCE, target=TARGET, **{"steps": 2, **bad}
        )


def test_it_needs_a_picture(random_model):
    with pytest.raises(EditbookError, match="needs a picture"):
        editbook.edit(random_model, None, "delta-denoising-score", source=SOURCE, target=TARGET)


def test_the_delta_lies_where_the_edit_belongs_and_the_distilled_score_does_not(pocket_model):
    """The mean of |g| inside the exact mask over that outside, at the source picture."""
    model, ratios = pocket_model, []
    for name in ("cat-to-fox", "add-crown", "red-to-blue-bus"):
        task = pocket.task(name)
        z = model.encode(task.source_image)
        inside = torch.nn.functional.avg_pool2d(torch.from_numpy(task.mask)[None], model.factor)[0] > 0.5
        pair = []
        for gradient in (
            DeltaGradient(model, z, task.source_prompt, task.target_prompt, 4.0),
            DistilledGradient(model, task.target_prompt, 4.0),
        ):
            with torch.no_grad():
                mean = torch.stack([gradient(model, z, draw)[0][0] for draw in draws(model, 8)]).abs().mean((0, 1))
            pair.append(float(mean[inside].mean() / mean[~inside].mean()))
        ratios.append(pair)
    delta, distilled = np.mean(ratios, 0)
    assert delta > 1.5
    assert delta > 1.3 * distilled


def test_it_keeps_more_of_the_picture_than_the_distilled_score(pocket_model):
    task = pocket.task("add-crown")
    outside = {
        loss: truth_psnr(
            editbook.edit(
                pocket_model,
                task.source_image,
                "delta-denoising-score",
                source=task.source_prompt,
                target=task.target_prompt,
                loss=loss,
                steps=30,
                guidance_scale=4.0,
            ).image,
            task,
        ).outside
        for loss in ("dds", "sds")
    }
    assert outside["dds"] > outside["sds"] + 3
