"""Blended Diffusion: what its mask, its gradient and its blend promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import editbook
from editbook.clip_guidance import load_clip_distance
from editbook.errors import EditbookError
from editbook.methods import Request
from editbook.methods.tuning_free.mask.blended_diffusion import BlendedDiffusion, BlendNoised, ClipGuidance
from editbook.model import SHIPPED
from editbook.sampling import Step, ancestral_sigma, follow

pytestmark = pytest.mark.skipif(not (SHIPPED / "pixel").is_dir(), reason="src/editbook/weights/pixel is absent")

TARGET = "a photo of a fox on the beach"
HALF = np.zeros((64, 64), np.float32)
HALF[:, :32] = 1
FAST = {"steps": 8, "candidates": 2, "augmentations": 3}


@pytest.fixture
def request_(random_model64, picture):
    mask = torch.from_numpy(HALF)[None, None]
    return Request(picture, "", TARGET, 0, mask[..., ::4, ::4].double(), (), HALF)


def run(model, picture, **options):
    seen = []
    edit = editbook.edit(
        model, picture, "blended-diffusion", target=TARGET, mask=HALF, callbacks=[seen.append], **{**FAST, **options}
    )
    return edit, seen


def guidance(model, request, rows=1, space="pixel", **options):
    method = BlendedDiffusion(space=space)
    where, _ = method.walk_in(model, request)
    clip = load_clip_distance("pocket")
    options = {"scale": 1000.0, "generators": [torch.Generator().manual_seed(k) for k in range(rows)], **options}
    return ClipGuidance(where, clip, clip.embed(TARGET), **options)


@pytest.mark.parametrize("options", [{}, {"sampler": "ddim"}, {"timing": "matched"}, {"space": "latent"}])
def test_outside_the_mask_the_picture_is_the_source(options, random_model, picture):
    edit, _ = run(random_model, picture, **options)
    same = (np.asarray(edit.image) == np.asarray(picture)).all(-1)
    assert same[HALF == 0].all()
    assert not same[HALF == 1].all()
    free, _ = run(random_model, picture, paste=False, **options)
    exact = (np.asarray(free.image) == np.asarray(picture)).all(-1)[HALF == 0].all()
    assert exact == (options == {"timing": "matched"})  # then the last blend already is the source


def test_with_an_empty_mask_the_picture_is_the_source(random_model, picture, request_):
    closed = replace(request_, mask=0 * request_.mask, pixel_mask=0 * HALF)
    assert BlendedDiffusion(**FAST)(random_model, closed).image.tobytes() == picture.tobytes()


def test_the_background_is_the_source_noised_to_the_level_of_its_timing(random_model64, picture):
    """What is left when the noise is taken away: sqrt(alpha) x_0, at the level left or the level reached."""
    x_0 = torch.from_numpy(np.asarray(picture, np.float64)).permute(2, 0, 1) / 127.5 - 1
    outside = torch.from_numpy(HALF == 0)
    for timing in ("paper", "matched"):
        _, seen = run(random_model64, picture, timing=timing, candidates=1)
        for step in seen[:-1]:
            alpha = step.move.alpha_from if timing == "paper" else step.move.alpha_to
            noise = (step.z_next[0] - alpha**0.5 * x_0)[:, outside] / (1 - alpha) ** 0.5
            assert abs(float(noise.std()) - 1) < 0.05
            assert abs(float(noise.mean())) < 0.05
        last = seen[-1].z_next[0][:, outside]
        matched = torch.allclose(last, x_0[:, outside], atol=1e-6)
        assert matched == (timing == "matched")


def test_a_full_mask_is_clip_guided_diffusion_and_no_weight_is_no_guidance(random_model64, picture, request_):
    model = random_model64
    everywhere = replace(request_, mask=torch.ones_like(request_.mask), pixel_mask=np.ones_like(HALF))
    one, other = (
        BlendedDiffusion(steps=6, candidates=1, blending=blending).runs(model, everywhere)[0]
        for blending in (True, False)
    )
    assert one[1].tobytes() == other[1].tobytes()
    unguided = guidance(model, request_, scale=0.0, range_scale=0.0)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    eps = unguided(model, x, 500, 0)
    assert unguided.gradient.abs().max() == 0
    assert torch.equal(eps, unguided.space.noise(x, 500).detach())


def test_the_gradient_goes_downhill(random_model64, request_):
    model = random_model64
    guide = guidance(model, request_)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha = guide.alphas[400]

    def loss(at):
        guide.generators = [torch.Generator().manual_seed(0)]
        return float(guide.loss(at, guide.space.noise(at, 400), alpha).detach())

    guide.generators = [torch.Generator().manual_seed(0)]
    guide(model, x, 400, 0)
    way = guide.gradient / guide.gradient.norm()
    slope = (loss(x + 1e-2 * way) - loss(x - 1e-2 * way)) / 2e-2
    assert slope < 0
    assert slope == pytest.approx(-float(guide.gradient.norm()), rel=0.1)


def test_a_row_does_not_depend_on_its_neighbours(random_model, request_):
    model = random_model
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    together = guidance(model, request_, 3)
    together(model, x, 400, 0)
    for k in range(3):
        alone = guidance(model, request_, generators=[torch.Generator().manual_seed(k)])
        alone(model, x[k : k + 1], 400, 0)
        assert torch.allclose(alone.gradient[0], together.gradient[k], atol=1e-3 * float(alone.gradient.abs().max()))
    one, other = (BlendedDiffusion(**FAST, batch_size=size).runs(model, request_) for size in (1, 2))
    for (_, alone), (_, beside) in zip(one, other, strict=True):
        assert np.abs(np.asarray(alone, int) - np.asarray(beside, int)).max() <= 2


def test_what_clip_sees_is_grey_outside_the_mask(random_model, request_):
    guide = guidance(random_model, request_, views=4)
    guide(random_model, torch.randn(1, 3, 64, 64), 400, 0)
    assert guide.seen.shape == (4, 1, 3, 64, 64)
    assert guide.seen[0, 0][:, HALF == 0].abs().max() == 0
    assert not torch.equal(guide.seen[0], guide.seen[1])


def test_ddim_changes_the_estimate_and_ancestral_steps_the_mean(random_model64, request_):
    model, x = random_model64, torch.randn(1, 3, 64, 64, dtype=torch.float64)
    plain, shifted = (guidance(model, request_, shift_noise=shift) for shift in (False, True))
    eps, moved = plain(model, x, 400, 0), shifted(model, x, 400, 0)
    alpha = plain.alphas[400]
    assert torch.allclose(moved, eps - (1 - alpha) ** 0.5 * plain.gradient, atol=1e-8)
    method = BlendedDiffusion(steps=10)
    move = method.path(plain.space)[2]
    assert move.sigma == ancestral_sigma(*move.levels) > 0
    blends = [BlendNoised(plain.space, plain, [torch.Generator().manual_seed(0)]) for _ in range(2)]
    plain.gradient = torch.zeros_like(x)
    before = blends[0](Step(2, 8, move, x, eps, x))
    plain.gradient = torch.ones_like(x)
    after = blends[1](Step(2, 8, move, x, eps, x))
    inside = plain.space.mask.bool().expand_as(x)
    assert torch.allclose((after - before)[inside], torch.tensor(move.sigma**2, dtype=torch.float64), atol=1e-8)
    assert method.path(plain.space)[-1].sigma == 0  # the result is the last estimate of the clean picture


def test_an_unguided_ancestral_walk_is_that_of_diffusers(random_model64, request_):
    """Without guidance and blend: DDIM with eta 1, the noise given."""
    from diffusers import DDIMScheduler

    from editbook.pixel_diffusion import load_pixel_diffusion

    guide = guidance(random_model64, request_, scale=0.0, range_scale=0.0)
    method = BlendedDiffusion(steps=5, strength=1.0)
    path, drawn = method.path(guide.space), torch.Generator().manual_seed(7)
    blend = BlendNoised(guide.space, guide, [drawn], blending=False)
    start = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = follow(random_model64, start, path, guide, blend=blend)
    pixels = load_pixel_diffusion(dtype=torch.float64)
    scheduler = DDIMScheduler.from_config(pixels.scheduler.config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(5)
    generator, x = torch.Generator().manual_seed(7), start
    for t in scheduler.timesteps:
        eps = pixels.noise(x, int(t))
        shape = x.shape[1:]
        noise, _ = (
            torch.randn(shape, generator=generator)[None].double() for _ in range(2)
        )  # the second is the blend's
        scheduler.config.prediction_type, kept = "epsilon", scheduler.config.prediction_type
        x = scheduler.step(eps, t, x, eta=1.0, variance_noise=noise).prev_sample
        scheduler.config.prediction_type = kept
    assert torch.allclose(ours, x, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("space", "pixels"),
        ("sampler", "euler"),
        ("timing", "late"),
        ("candidates", 0),
        ("augmentations", 0),
        ("range_scale", -1.0),
        ("background_scale", float("nan")),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(EditbookError, match=option):
        BlendedDiffusion(**{option: value})


def test_bad_inputs(random_model, picture):
    with pytest.raises(EditbookError, match="needs a mask"):
        editbook.edit(random_model, picture, "blended-diffusion", target=TARGET)
    with pytest.raises(EditbookError, match="leaves no step"):
        run(random_model, picture, strength=0.01)
    with pytest.raises(EditbookError, match="model of pixels"):
        run(random_model, picture, pixel_model="/nowhere")
    with pytest.raises(EditbookError, match="picture and a mask"):
        BlendedDiffusion().runs(random_model, Request(None, "", TARGET))


def test_clip_comes_closer_with_guidance(pocket_model):
    """CLIP's own distance of the masked part falls; whether the picture is better is another question."""
    task = editbook.pocket.task("red-to-blue-bus")
    mask = torch.from_numpy(task.mask)[None, None]
    request = Request(task.source_image, "", task.target_prompt, 0, mask[..., ::4, ::4], (), task.mask)
    distances = {
        scale: np.mean(
            [d for d, _ in BlendedDiffusion(steps=20, candidates=4, guidance_scale=scale).runs(pocket_model, request)]
        )
        for scale in (0.0, 1000.0)
    }
    assert distances[1000.0] < 0.9 * distances[0.0]
