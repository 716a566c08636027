"""PFB-Diff: a full mask is plain editing, the source stays on its path, blends end when they should, words stay in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.metrics import truth_psnr
from editbook.pocket import bench

SOURCE, TARGET = "a photo of a cat on the beach", "a photo of a fox on the beach"
MASK = np.zeros((64, 64), np.float32)
MASK[16:48, 24:56] = 1
INSIDE = torch.from_numpy(MASK[::4, ::4] > 0)
FULL = np.ones((64, 64), np.float32)


def edit(model, picture, method="pfb-diff", **options):
    """The edit, and the steps of the way back."""
    seen = []
    settings = {"source": SOURCE, "target": TARGET, "steps": 6, "guidance_scale": 3.0, **options}
    if method == "pfb-diff":
        settings.setdefault("mask", MASK)
    one = editbook.edit(model, picture, method, **settings, callbacks=[seen.append])
    return one, [step for step in seen if len(step.z_t) == 2]


@pytest.mark.parametrize("words", [None, []])
@pytest.mark.parametrize("preset", ["object", "background"])
def test_a_full_mask_is_plain_sampling_from_the_same_start(random_model64, picture, preset, words):
    """Features, latents and words are all the target's own."""
    _, ours = edit(random_model64, picture, mask=FULL, preset=preset, words=words)
    _, plain = edit(random_model64, picture, "ddim-inversion")
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.z_next[1], b.z_next[1], rtol=0, atol=1e-11)


def test_the_source_row_walks_on_the_inverted_path(random_model64, picture):
    """It sees the pair of latent and timestep that the inversion saw, so its noise estimate is the inversion's."""
    one, steps = edit(random_model64, picture)
    for step, latent, noise in zip(steps, one.inversion.latents[1:], one.inversion.noises, strict=True):
        torch.testing.assert_close(step.eps[:1], noise, rtol=0, atol=1e-10)
        torch.testing.assert_close(step.z_next[:1], latent, rtol=0, atol=1e-10)
    other, sampled = edit(random_model64, picture, reference="row")
    assert (sampled[-1].z_next[:1] - other.inversion.latents[-1]).abs().max() > 1e-3


@pytest.mark.parametrize(("latent_blend", "count"), [(None, 3), (0.0, 0), (1.0, 6)])
def test_latents_are_blended_in_the_first_steps_only(random_model64, picture, latent_blend, count):
    one, steps = edit(random_model64, picture, latent_blend=latent_blend)
    for k, (step, latent) in enumerate(zip(steps, one.inversion.latents[1:], strict=True)):
        gap = (step.z_next[1] - latent[0])[:, ~INSIDE].abs().max()
        assert (gap == 0) == (k < count)
        assert (step.z_next[1] - latent[0])[:, INSIDE].abs().max() > 1e-3


def test_same_words_without_guidance_are_the_source_row(random_model64, picture):
    """Both rows are equal, so blending them changes nothing."""
    options = {"target": SOURCE, "guidance_scale": 1.0, "reference": "row", "latent_blend": 0.0}
    _, steps = edit(random_model64, picture, **options)
    for step in steps:
        torch.testing.assert_close(step.z_next[1], step.z_next[0], rtol=0, atol=1e-11)


def test_three_rows_for_each_step(random_model, picture):
    assert edit(random_model, picture)[0].nfe == 6 + 3 * 6
    assert edit(random_model, picture, strength=0.5)[0].nfe == 3 + 3 * 3


def test_fractions_count_all_steps_also_where_some_are_skipped(random_model64, picture):
    """Half of 6 steps are the first three; of the last four, that is one."""
    one, steps = edit(random_model64, picture, strength=4 / 6)
    gaps = [(step.z_next[1] - one.inversion.latents[k + 1][0])[:, ~INSIDE].abs().max() for k, step in enumerate(steps)]
    assert [gap == 0 for gap in gaps] == [True, False, False, False]


def test_the_target_may_start_from_noise(random_model64, picture):
    one, steps = edit(random_model64, picture, start="noise", seed=3)
    assert torch.equal(steps[0].z_t[1:], random_model64.random_latent(3))
    assert torch.equal(steps[0].z_t[:1], one.inversion.z_T)
    again, _ = edit(random_model64, picture, start="noise", seed=4)
    assert one.image.tobytes() != again.image.tobytes()
    assert one.reconstruction.tobytes() == again.reconstruction.tobytes()


@pytest.mark.parametrize(("words", "masked"), [(None, ["fox"]), ("fox on", ["fox", "on"]), (["beach"], ["beach"])])
def test_words_have_no_attention_outside(random_model64, picture, words, masked):
    """By default those that are new. The last call's maps, at the level that an edit keeps."""
    one, _ = edit(random_model64, picture, words=words)
    free, _ = edit(random_model64, picture, words=[])
    for word in ("fox", "on", "beach"):
        for edited, zero in ((one, word in masked), (free, False)):
            maps = edited.attention
            tokens = editbook.attention.tokens_of(maps.tokenizer, TARGET, word)
            heat = maps.mean("cross")[1, :, :, tokens].sum(-1)
            outside = ~INSIDE[::2, ::2]
            assert bool(heat[outside].max() == 0) == zero
            assert heat[~outside].min() > 0


def test_kept_words_have_none_inside(random_model64, picture):
    one, _ = edit(random_model64, picture, preset="background", words=[], keep="fox", mask_resize="bicubic")
    tokens = editbook.attention.tokens_of(one.attention.tokenizer, TARGET, "fox")
    heat = one.attention.mean("cross", steps=range(4))[1, :, :, tokens].sum(-1)
    assert heat[INSIDE[::2, ::2]].max() == 0
    assert heat[~INSIDE[::2, ::2]].min() > 0


def test_the_background_can_be_pasted(random_model, picture):
    one, _ = edit(random_model, picture, background="paste")
    assert np.array_equal(np.asarray(one.image)[MASK == 0], np.asarray(picture)[MASK == 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "objects"}, "Did you mean 'object'"),
        ({"levels": 0}, "levels of pfb-diff must be from 1 to 3"),
        ({"levels": 4}, "levels"),
        ({"feature_blend": 1.5}, "feature_blend is a fraction"),
        ({"latent_blend": "all"}, "latent_blend"),
        ({"words": 3}, "words is a word"),
        ({"words": "lion"}, "Unknown word"),
        ({"keep": "lion"}, "Unknown word"),
        ({"mask_resize": "nearest"}, "mask_resize"),
        ({"start": "nois"}, "Did you mean 'noise'"),
        ({"start": "noise", "strength": 0.8}, "needs strength 1"),
        ({"strength": 0.1}, "no step"),
        ({"reference": "inverted", "inversion": "edit-friendly-ddpm"}, "needs plain DDIM inversion"),
        ({"reference": "inverted", "inversion_scale": 3.0}, "needs plain DDIM inversion"),
        ({"background": "decode"}, "background"),
        ({"mask": MASK * 0.4}, "No cell"),
        ({"mask": None}, "needs a mask"),
    ],
)
def test_bad_options_raise_before_any_work(random_model, picture, options, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        edit(random_model, picture, **options)
    assert random_model.nfe == before


def test_on_trained_weights_features_hold_the_background_and_the_object_changes(pocket_model):
    """Mean of two tasks: without any blend, with features alone, and as published."""
    tasks = bench().of_type("change colour")[10:12]
    outside, inside = {}, {}
    variants = {
        "none": {"feature_blend": 0.0, "latent_blend": 0.0},
        "features": {"latent_blend": 0.0},
        "both": {},
    }
    for name, options in variants.items():
        edits = [
            edit(
                pocket_model,
                task.source_image,
                source=task.source_prompt,
                target=task.target_prompt,
                mask=task.mask,
                steps=15,
                guidance_scale=7.5,
                **options,
            )[0].image
            for task in tasks
        ]
        pairs = list(zip(edits, tasks, strict=True))
        outside[name] = np.mean([truth_psnr(image, task).outside for image, task in pairs])
        inside[name] = np.mean([truth_psnr(image, task).inside for image, task in pairs])
    assert outside["none"] < outside["features"] < outside["both"] + 0.5
    assert min(inside.values()) > np.mean([truth_psnr(task.source_image, task).inside for task in tasks])
