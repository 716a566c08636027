"""Backgrounds put back: what each way keeps exactly, and what it does to the border of the mask."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from PIL import Image

from editbook.errors import EditbookError
from editbook.masks import BACKGROUNDS, restore_background, seam
from editbook.masks.background import fit_picture, poisson_blend
from editbook.metrics import mse, psnr
from editbook.pocket import task

MASK = np.zeros((24, 24), np.float32)
MASK[6:16, 8:20] = 1
INSIDE = MASK > 0.5
RNG = np.random.default_rng(0)


def picture(array):
    return Image.fromarray(np.broadcast_to(array, (24, 24, 3)).round().clip(0, 255).astype(np.uint8))


def noise(low=0, high=256):
    return Image.fromarray(RNG.integers(low, high, (24, 24, 3), dtype=np.uint8))


def test_nothing_and_paste():
    source, edited = noise(), noise()
    assert restore_background(None, edited, source, MASK, "none") is edited
    pasted = np.asarray(restore_background(None, edited, source, MASK, "paste"))
    assert np.array_equal(pasted[INSIDE], np.asarray(edited)[INSIDE])
    assert np.array_equal(pasted[~INSIDE], np.asarray(source)[~INSIDE])


def test_poisson_keeps_the_outside_and_meets_it():
    source, edited = noise(), noise()
    blended = np.asarray(poisson_blend(source, edited, MASK))
    assert np.array_equal(blended[~INSIDE], np.asarray(source)[~INSIDE])
    assert not np.array_equal(blended[INSIDE], np.asarray(edited)[INSIDE])


def test_poisson_undoes_a_constant_and_a_tilt():
    """Gradients of source + constant are the source's; + a plane is harmonic, and also is zero on the whole border."""
    source = noise(60, 180)
    brighter = picture(np.asarray(source, float) + 40)
    assert np.array_equal(np.asarray(poisson_blend(source, brighter, MASK)), np.asarray(source))
    assert seam(poisson_blend(source, brighter, MASK), source, MASK) == 0


def test_poisson_of_a_flat_edit_is_the_harmonic_membrane():
    """No gradients inside: between border values the membrane is the mean of its neighbours, and has no extrema."""
    source = picture(np.linspace(0, 240, 24)[None, :, None])  # a plane: harmonic itself
    blended = np.asarray(poisson_blend(source, picture(np.full((1, 1, 1), 90.0)), MASK), float)
    assert np.abs(blended - np.asarray(source, float)).max() <= 1


def test_poisson_at_the_edges_of_the_picture():
    source, edited = noise(60, 180), noise(60, 180)
    corner = np.zeros((24, 24), np.float32)
    corner[:10, :10] = 1
    shifted = picture(np.asarray(source, float) + 30)
    assert np.array_equal(np.asarray(poisson_blend(source, shifted, corner)), np.asarray(source))
    assert poisson_blend(source, edited, np.ones((24, 24), np.float32)) is edited
    assert poisson_blend(source, edited, np.zeros((24, 24), np.float32)) is source


def test_seam_counts_only_what_crosses_the_border():
    flat = picture(np.full((1, 1, 1), 100.0))
    assert seam(picture(100 + 51 * MASK[..., None]), flat, MASK) == pytest.approx(0.2)
    inner = np.zeros_like(MASK)
    inner[9:12, 11:15] = 51
    assert seam(picture(100 + inner[..., None]), flat, MASK) == 0
    with pytest.raises(EditbookError, match="no border"):
        seam(flat, flat, np.ones_like(MASK))


@pytest.mark.parametrize("what", ["decoder", "latents"])
def test_fitting_brings_the_background_nearer_and_leaves_the_model(random_model, picture, what):
    source = Image.fromarray(255 - np.asarray(picture))
    mask = np.zeros((64, 64), np.float32)
    mask[16:40, 16:48] = 1
    before = copy.deepcopy(random_model.vae.state_dict())
    first, fitted = (fit_picture(random_model, picture, source, mask, what, steps=steps) for steps in (0, 20))
    assert mse(fitted, source, 1 - mask) < 0.9 * mse(first, source, 1 - mask)
    after = random_model.vae.state_dict()
    assert all((after[key] == before[key]).all() for key in before)
    assert not any(parameter.requires_grad for parameter in random_model.vae.parameters())
    assert all(parameter.grad is None for parameter in random_model.vae.parameters())


def test_the_weight_decides_between_edit_and_background(random_model, picture):
    source = Image.fromarray(255 - np.asarray(picture))
    mask = np.zeros((64, 64), np.float32)
    mask[:, :32] = 1
    light, heavy = (
        fit_picture(random_model, picture, source, mask, "latents", steps=15, weight=w) for w in (0.01, 100)
    )
    assert mse(heavy, source, 1 - mask) < mse(light, source, 1 - mask)
    assert mse(heavy, picture, mask) > mse(light, picture, mask)


def test_bad_input_raises(random_model):
    with pytest.raises(EditbookError, match="Did you mean 'poisson'"):
        restore_background(random_model, noise(), noise(), MASK, "possion")
    with pytest.raises(EditbookError, match="must be the same"):
        restore_background(random_model, noise(), noise(), MASK[:20], "paste")
    with pytest.raises(EditbookError, match="steps of the background"):
        restore_background(random_model, noise(), noise(), MASK, "decoder", steps=-1)


def test_on_trained_weights_each_has_its_price(pocket_model):
    """The autoencoder's round trip stands for an edit that changed nothing but what every edit changes."""
    one = task("cat-to-fox")
    edited = pocket_model.decode(pocket_model.encode(one.truth))
    made = {how: restore_background(pocket_model, edited, one.source_image, one.mask, how) for how in BACKGROUNDS}
    outside = {how: min(psnr(image, one.source_image, 1 - one.mask), 99) for how, image in made.items()}
    jump = {how: seam(image, one.truth, one.mask) for how, image in made.items()}
    assert outside["paste"] > 60
    assert outside["poisson"] > 60
    assert outside["decoder"] > outside["none"] + 3
    assert outside["latents"] > outside["none"] + 3
    assert jump["decoder"] < jump["paste"]
