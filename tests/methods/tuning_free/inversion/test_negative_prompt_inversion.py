"""Negative-prompt Inversion: the source row comes back as DDIM's does without guidance, whatever w is."""

from __future__ import annotations

import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.inversion import ddim_inversion, make_inverter
from editbook.masks import latent_mask
from editbook.methods.base import guided, reconstruct
from editbook.methods.tuning_free.inversion.negative_prompt_inversion import slerp
from editbook.sampling import Schedule, follow

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


def invert(model, picture, steps=5, **options):
    inverter = make_inverter("negative-prompt-inversion", options)
    return inverter(model, model.encode(picture), SOURCE, Schedule(model.scheduler, steps))


@pytest.mark.parametrize("scale", [1.0, 7.5, 15.0])
def test_reconstruction_is_that_of_ddim_without_guidance(random_model64, picture, scale):
    model = random_model64
    plain = ddim_inversion(model, model.encode(picture), SOURCE, Schedule(model.scheduler, 5))
    expected = follow(model, plain.z_T, plain.moves, guided(model, [SOURCE], 1.0))
    back = reconstruct(model, invert(model, picture), scale)
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-10)


def test_the_empty_prompt_at_the_other_end_is_plain_guidance(random_model64, picture):
    model = random_model64
    inversion = invert(model, picture, interpolation=1.0)
    assert inversion.source_scale == 7.5
    expected = follow(model, inversion.z_T, inversion.moves, guided(model, [SOURCE], 7.5))
    torch.testing.assert_close(reconstruct(model, inversion), expected, rtol=0, atol=1e-10)


def test_slerp_keeps_the_length_between_vectors_of_equal_length():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = a / a.norm(), b / b.norm()
    assert slerp(a, b, 0) is a
    assert slerp(a, b, 1) is b
    middle = slerp(a, b, 0.5)
    assert float(middle.norm()) == pytest.approx(1)
    torch.testing.assert_close(middle, (a + b) / (a + b).norm())
    torch.testing.assert_close(slerp(a, a, 0.3), a)


def test_the_same_prompt_twice_gives_the_reconstruction(random_model, picture):
    edit = editbook.edit(
        random_model, picture, "negative-prompt-inversion", source=SOURCE, target=SOURCE, steps=4, self_replace=0.0
    )
    assert edit.image.tobytes() == edit.reconstruction.tobytes()


def test_the_source_row_of_an_edit_is_the_reconstruction_alone(random_model64, picture):
    """Beside a target row, under Prompt-to-Prompt and any w, the source row is what one row would have been."""
    edit = editbook.edit(
        random_model64, picture, "negative-prompt-inversion", source=SOURCE, target=TARGET, steps=5, guidance_scale=9.0
    )
    alone = reconstruct(random_model64, invert(random_model64, picture))
    torch.testing.assert_close(edit.inversion.sampled.latents[-1], alone, rtol=0, atol=1e-10)


def test_cost_is_inversion_a_source_row_and_a_guided_row(random_model, picture):
    edit = editbook.edit(random_model, picture, "negative-prompt-inversion", source=SOURCE, target=TARGET, steps=5)
    assert edit.nfe == 5 + 5 * 3


def test_bad_interpolation_raises(random_model, picture):
    with pytest.raises(EditbookError, match="interpolation"):
        invert(random_model, picture, interpolation=1.5)


def test_it_repairs_what_guidance_does_to_the_reconstruction(pocket_model):
    model, task = pocket_model, editbook.pocket.task("cat-to-fox")
    z_0, errors = model.encode(task.source_image), {}
    for name in ("ddim-inversion", "negative-prompt-inversion"):
        inversion = make_inverter(name, {})(model, z_0, task.source_prompt, Schedule(model.scheduler, 20))
        errors[name] = float((reconstruct(model, inversion, 7.5) - z_0).square().mean())
    assert errors["negative-prompt-inversion"] < 0.2 * errors["ddim-inversion"]


def test_its_guidance_points_at_the_edit(pocket_model):
    """Less of |eps(target) - eps(source)| lies outside the exact mask than of |eps(target) - eps(empty)|."""
    model, task = pocket_model, editbook.pocket.task("cat-to-fox")
    inside = latent_mask(task.mask, model.random_latent(0))
    inversion = ddim_inversion(
        model, model.encode(task.source_image), task.source_prompt, Schedule(model.scheduler, 20)
    )
    share = {"source": [], "empty": []}
    for z, move in zip(inversion.latents[4:16], inversion.moves[4:16], strict=True):
        with torch.no_grad():
            eps = model.noise(z.repeat(3, 1, 1, 1), move.t, model.embed([task.target_prompt, task.source_prompt, ""]))
        for name, other in (("source", eps[1]), ("empty", eps[2])):
            size = (eps[0] - other).abs()
            share[name].append(float((size * (1 - inside)).sum() / size.sum()))
    assert sum(share["source"]) < 0.8 * sum(share["empty"])
