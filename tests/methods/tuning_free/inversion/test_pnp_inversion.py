"""PnP Inversion: the source row is on its path, to the bit, whatever guides or controls the sampling."""

from __future__ import annotations

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import make_inverter
from editbook.methods.base import guided, reconstruct, sample_back
from editbook.sampling import Schedule, follow

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


def invert(model, picture, steps=5, **options):
    inverter = make_inverter("pnp-inversion", options)
    return inverter(model, model.encode(picture), SOURCE, Schedule(model.scheduler, steps))


@pytest.mark.parametrize("scale", [1.0, 7.5, 15.0])
def test_the_source_row_is_the_path_bit_for_bit(random_model, picture, scale):
    inversion = invert(random_model, picture)
    end = reconstruct(random_model, inversion, scale)
    assert torch.equal(end, random_model.encode(picture))
    for z, z_star in zip(inversion.sampled.latents, inversion.latents, strict=True):
        assert torch.equal(z, z_star)


def test_also_under_prompt_to_prompt(random_model, picture):
    edit = editbook.edit(random_model, picture, "pnp-inversion", source=SOURCE, target=TARGET, steps=4)
    sampled, inverted = edit.inversion.sampled.latents, edit.inversion.latents
    assert all(torch.equal(z, z_star) for z, z_star in zip(sampled, inverted, strict=True))


def test_with_equal_prompts_and_no_control_the_target_drifts_as_ddim_does(random_model64, picture):
    model, inversion = random_model64, invert(random_model64, picture)
    source, target = sample_back(model, inversion, [SOURCE, SOURCE], 7.5).split(1)
    drift = follow(model, inversion.z_T, inversion.moves, guided(model, [SOURCE], 7.5))
    assert torch.equal(source, model.encode(picture))
    torch.testing.assert_close(target, drift, rtol=0, atol=1e-10)
    assert (target - source).abs().max() > 1e-2


def test_corrections_are_the_negative_of_equation_9s_terms(random_model64, picture):
    inversion = invert(random_model64, picture)
    reconstruct(random_model64, inversion, 7.5)
    gap = inversion.gap()
    assert not gap.left.any()
    torch.testing.assert_close(gap.right, gap.left, rtol=0, atol=1e-10)
    torch.testing.assert_close(gap.corrections, -gap.terms, rtol=0, atol=1e-10)
    assert gap.terms.abs().max() > 1e-3  # the noises differ: it is the latents that are aligned


def test_no_correction_is_ddim_and_a_part_is_between(random_model64, picture):
    model, z_0 = random_model64, random_model64.encode(picture)
    ddim = make_inverter("ddim-inversion", {})(model, z_0, SOURCE, Schedule(model.scheduler, 5))
    drift = [float((reconstruct(model, ddim, 7.5) - z_0).norm())]
    torch.testing.assert_close(
        reconstruct(model, invert(model, picture, strength=0.0), 7.5), ddim.sampled.latents[-1], rtol=0, atol=1e-10
    )
    for strength in (0.4, 0.8, 1.0):
        drift.append(float((reconstruct(model, invert(model, picture, strength=strength), 7.5) - z_0).norm()))
    assert drift == sorted(drift, reverse=True)
    assert drift[-1] == 0


def test_every_second_step_is_on_the_path(random_model, picture):
    inversion = invert(random_model, picture, every=2)
    reconstruct(random_model, inversion, 7.5)
    on_path = [
        torch.equal(z, z_star) for z, z_star in zip(inversion.sampled.latents[1:], inversion.latents[1:], strict=True)
    ]
    assert on_path == [True, False, True, False, True]


def test_cost(random_model, picture):
    def run(**options):
        return editbook.edit(random_model, picture, "pnp-inversion", source=SOURCE, target=TARGET, steps=5, **options)

    assert run().nfe == 5 + 5 * 3
    official = run(source_guidance_scale=7.5)
    assert official.nfe == 5 + 5 * 4
    assert official.reconstruction.tobytes() == run().reconstruction.tobytes()


@pytest.mark.parametrize(("option", "value"), [("strength", 1.5), ("strength", -0.1), ("every", 0), ("every", 1.5)])
def test_bad_options_raise(random_model, picture, option, value):
    with pytest.raises(EditbookError, match=option):
        invert(random_model, picture, **{option: value})
    with pytest.raises(EditbookError, match="Did you mean 'strength'"):
        invert(random_model, picture, strenght=1)


def test_what_it_is_for(pocket_model):
    """With the source row guided, as the official code does it, DDIM's source drifts and takes the edit along."""
    from editbook.metrics import psnr, truth_psnr

    tasks = [task for task in editbook.pocket.bench().of_type("change object") if task.target_scene.style == "photo"]
    gained = {"outside": [], "reconstruction": []}
    for task in tasks[:3]:
        edits = [
            editbook.edit(
                pocket_model,
                task.source_image,
                "prompt-to-prompt",
                source=task.source_prompt,
                target=task.target_prompt,
                inversion=inversion,
                source_guidance_scale=7.5,
                steps=20,
            )
            for inversion in ("ddim-inversion", "pnp-inversion")
        ]
        outside = [truth_psnr(edit.image, task).outside for edit in edits]
        back = [psnr(edit.reconstruction, task.source_image) for edit in edits]
        gained["outside"].append(outside[1] - outside[0])
        gained["reconstruction"].append(back[1] - back[0])
    assert sum(gained["outside"]) > 0
    assert min(gained["reconstruction"]) > 3
