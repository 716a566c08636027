"""Plug-and-Play: the source's features and layout, and nothing else of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook import pocket
from editbook.attention import Capture, CaptureFeatures, Chain
from editbook.errors import EditbookError
from editbook.methods.tuning_free.attention.plug_and_play import NegativeGuidance, PlugAndPlay
from editbook.metrics import psnr
from editbook.sampling import ClassifierFreeGuidance

SOURCE, TARGET = "a photo of a cat on the beach", "a pencil sketch of a fox on the beach"


def run(model, picture, target=TARGET, **options):
    seen = []
    edit = editbook.edit(
        model, picture, "plug-and-play", target=target, callbacks=[seen.append],
        **{"source": SOURCE, "steps": 5, "guidance_scale": 3.0, **options},
    )  # fmt: skip
    return edit, [step for step in seen if len(step.z_t) == 2]


def test_nothing_injected_is_plain_sampling_from_the_inverted_noise(random_model, picture):
    edit, _ = run(random_model, picture, feature_steps=0.0, attention_steps=0.0)
    plain = editbook.edit(
        random_model, picture, "ddim-inversion", source=SOURCE, target=TARGET, steps=5, guidance_scale=3.0
    )
    assert edit.image.tobytes() == plain.image.tobytes()
    for part in ("feature_steps", "attention_steps"):
        assert run(random_model, picture, **{part: 0.0})[0].image.tobytes() != edit.image.tobytes()


@pytest.mark.parametrize("inversion", ["ddim-inversion", "edit-friendly-ddpm", "negative-prompt-inversion"])
def test_the_source_row_stays_on_the_inverted_path(random_model64, picture, inversion):
    edit, steps = run(random_model64, picture, inversion=inversion)
    for step, known in zip(steps, edit.inversion.latents, strict=False):
        assert torch.equal(step.z_t[:1], known)
    assert torch.equal(steps[-1].z_next[:1], edit.inversion.latents[-1])
    assert edit.reconstruction.tobytes() == random_model64.decode(random_model64.encode(picture)).tobytes()


def test_at_the_first_step_the_same_prompt_gives_the_same_estimate(random_model64, picture):
    """The latent is shared there, so what is injected is what was there anyway."""
    _, steps = run(random_model64, picture, SOURCE, guidance_scale=1.0)
    torch.testing.assert_close(steps[0].eps[1], steps[0].eps[0], rtol=0, atol=1e-10)
    _, steps = run(random_model64, picture, guidance_scale=1.0)
    assert (steps[0].eps[1] - steps[0].eps[0]).abs().max() > 1e-3


def test_without_a_source_prompt_the_empty_one_is_inverted(random_model, picture):
    edit, _ = run(random_model, picture, source="")
    assert edit.inversion.prompt == ""
    assert edit.image.tobytes() != run(random_model, picture)[0].image.tobytes()


def test_features_and_maps_are_the_sources_and_values_are_not(random_model64):
    """At a step of both: in the layers of the paper's positions, and in no others."""
    model = random_model64
    method = PlugAndPlay(steps=10)
    maps, features = Capture(["self"]), CaptureFeatures(sides=["down", "mid", "up"], index=None)
    control = Chain([method.control(model), maps, features])
    z = torch.cat([model.random_latent(seed) for seed in range(2)])
    text = model.embed([SOURCE, TARGET])
    for step, (injects, exchanges) in {4: (True, True), 5: (True, False), 8: (False, False)}.items():
        control.begin_step(step, 10)
        with torch.no_grad(), control.attached(model.unet, (16, 16), 2):
            model.noise(z, 500, text)
        for (block, i), record in features.records.items():
            if i == step:
                here = (block.side, block.resolution, block.index) == ("up", 8, 1)
                assert torch.equal(record[0], record[1]) == (injects and here)
        for (site, i), record in maps.records.items():
            if i == step:
                here = site.side == "up" and (site.resolution == 16 or (site.resolution == 8 and site.index == 7))
                assert torch.allclose(record[0], record[1], rtol=0, atol=1e-6) == (exchanges and here)


def test_the_negative_prompt_takes_its_share_of_the_empty_one(random_model64):
    """The paper's formula, written out, for a guided and an unguided row."""
    model, w, a = random_model64, 4.0, 0.3
    z = torch.cat([model.random_latent(seed) for seed in range(2)])
    condition, empty, negative = model.embed([SOURCE, TARGET]), model.embed(""), model.embed("a photo")
    mixed = NegativeGuidance(
        ClassifierFreeGuidance(condition, empty, [1.0, w]), ClassifierFreeGuidance(condition, negative, [1.0, w]), [a]
    )
    with torch.no_grad():
        found = mixed(model, z, 500, 0)
        one, other = (model.noise(z[1:], 500, text)[0] for text in (empty, negative))
        eps = model.noise(z, 500, condition)
    towards = a * one + (1 - a) * other
    torch.testing.assert_close(found[0], eps[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(found[1], towards + w * (eps[1] - towards), rtol=0, atol=1e-11)


def test_schedules_of_the_negative_prompt():
    def shares(schedule, alpha=1.0, steps=5):
        return PlugAndPlay(negative_schedule=schedule, negative_alpha=alpha).shares(steps)

    assert shares("linear", 0.8) == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert shares("constant", 0.75) == [0.75] * 5
    assert shares("exponential") == pytest.approx(np.exp(-6 * np.linspace(0, 1, 5)))
    assert shares("linear", steps=1) == [1.0]


def test_a_negative_prompt_changes_the_edit_and_costs_what_it_says(random_model, picture):
    plain, _ = run(random_model, picture)
    none, _ = run(random_model, picture, negative_prompt="a photo", negative_schedule="constant")
    assert none.image.tobytes() == plain.image.tobytes()
    assert none.nfe == plain.nfe == 5 + 3 * 5
    away, _ = run(random_model, picture, negative_prompt="a photo")
    assert away.image.tobytes() != plain.image.tobytes()
    assert away.nfe == plain.nfe + 3 * 3  # the first step and the last have one prompt alone
    assert away.reconstruction.tobytes() == plain.reconstruction.tobytes()


def test_a_generated_source_needs_no_picture(random_model):
    edit, _ = run(random_model, None)
    again, _ = run(random_model, None, source_guidance_scale=2.0)
    assert edit.inversion is None
    assert edit.nfe == 5 * 4
    assert edit.source_image.tobytes() != again.source_image.tobytes()


def test_outside_a_mask_the_edit_is_the_picture(random_model64, picture):
    mask = np.zeros((64, 64), np.float32)
    mask[:, 32:] = 1
    edit, steps = run(random_model64, picture, mask=mask)
    z_0 = steps[-1].z_next
    assert torch.equal(z_0[1, :, :, :8], edit.inversion.latents[-1][0, :, :, :8])
    assert not torch.equal(z_0[1, :, :, 8:], z_0[0, :, :, 8:])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"feature_steps": 1.2}, "feature_steps"),
        ({"attention_steps": -0.1}, "attention_steps"),
        ({"negative_alpha": 2.0}, "negative_alpha"),
        ({"negative_schedule": "linaer"}, "Did you mean 'linear'"),
        ({"source_guidance_scale": float("nan")}, "source_guidance_scale"),
        ({"resolution": 7}, r"resolution must be one of \[4, 8, 16\]"),
        ({"negative_prompt": "cat " * 60}, "limit is 40"),
    ],
)
def test_bad_options_raise_before_any_walk(random_model, picture, bad, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        run(random_model, picture, **bad)
    assert random_model.nfe == before


def edges(image):
    """Size of the brightness gradient."""
    down, right = np.gradient(np.asarray(image.convert("L"), float))
    return np.hypot(down, right)


def test_with_trained_weights_the_structure_stays_and_the_colour_changes(pocket_model):
    """Against plain sampling from the same noise: nearer to the exact truth, and its edges where the source's are."""
    scores = []
    for name in ("golden-car", "red-to-blue-bus", "penguin-to-desert"):
        task = pocket.task(name)
        row = []
        for options in ({"feature_steps": 0.0, "attention_steps": 0.0}, {}):
            edit = editbook.edit(
                pocket_model, task.source_image, "plug-and-play", source=task.source_prompt,
                target=task.target_prompt, steps=20, guidance_scale=5.0, **options,
            )  # fmt: skip
            change = np.abs(np.asarray(edit.image, float) - np.asarray(task.source_image, float))
            overlap = np.corrcoef(edges(edit.image).ravel(), edges(task.truth).ravel())[0, 1]
            row.append((psnr(edit.image, task.truth), overlap, change[task.mask > 0.5].mean()))
        scores.append(row)
    plain, injected = np.array(scores).mean(0)
    assert injected[0] > plain[0] + 1
    assert injected[1] > plain[1] + 0.05
    assert injected[2] > 25
