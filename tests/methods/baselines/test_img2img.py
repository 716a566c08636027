"""Image-to-image: diffusers' pipeline step for step, and a knob that does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as pipeline_module

import editbook
from editbook.errors import EditbookError
from editbook.metrics import mse

TARGET = "a photo of a fox on the beach"


def run(model, image, steps=5, seed=0, **options):
    seen = []
    edit = editbook.edit(
        model,
        image,
        "img2img",
        source="",
        target=TARGET,
        steps=steps,
        seed=seed,
        callbacks=[seen.append],
        **options,
    )
    return edit, seen


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_it_equals_the_pipeline_of_diffusers(random_model64, picture, pipeline_around, monkeypatch, strength):
    model = random_model64
    noise = model.random_latent(3)
    monkeypatch.setattr(pipeline_module, "randn_tensor", lambda *_, **__: noise)
    pipeline = pipeline_around(StableDiffusionImg2ImgPipeline, model)
    theirs = pipeline(
        [TARGET],
        image=model.encode(picture),
        strength=strength,
        num_inference_steps=5,
        guidance_scale=7.5,
        output_type="latent",
    ).images
    _, seen = run(model, picture, steps=5, seed=3, strength=strength)
    assert len(seen) == int(5 * strength)
    assert (seen[-1].z_next - theirs).abs().max() < 1e-9


def test_cost_is_two_rows_for_each_step_left(random_model, picture):
    assert run(random_model, picture, steps=10, strength=0.5)[0].nfe == 5 * 2
    assert run(random_model, picture, steps=15)[0].nfe == 12 * 2


def test_more_strength_forgets_more(random_model, picture):
    z_0 = random_model.encode(picture)
    starts = [run(random_model, picture, steps=10, strength=s)[1][0].z_t for s in (0.1, 0.5, 1.0)]
    likeness = [float(torch.corrcoef(torch.stack([z.flatten(), z_0.flatten()]))[0, 1]) for z in starts]
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[0] > 0.9
    assert likeness[-1] < 0.3


def test_a_mask_keeps_the_outside_exactly(random_model, picture):
    mask = np.zeros((64, 64), np.float32)
    mask[:, :32] = 1
    edit, seen = run(random_model, picture, mask=mask)
    end, z_0 = seen[-1].z_next, random_model.encode(picture)
    assert torch.equal(end[..., 8:], z_0[..., 8:])
    assert (end - z_0)[..., :8].abs().max() > 1e-3
    assert not edit.mask[:, 8:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"strength": 0.01}, "no step"), ({"strength": 1.2}, "strength"), ({"strength": float("nan")}, "strength")],
)
def test_bad_strengths_raise(random_model, picture, options, message):
    with pytest.raises(EditbookError, match=message):
        run(random_model, picture, **options)


def test_it_needs_a_picture(random_model):
    with pytest.raises(EditbookError, match="picture"):
        run(random_model, None)


def test_trained_weights_trade_faithfulness_for_change(pocket_model):
    # 20 steps: with 10, the two steps of strength 0.2 are so long that the guidance overshoots in the object.
    source = editbook.pocket.task("cat-to-fox").source_image
    errors = [
        np.mean([mse(run(pocket_model, source, steps=20, seed=seed, strength=s)[0].image, source) for seed in range(3)])
        for s in (0.2, 0.5, 1.0)
    ]
    assert errors == sorted(errors)
