"""DDIM inversion as an editor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import editbook
from editbook.errors import EditbookError
from editbook.sampling import ClassifierFreeGuidance, follow

SOURCE = "a photo of a cat on the beach"
TARGET = "a photo of a fox on the beach"


def run(model, image, target=TARGET, steps=4, **options):
    steps_seen = []
    edit = editbook.edit(
        model,
        image,
        "ddim-inversion",
        source=SOURCE,
        target=target,
        steps=steps,
        callbacks=[steps_seen.append],
        **options,
    )
    return edit, steps_seen


def test_without_an_edit_it_returns_its_reconstruction(random_model, picture):
    edit, steps = run(random_model, picture, target=SOURCE, guidance_scale=1.0)
    assert edit.image.tobytes() == edit.reconstruction.tobytes()
    source, target = steps[-1].z_next
    torch.testing.assert_close(source, target, rtol=1e-5, atol=1e-5)
    assert torch.equal(source, edit.inversion.sampled.latents[-1][0])


def test_the_edit_is_plain_sampling_from_the_inverted_noise(random_model64, picture):
    model = random_model64
    edit, steps = run(model, picture, guidance_scale=3.0)
    guidance = ClassifierFreeGuidance(model.embed(TARGET), model.embed(""), 3.0)
    by_hand = follow(model, edit.inversion.z_T, edit.inversion.moves, guidance)
    torch.testing.assert_close(steps[-1].z_next[1:], by_hand, rtol=0, atol=1e-10)
    assert (by_hand - edit.inversion.sampled.latents[-1]).abs().max() > 1e-3


def test_cost_is_inversion_reconstruction_and_guided_sampling(random_model, picture):
    assert run(random_model, picture, steps=5)[0].nfe == 5 + 5 + 5 * 2
    assert run(random_model, picture, steps=5, guidance_scale=1.0)[0].nfe == 5 + 5 + 5


def test_equation_9_holds_for_its_own_reconstruction(random_model64, picture):
    gap = run(random_model64, picture)[0].inversion.gap()
    torch.testing.assert_close(gap.left, gap.right, rtol=1e-9, atol=1e-9)


def test_a_mask_keeps_the_outside_exactly(random_model, picture):
    mask = np.zeros((64, 64), np.float32)
    mask[32:] = 1
    edit, steps = run(random_model, picture, mask=mask)
    end, z_0 = steps[-1].z_next[1:], random_model.encode(picture)
    plain = run(random_model, picture)[1][-1].z_next[:1]
    torch.testing.assert_close(steps[-1].z_next[:1], plain, rtol=1e-5, atol=1e-5)  # the source row is left alone
    assert torch.equal(end[:, :, :8], z_0[:, :, :8])
    assert (end - z_0)[:, :, 8:].abs().max() > 1e-3
    assert edit.mask[8:].all()
    assert not edit.mask[:8].any()


def test_it_needs_a_picture_and_a_known_inversion(random_model, picture):
    with pytest.raises(EditbookError, match="picture"):
        run(random_model, None)
    with pytest.raises(EditbookError, match="Did you mean 'ddim-inversion'"):
        run(random_model, picture, inversion="ddim-invrsion")
    before = random_model.nfe
    with pytest.raises(EditbookError, match="limit is 40"):
        run(random_model, picture, target="fox " * 50)
    assert random_model.nfe == before
