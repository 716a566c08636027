"""Cross-Image Attention: the structure asks, the appearance answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_ti_guided_edit import transfer

import editbook
from editbook.errors import EditbookError

SOURCE = "a photo of a cat on the beach"


@pytest.fixture(scope="module")
def reference(picture):
    return picture.rotate(90)


def run(model, picture, **options):
    seen = []
    edit = editbook.edit(
        model, picture, "cross-image-attention", callbacks=[seen.append],
        **{"source": SOURCE, "target": SOURCE, "steps": 5, **options},
    )  # fmt: skip
    return edit, [step for step in seen if len(step.z_t) == 3]


@pytest.mark.parametrize("inversion", ["ddim-inversion", "edit-friendly-ddpm"])
def test_helpers_stay_on_their_paths(random_model64, picture, reference, inversion):
    edit, steps = run(random_model64, picture, reference=reference, inversion=inversion)
    for step, known in zip(steps, edit.inversion.latents, strict=False):
        assert torch.equal(step.z_t[0], known[0])
    assert edit.reconstruction.tobytes() == random_model64.decode(random_model64.encode(picture)).tobytes()
    back = random_model64.decode(steps[-1].z_next[1:2])
    assert back.tobytes() == random_model64.decode(random_model64.encode(reference)).tobytes()


def test_without_swap_and_adain_the_output_is_the_structure(random_model64, picture, reference):
    """s = 0 leaves eps_no, which is the structure's own: same latent, noise maps and prompt."""
    off = {"swap_scale": 0.0, "adain": 1.0}
    _, steps = run(random_model64, picture, reference=reference, inversion_options={"inversion_scale": 1.0}, **off)
    torch.testing.assert_close(steps[-1].z_next[2], steps[-1].z_next[0], rtol=0, atol=1e-8)
    for part in ({"swap_scale": 1.0}, {"adain": 0.0}):
        _, steps = run(random_model64, picture, reference=reference, **{**off, **part})
        assert (steps[-1].z_next[2] - steps[-1].z_next[0]).abs().max() > 1e-3


def test_swap_guidance_goes_beyond_the_swapped_estimate(random_model64, picture, reference):
    """eps is affine in s."""
    first = [
        run(random_model64, picture, reference=reference, swap_scale=s, start=0.0, mixed=0.0)[1][0].eps[2]
        for s in (0.0, 1.0, 3.5)
    ]
    torch.testing.assert_close(first[2], first[0] + 3.5 * (first[1] - first[0]), rtol=0, atol=1e-10)
    assert (first[1] - first[0]).abs().max() > 1e-3


def test_a_picture_with_itself_keeps_its_statistics(random_model64, picture):
    """Reference and picture the same: without contrast the output is the picture."""
    _, steps = run(random_model64, picture, reference=picture, strength=1.0, inversion_options={"inversion_scale": 1.0})
    torch.testing.assert_close(steps[-1].z_next[2], steps[-1].z_next[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"reference": 3}, "A picture is a path"),
        ({"start": 0.95}, "start must not lie behind"),
        ({"adain": 1.5}, "adain"),
        ({"swap_scale": -1.0}, "swap_scale"),
        ({"strength": float("inf")}, "strength"),
        ({"levels": 0}, "levels"),
        ({"word": "dog"}, "Unknown word"),
    ],
)
def test_bad_options_raise_before_any_walk(random_model, picture, bad, message):
    before = random_model.nfe
    with pytest.raises(EditbookError, match=message):
        run(random_model, picture, **{"reference": np.zeros((8, 8), np.uint8), **bad})
    assert random_model.nfe == before


def test_with_trained_weights_the_colour_is_the_references(pocket_model):
    """And AdaIN has most of it: attention alone moves the colour less far."""
    with_adain, without = (
        transfer(pocket_model, "cross-image-attention", inversion="ddim-inversion", mask_threshold=0.3, adain=adain)
        for adain in (0.2, 1.0)
    )
    assert with_adain[0] > with_adain[1] + 4
    assert with_adain[0] > without[0] + 2
