"""InstructPix2Pix's guidance: its corners, and diffusers' pipeline."""

from __future__ import annotations

import copy

import pytest
import torch

import editbook
from editbook.deltas import widen_input
from editbook.errors import EditbookError
from editbook.guidance import InstructGuidance
from editbook.model import Model
from editbook.sampling import Schedule, follow

INSTRUCTION = "turn the cat into a fox"


def guidance(model, picture, image_scale=1.5, text_scale=4.0):
    texts = model.embed(INSTRUCTION), model.embed("")
    return InstructGuidance(model.condition(picture), *texts, image_scale, text_scale)


def test_the_corners_of_both_scales(instruct_model64, picture):
    model = instruct_model64
    z, t = model.random_latent(0, 2), 500
    neither, image, both = guidance(model, picture).predictions(model, z, t)
    expected = {(0.0, 0.0): neither, (1.0, 0.0): image, (1.0, 1.0): both}
    for scales, eps in expected.items():
        assert torch.allclose(guidance(model, picture, *scales)(model, z, t, 0), eps, atol=1e-12)
    assert not torch.allclose(neither, image)
    assert not torch.allclose(image, both)
    for one, other in zip(guidance(model, picture).with_image(model, z, t), (image, both), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_predictions_are_those_of_the_u_net(instruct_model64, picture):
    """Three plain calls: zeros and the empty text, the picture and the empty text, the picture and the instruction."""
    model = instruct_model64
    z, c = model.random_latent(0), model.condition(picture)
    made = guidance(model, picture).predictions(model, z, 700)
    for eps, condition, text in zip(made, (0 * c, c, c), ("", "", INSTRUCTION), strict=True):
        inputs = torch.cat([z, condition], 1)
        with torch.no_grad():
            plain = model.unet(inputs, 700, encoder_hidden_states=model.embed(text)).sample
        assert torch.allclose(eps, plain, atol=1e-12)


def test_three_rows_for_each_latent(instruct_model, picture):
    before = instruct_model.nfe
    guidance(instruct_model, picture)(instruct_model, instruct_model.random_latent(0, 2), 500, 0)
    assert instruct_model.nfe == before + 6


def test_an_untrained_widening_ignores_the_picture(random_model64, picture):
    unet = copy.deepcopy(random_model64.unet)
    widen_input(unet, 8)
    model = Model(unet, *(getattr(random_model64, part) for part in ("vae", "text_encoder", "tokenizer", "scheduler")))
    z = model.random_latent(0)
    low, high = (guidance(model, picture, scale)(model, z, 500, 0) for scale in (0.0, 3.0))
    assert torch.allclose(low, high, atol=1e-12)
    text = random_model64.noise(z, 500, random_model64.embed(INSTRUCTION))
    assert torch.allclose(guidance(model, picture, 2.0, 1.0)(model, z, 500, 0), text, atol=1e-12)


def test_the_condition_is_the_latent_without_its_factor(instruct_model, picture):
    model = instruct_model
    assert torch.allclose(model.condition(picture) * model.vae.config.scaling_factor, model.encode(picture))


def test_a_model_of_v_that_sees_a_picture(instruct_model64, picture):
    """The noise behind v is computed with the noisy latent alone, not with the picture's behind it."""
    model = instruct_model64
    scheduler = copy.deepcopy(model.scheduler)
    scheduler.register_to_config(prediction_type="v_prediction")
    other = Model(model.unet, model.vae, model.text_encoder, model.tokenizer, scheduler)
    z, t = model.random_latent(0), 400
    alpha = scheduler.alphas_cumprod[t]
    for v, eps in zip(
        guidance(model, picture).predictions(model, z, t),
        guidance(other, picture).predictions(other, z, t),
        strict=True,
    ):
        assert torch.allclose(eps, alpha.sqrt() * v + (1 - alpha).sqrt() * z, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_same_as_diffusers(instruct_model64, picture, pipeline_around):
    """Same start, same DDIM steps, same scales; the scheduler is fed ours."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    model = instruct_model64
    pipeline = pipeline_around(StableDiffusionInstructPix2PixPipeline, model)
    theirs = pipeline(
        INSTRUCTION,
        image=picture,
        latents=model.random_latent(3),
        num_inference_steps=5,
        guidance_scale=4.0,
        image_guidance_scale=1.5,
        output_type="latent",
    ).images
    path = Schedule(model.scheduler, 5).sampling()
    ours = follow(model, model.random_latent(3), path, guidance(model, picture))
    assert torch.allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("bad", [{"image_scale": -1.0}, {"text_scale": float("nan")}])
def test_bad_scales(bad, instruct_model, picture):
    with pytest.raises(EditbookError, match="at least 0"):
        guidance(instruct_model, picture, **bad)


def test_models_and_methods_of_the_other_kind_are_refused(random_model, instruct_model, picture):
    with pytest.raises(EditbookError, match="does not see"):
        guidance(random_model, picture)(random_model, random_model.random_latent(0), 500, 0)
    with pytest.raises(EditbookError, match="reads latents"):
        instruct_model.noise(instruct_model.random_latent(0), 500, instruct_model.embed(""))
    with pytest.raises(EditbookError, match="sees the source picture"):
        editbook.edit(random_model, picture, "instruct-pix2pix", instruction=INSTRUCTION)
    with pytest.raises(EditbookError, match="plain text-to-image"):
        editbook.edit(instruct_model, picture, "img2img", target="a fox")
