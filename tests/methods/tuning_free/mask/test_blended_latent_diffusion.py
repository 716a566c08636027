"""Blended Latent Diffusion: diffusers' inpainting step for step, the two official timings, masks on a coarse grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as pipeline_module
from PIL import Image

import editbook
from editbook.errors import EditbookError
from editbook.masks import shrinking_masks
from editbook.methods.base import Request
from editbook.metrics import psnr, truth_psnr
from editbook.sampling import Schedule, add_noise

TARGET = "a photo of a fox on the beach"
MASK = np.zeros((64, 64), np.float32)
MASK[16:44, 24:56] = 1
INSIDE = torch.from_numpy(MASK[::4, ::4] > 0)


def edit(model, picture, **options):
    """The edit, and every step."""
    seen = []
    settings = {"target": TARGET, "steps": 5, "mask": MASK, **options}
    return editbook.edit(model, picture, "blended-latent-diffusion", **settings, callbacks=[seen.append]), seen


@pytest.fixture
def inpainted(pipeline_around, monkeypatch):
    """The final latent of diffusers' pipeline with the same noise, and the posterior's mean instead of a sample."""

    def run(model, picture, noise, **options):
        z_0 = model.encode(picture)
        monkeypatch.setattr(pipeline_module, "randn_tensor", lambda *_, **__: noise)
        monkeypatch.setattr(StableDiffusionInpaintPipeline, "_encode_vae_image", lambda *_, **__: z_0)
        pipeline = pipeline_around(StableDiffusionInpaintPipeline, model)
        mask = Image.fromarray((MASK * 255).astype(np.uint8))
        return pipeline(TARGET, image=picture, mask_image=mask, output_type="latent", **options).images

    return run


@pytest.mark.parametrize(("strength", "start"), [(0.6, "source"), (1.0, "noise")])
def test_it_equals_the_inpainting_pipeline_of_diffusers(random_model64, picture, inpainted, strength, start):
    """With strength 1 diffusers starts from pure noise."""
    model = random_model64
    settings = {"strength": strength, "guidance_scale": 4.0}
    theirs = inpainted(model, picture, model.random_latent(3), num_inference_steps=5, **settings)
    _, seen = edit(model, picture, seed=3, start=start, **settings)
    assert (seen[-1].z_next - theirs).abs().max() < 1e-9


def test_it_equals_the_pipeline_on_the_shipped_weights(pocket_model, inpainted):
    model, source = pocket_model, editbook.pocket.task("cat-to-fox").source_image
    settings = {"strength": 0.8, "guidance_scale": 7.5}
    theirs = inpainted(model, source, model.random_latent(0), num_inference_steps=20, **settings)
    _, seen = edit(model, source, steps=20, **settings)
    assert (seen[-1].z_next - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strength": 0.4},
        {"start": "noise", "seed": 7},
        {"noise": "fresh"},
        {"target": "an upside-down golden robot", "guidance_scale": 12.0},
        {"dilations": 2},
    ],
)
def test_outside_the_mask_the_final_latent_is_the_source(random_model64, picture, options):
    one, seen = edit(random_model64, picture, **options)
    z, z_0 = seen[-1].z_next, random_model64.encode(picture)
    torch.testing.assert_close(z[..., ~INSIDE], z_0[..., ~INSIDE], rtol=0, atol=1e-12)
    assert (z - z_0)[..., INSIDE].abs().max() > 1e-2
    assert np.array_equal(one.mask > 0, INSIDE.numpy())


def test_what_the_official_timings_leave_outside_the_mask(random_model64, picture):
    """LDM: the last step's own drawing. Scripts: the source at the level that the last step has left."""
    model = random_model64
    z_0, noise = model.encode(picture), model.random_latent(0)
    runs = {timing: edit(model, picture, timing=timing)[1] for timing in ("matched", "ldm", "script")}
    for a, b in zip(runs["matched"][:-1], runs["ldm"][:-1], strict=True):
        assert torch.equal(a.z_next, b.z_next)
    last = runs["ldm"][-1]
    assert torch.equal(last.z_next, last.move(last.z_t, last.eps))
    assert (last.z_next - z_0)[..., ~INSIDE].abs().max() > 1e-3
    last = runs["script"][-1]
    expected = add_noise(z_0, noise, last.move.alpha_from)
    torch.testing.assert_close(last.z_next[..., ~INSIDE], expected[..., ~INSIDE], rtol=0, atol=1e-12)
    assert torch.equal(last.z_next[..., INSIDE], last.move(last.z_t, last.eps)[..., INSIDE])


def test_every_step_pastes_the_level_where_it_arrives(random_model64, picture):
    model = random_model64
    z_0, noise = model.encode(picture), model.random_latent(0)
    for step in edit(model, picture)[1][:-1]:
        expected = add_noise(z_0, noise, step.move.alpha_to)
        torch.testing.assert_close(step.z_next[..., ~INSIDE], expected[..., ~INSIDE], rtol=0, atol=1e-12)


def test_a_full_mask_is_image_to_image(random_model64, picture):
    _, seen = edit(random_model64, picture, mask=np.ones((64, 64)), strength=0.6)
    other = []
    settings = {"target": TARGET, "steps": 5, "strength": 0.6, "guidance_scale": 5.0}
    editbook.edit(random_model64, picture, "img2img", **settings, callbacks=[other.append])
    torch.testing.assert_close(seen[-1].z_next, other[-1].z_next, rtol=0, atol=1e-12)


def test_the_noise_is_the_same_at_all_levels_or_fresh(random_model64, picture):
    z_0 = random_model64.encode(picture)

    def noises(**options):
        steps = edit(random_model64, picture, **options)[1][:-1]
        return [((s.z_next - s.move.alpha_to**0.5 * z_0) / (1 - s.move.alpha_to) ** 0.5)[..., ~INSIDE] for s in steps]

    same, fresh = noises(), noises(noise="fresh")
    assert all(torch.allclose(one, same[0], rtol=0, atol=1e-10) for one in same)
    assert min((a - b).abs().max() for a, b in pairwise(fresh)) > 1
    starts = [edit(random_model64, picture, noise=noise)[1][0].z_t for noise in ("same", "fresh")]
    torch.testing.assert_close(*starts, rtol=0, atol=1e-6)  # the first draw is the seed's latent


@pytest.mark.parametrize("noise", ["same", "fresh"])
def test_a_candidate_is_the_run_of_its_own_seed(random_model64, picture, noise):
    method = editbook.methods["blended-latent-diffusion"](steps=4, candidates=3, noise=noise)
    runs = method.runs(random_model64, Request(picture, "", TARGET, 5, pixel_mask=MASK))
    distances = [distance for distance, _ in runs]
    assert distances == sorted(distances)
    alone = [edit(random_model64, picture, steps=4, seed=5 + k, noise=noise)[0].image for k in range(3)]
    assert {image.tobytes() for _, image in runs} == {image.tobytes() for image in alone}
    assert len({image.tobytes() for image in alone}) == 3
    best, _ = edit(random_model64, picture, steps=4, seed=5, candidates=3, noise=noise)
    assert best.image.tobytes() == runs[0][1].tobytes()


def test_cost_is_two_rows_for_each_step_and_candidate(random_model, picture):
    assert edit(random_model, picture, steps=10, strength=0.5)[0].nfe == 10
    assert edit(random_model, picture, candidates=3)[0].nfe == 5 * 2 * 3


def test_a_mask_thinner_than_a_cell_survives_max_pooling_only(random_model, picture):
    thin = np.zeros((64, 64), np.float32)
    thin[20:22, 24:40] = 1  # the cells' centres, which "nearest" reads, are in row 22
    one, _ = edit(random_model, picture, mask=thin)
    assert one.mask.sum() == 4
    with pytest.raises(EditbookError, match="mask_resize='max'"):
        edit(random_model, picture, mask=thin, mask_resize="nearest")
    thick, _ = edit(random_model, picture, mask_resize="nearest")
    assert np.array_equal(thick.mask > 0, INSIDE.numpy())


def test_a_half_open_cell_is_opened_or_closed_but_in_proportion_it_closes(random_model64, picture):
    """(1 - m) of the difference is taken away in every step, so after all of them nearly all."""
    soft = np.where(MASK > 0, np.float32(0.6), np.float32(0.4))
    one, _ = edit(random_model64, picture, mask=soft)
    assert np.array_equal(one.mask > 0, INSIDE.numpy())
    sizes = {}
    for name, value in (("open", 1.0), ("half", 0.3)):
        _, seen = edit(random_model64, picture, mask=MASK * value, binarise=False, steps=20)
        sizes[name] = float((seen[-1].z_next - random_model64.encode(picture))[..., INSIDE].abs().mean())
    assert sizes["half"] < 0.5 * 0.3 * sizes["open"]
    with pytest.raises(EditbookError, match="No cell"):
        edit(random_model64, picture, mask=MASK * 0.4)


def test_the_masks_of_the_schedule_act_one_after_the_other(random_model64, picture):
    cells = torch.from_numpy(MASK[::4, ::4])[None, None]
    masks = shrinking_masks(cells, 2, 6)
    z_0, noise = random_model64.encode(picture), random_model64.random_latent(0)
    for step, mask in zip(edit(random_model64, picture, dilations=2, steps=6)[1][:-1], masks, strict=False):
        pasted = (step.z_next - add_noise(z_0, noise, step.move.alpha_to)).abs().amax(1, keepdim=True) < 1e-12
        assert torch.equal(pasted, mask == 0)


def test_the_background_is_put_back(random_model, picture):
    pasted, _ = edit(random_model, picture, background="paste")
    outside = MASK == 0
    assert np.array_equal(np.asarray(pasted.image)[outside], np.asarray(picture)[outside])
    plain, _ = edit(random_model, picture)
    assert not np.array_equal(np.asarray(plain.image)[outside], np.asarray(picture)[outside])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timing": "paper"}, "timing of blended-latent-diffusion"),
        ({"start": "sorce"}, "Did you mean 'source'"),
        ({"noise": "none"}, "noise of"),
        ({"mask_resize": "area"}, "mask_resize"),
        ({"background": "past"}, "Did you mean 'paste'"),
        ({"candidates": 0}, "candidates"),
        ({"dilations": -1}, "dilations"),
        ({"dilations": 5}, "6 stages, more than the 5 steps"),
        ({"strength": 0.1}, "no step"),
        ({"strength": 2.0}, "strength"),
        ({"candidates": 2, "clip": "not/a/clip"}, "CLIP 'not/a/clip'"),
        ({"mask": None}, "needs a mask"),
    ],
)
def test_bad_options_raise_before_any_work(random_model, picture, options, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        edit(random_model, picture, **options)
    assert random_model.nfe == before


def test_trained_weights_draw_into_the_mask(pocket_model):
    """The edit comes nearer to the truth inside than the source is, and outside stays at the autoencoder's error."""
    for name in ("golden-car", "remove-cookie", "add-apple"):
        task = editbook.pocket.task(name)
        one, seen = edit(pocket_model, task.source_image, target=task.target_prompt, mask=task.mask, steps=20)
        assert truth_psnr(one.image, task).inside > truth_psnr(task.source_image, task).inside + 2
        assert len(seen) == len(Schedule(pocket_model.scheduler, 20).sampling())
        far = np.asarray(Image.fromarray(one.mask).resize((64, 64), Image.Resampling.NEAREST)) == 0
        assert psnr(one.image, one.reconstruction, far.astype(float)) > 25
