"""DiffEdit: what lies outside the mask is exact, what the two timings keep, and its limits, down to diffusers' own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.pipelines.deprecated.stable_diffusion_diffedit import pipeline_stable_diffusion_diffedit as theirs

import editbook
from editbook.errors import EditbookError
from editbook.masks import clamped_by_mean, find_mask
from editbook.masks.find import DiffEditMask, Subject
from editbook.metrics import mask_iou, psnr, truth_psnr
from editbook.pocket import bench
from editbook.sampling import Schedule

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a fox on the beach"
MASK = np.zeros((64, 64), np.float32)
MASK[16:48, 24:56] = 1
INSIDE = torch.from_numpy(MASK[::4, ::4] > 0)


def edit(model, picture, **options):
    """The edit, and the final latent of its row."""
    seen = []
    settings = {"source": SOURCE, "target": TARGET, "steps": 6, "guidance_scale": 3.0, "mask": MASK, **options}
    one = editbook.edit(model, picture, "diffedit", **settings, callbacks=[seen.append])
    return one, seen[-1].z_next[-1]


def test_outside_the_mask_the_latent_is_the_source_for_any_text_guidance_and_inversion(random_model64, picture):
    z_0 = random_model64.encode(picture)[0]
    for options in (
        {},
        {"target": "an upside-down golden robot"},
        {"guidance_scale": 12.0},
        {"encoding_ratio": 0.4},
        {"encode_with": "source"},
        {"encode_with": "source", "inversion": "edit-friendly-ddpm"},
        {"inversion": "proxedit"},
    ):
        _, z = edit(random_model64, picture, **options)
        torch.testing.assert_close(z[:, ~INSIDE], z_0[:, ~INSIDE], rtol=0, atol=1e-12)
        assert (z - z_0)[:, INSIDE].abs().max() > 1e-2


@pytest.mark.parametrize(("offset", "low", "high"), [(0, 0.0, 1e-6), (1, 2e-3, 2e-1)])
def test_with_the_timing_of_diffusers_it_is_the_first_inverted_latent(random_model64, picture, offset, low, high):
    """Which is the source only if the first step of the encoding goes nowhere, from level 0 to level 0."""
    model = copy.copy(random_model64)
    model.scheduler = DDIMScheduler.from_config(
        model.scheduler.config, steps_offset=offset, set_alpha_to_one=False, clip_sample=False
    )
    one, z = edit(model, picture, timing="diffusers")
    z_0 = model.encode(picture)[0]
    assert torch.equal(z[:, ~INSIDE], one.inversion.latents[-2][0][:, ~INSIDE])
    assert low <= float((z - z_0)[:, ~INSIDE].abs().max()) <= high


def test_a_full_mask_and_all_steps_are_plain_ddim_editing(random_model64, picture):
    _, z = edit(random_model64, picture, mask=np.ones((64, 64)), encoding_ratio=1.0, encode_with="source")
    seen = []
    editbook.edit(
        random_model64,
        picture,
        "ddim-inversion",
        source=SOURCE,
        target=TARGET,
        steps=6,
        guidance_scale=3.0,
        callbacks=[seen.append],
    )
    torch.testing.assert_close(z, seen[-1].z_next[-1], rtol=0, atol=1e-12)


def test_a_full_mask_without_a_change_of_text_is_ddim_reconstruction(random_model64, picture):
    same = {"source": SOURCE, "target": SOURCE, "guidance_scale": 1.0, "encode_with": "source"}
    one, z = edit(random_model64, picture, mask=np.ones((64, 64)), **same)
    torch.testing.assert_close(z, one.inversion.sampled.latents[-1][0], rtol=0, atol=1e-12)
    assert (z - random_model64.encode(picture)[0]).abs().max() > 1e-3  # which is not the source


def test_equal_texts_give_an_empty_mask_and_the_round_trip_of_the_autoencoder(random_model64, picture):
    one, z = edit(random_model64, picture, target=SOURCE, mask=None)
    assert not one.mask.any()
    assert torch.equal(z, random_model64.encode(picture)[0])
    assert one.image.tobytes() == random_model64.decode(random_model64.encode(picture)).tobytes()


def test_the_mask_is_that_of_the_mask_source_and_a_given_one_takes_its_place(random_model, picture):
    options = {"maps": 4, "clamp_ratio": 1.5}
    found = find_mask(random_model, picture, "diffedit", options, source=SOURCE, target=TARGET, seed=3)
    own, _ = edit(random_model, picture, mask=None, seed=3, **options)
    given, _ = edit(random_model, picture, mask=found.mask, seed=3)
    assert 0 < own.mask.mean() < 1
    assert np.array_equal(own.mask, given.mask)
    assert own.image.tobytes() == given.image.tobytes()
    assert own.nfe == given.nfe + 2 * 4  # a pair for each noise


def test_cost_follows_the_encoding_ratio(random_model, picture):
    for ratio, steps in ((1.0, 6), (0.5, 3), (0.2, 1)):
        one, _ = edit(random_model, picture, encoding_ratio=ratio)
        assert one.nfe == steps * (1 + 3)  # up; down: the source row, and both halves of the edit
        assert len(one.inversion.moves) == steps


def test_the_picture_is_encoded_without_words(random_model64, picture):
    one, _ = edit(random_model64, picture)
    other, _ = edit(random_model64, picture, source="a castle")
    assert one.inversion.prompt == ""
    assert one.image.tobytes() == other.image.tobytes()
    own, _ = edit(random_model64, picture, encode_with="source")
    assert own.inversion.prompt == SOURCE
    assert own.image.tobytes() != one.image.tobytes()


def test_a_soft_mask_mixes(random_model64, picture):
    half, z = edit(random_model64, picture, mask=np.full((64, 64), 0.5))
    z_0 = random_model64.encode(picture)[0]
    assert (z - z_0).abs().max() > 1e-2
    assert np.all(half.mask == 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timing": "late"}, "timing of diffedit"),
        ({"encode_with": "sauce"}, "Did you mean 'source'"),
        ({"encoding_ratio": 0.0}, "fraction of the steps"),
        ({"encoding_ratio": 1.5}, "fraction of the steps"),
        ({"encoding_ratio": 0.1}, "is no step"),
        ({"clamp_ratio": 1.0}, "number above 1"),
        ({"clamp_ratio": float("nan")}, "number above 1"),
        ({"maps": 0}, "at least 1"),
        ({"mask_strength": 1.0}, "between 0 and 1"),
        ({"mask_threshold": 1.0}, r"\[0, 1\)"),
        ({"reference": "sauce"}, "Did you mean 'source'"),
        ({"reference": "source", "source": "", "mask": None}, "needs a source prompt"),
        ({"encode_with": "source", "source": ""}, "needs a source prompt"),
        ({"target": ""}, "needs a target prompt"),
    ],
)
def test_bad_options_raise_before_any_work(random_model, picture, options, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        edit(random_model, picture, **options)
    assert random_model.nfe == before


def test_without_a_picture_it_says_so(random_model):
    with pytest.raises(EditbookError, match="needs a picture"):
        edit(random_model, None)


@pytest.fixture(scope="module")
def pipeline(pocket_model, pipeline_around):
    """diffusers' own pipeline around the shipped weights, in float64 as far as its constants let it."""
    model = editbook.load("pocket", dtype="float64")
    scheduler = DDIMScheduler.from_config(model.scheduler.config)
    inverse = DDIMInverseScheduler.from_config(model.scheduler.config)
    scheduler.alphas_cumprod = inverse.alphas_cumprod = model.scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = inverse.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    pipe = pipeline_around(theirs.StableDiffusionDiffEditPipeline, model, scheduler, inverse_scheduler=inverse)
    return model, pipe


def test_encoding_and_decoding_are_those_of_diffusers(pipeline):
    """Told to encode under the empty prompt without guidance; its defaults do neither."""
    (model, pipe), task, mask = pipeline, editbook.pocket.task("cat-to-fox"), torch.from_numpy(MASK[None, None])
    common = {"num_inference_steps": 10, "inpaint_strength": 0.8}
    z_0 = model.encode(task.source_image)
    latents = pipe.invert("", z_0, guidance_scale=1.0, **common).latents
    z = pipe(
        task.target_prompt, mask[..., ::4, ::4], latents, guidance_scale=5.0, output_type="latent", **common
    ).images
    one, ours = edit(
        model,
        task.source_image,
        source=task.source_prompt,
        target=task.target_prompt,
        steps=10,
        guidance_scale=5.0,
        timing="diffusers",
    )
    inverted = torch.cat(one.inversion.latents[:-1])
    torch.testing.assert_close(latents[0], inverted, rtol=0, atol=1e-5)
    torch.testing.assert_close(z, ours[None], rtol=0, atol=1e-4)
    _, paper = edit(
        model,
        task.source_image,
        source=task.source_prompt,
        target=task.target_prompt,
        steps=10,
        guidance_scale=5.0,
    )
    assert (z[0] - paper).abs().max() > 1e-2


def test_masks_are_those_of_diffusers_and_its_negative_prompts_are_not_what_they_seem(pipeline, monkeypatch):
    """Its encode_prompt returns (text, negative), and generate_mask takes them for (negative, text).

    With one negative prompt for both texts the difference is only scaled. With two, or without guidance, it breaks.
    """
    (model, pipe), task = pipeline, editbook.pocket.task("cat-to-fox")
    subject = Subject(task.source_image, task.source_prompt, task.target_prompt, seed=2)
    monkeypatch.setattr(theirs, "randn_tensor", lambda shape, **_: noise(shape))

    def noise(shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(2)).double()

    def generate(**options):
        texts = {"source_prompt": task.source_prompt, "target_prompt": task.target_prompt}
        latent = model.encode(task.source_image)
        return pipe.generate_mask(latent, **texts, num_maps_per_mask=3, output_type="np", **options)[0]

    level = (Schedule(model.scheduler, 50).timesteps[25]) / 1000
    ours = DiffEditMask(maps=3, strength=level)
    mask = generate()
    assert 0 < mask.mean() < 2 / 3
    assert np.array_equal(mask, ours(model, subject, "") > 0.5)
    with pytest.raises(TypeError):
        generate(guidance_scale=1.0)

    negative = {"source_negative_prompt": "a house at night", "target_negative_prompt": "snow"}
    texts = [task.source_prompt, task.target_prompt, *negative.values()]
    t = round(1000 * level)
    z_t = model.scheduler.add_noise(model.encode(task.source_image), noise((3, *model.latent_shape)), torch.tensor(t))
    with torch.no_grad():
        rows = model.noise(z_t.repeat(4, 1, 1, 1), t, model.embed(texts).repeat_interleave(3, 0)).chunk(4)
    source, target, source_negative, target_negative = rows

    def guided(text, other):
        return other + 7.5 * (text - other)

    right = guided(target, target_negative) - guided(source, source_negative)
    exchanged = guided(target_negative, target) - guided(source_negative, source)
    right, exchanged = (clamped_by_mean(d.abs().mean((0, 1))).numpy() > 0.5 for d in (right, exchanged))
    assert np.array_equal(generate(**negative), exchanged)
    assert not np.array_equal(right, exchanged)


def cells(mask):
    """A mask of 64 pixels at the latent's size: a cell is as open as the most open pixel over it."""
    return mask.reshape(16, 4, 16, 4).max((1, 3))


def made(model, task, **options):
    texts = {"source": task.source_prompt, "target": task.target_prompt}
    return editbook.edit(model, task.source_image, "diffedit", **texts, steps=20, **options)


def test_on_the_world_the_mask_finds_what_changes_and_the_caption_is_the_better_contrast(pocket_model):
    scores = {"source": [], "empty": [], "same area elsewhere": []}
    for task in bench().of_type("change object")[20:28]:
        subject, exact = Subject(task.source_image, task.source_prompt, task.target_prompt), cells(task.mask)
        for reference in ("source", "empty"):
            found = DiffEditMask(reference=reference)(pocket_model, subject, "")
            scores[reference].append(mask_iou(found, exact))
        scores["same area elsewhere"].append(mask_iou(np.roll(found, 8, 1), exact))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    assert means["source"] > 0.55
    assert means["source"] > means["empty"] + 0.02
    assert means["same area elsewhere"] < 0.25


def test_on_the_world_a_mask_keeps_the_rest(pocket_model):
    outside = {"found": [], "everything": []}
    for task in bench().of_type("change colour")[21:24]:
        for name, mask in {"found": None, "everything": np.ones((64, 64))}.items():
            outside[name].append(truth_psnr(made(pocket_model, task, mask=mask).image, task).outside)
    assert np.mean(outside["found"]) > np.mean(outside["everything"]) + 3


def test_on_the_world_styles_and_backgrounds_are_beyond_its_mask_but_not_beyond_its_edit(pocket_model):
    """The threshold leaves at most two thirds of the picture, and these edits need more."""
    for task in (bench().of_type("change style")[21], bench().of_type("change background")[22]):
        own, whole = made(pocket_model, task), made(pocket_model, task, mask=np.ones((64, 64)))
        assert own.mask.mean() < 0.3
        assert psnr(whole.image, task.truth) > psnr(own.image, task.truth) + 3
