"""Masks: what is outside stays outside, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from editbook.errors import EditbookError
from editbook.masks import KeepSource, latent_mask, paste_source_row
from editbook.sampling import Move, Step

LATENT = torch.zeros(1, 4, 16, 16)


def step(z_next, i=0, total=1):
    return Step(i, total, Move(1, 0.5, 0.6), z_next, z_next, z_next)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_cell_is_as_open_as_its_most_open_pixel():
    mask = np.zeros((64, 64), np.float32)
    mask[5, 9] = 0.75
    small = latent_mask(mask, LATENT)
    assert small.shape == (1, 1, 16, 16)
    assert small[0, 0, 1, 2] == 0.75
    assert small.sum() == 0.75


@pytest.mark.parametrize("size", [4, 16, 64, 100])
def test_any_size_keeps_the_place(size):
    mask = np.zeros((size, size), bool)
    mask[: size // 2] = True
    small = latent_mask(mask, LATENT)[0, 0]
    assert small[:8].eq(1).all()
    assert small[9:].eq(0).all()


def test_pictures_and_arrays_mean_the_same():
    array = np.zeros((64, 64), np.uint8)
    array[16:32, 8:24] = 255
    picture = Image.fromarray(array)
    expected = latent_mask(array / 255, LATENT)
    for mode in ("L", "1", "RGB"):
        assert torch.equal(latent_mask(picture.convert(mode), LATENT), expected)


def test_a_mask_that_is_not_square_is_cropped_as_its_picture_is():
    mask = np.zeros((64, 128), np.float32)
    mask[:, 64:] = 1  # right half of a wide picture, whose middle square is columns 32 to 96
    small = latent_mask(mask, LATENT)[0, 0]
    assert small[:, :8].eq(0).all()
    assert small[:, 8:].eq(1).all()


def test_the_mask_is_not_changed_and_takes_the_latents_format():
    mask = np.ones((64, 64), np.float32)
    small = latent_mask(mask, LATENT.double())
    small.zero_()
    assert mask.all()
    assert small.dtype == torch.float64


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((64, 64)), "0 everywhere"),
        (np.full((64, 64), np.nan), r"\[0, 1\]"),
        (np.full((64, 64), 255, np.uint8), "divide"),
        (np.full((64, 64), -0.1), r"\[0, 1\]"),
        (np.ones((64, 64, 3)), "two dimensions"),
        (np.ones(64), "two dimensions"),
        (np.ones((0, 64)), "two dimensions"),
        ("mask.png", "array or a picture"),
    ],
)
def test_bad_masks_raise(mask, message):
    with pytest.raises(EditbookError, match=message):
        latent_mask(mask, LATENT)


def test_pasting_keeps_the_source_row_and_the_outside():
    z, mask = randn(3, 4, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    blended = paste_source_row(step(z), mask)
    assert torch.equal(blended[0], z[0])
    assert torch.equal(blended[:, :, :, 8:], z[:1, :, :, 8:].expand(3, -1, -1, -1))
    torch.testing.assert_close(blended[1:, :, :, :8], z[1:, :, :, :8])


def test_an_empty_mask_gives_the_source_bit_for_bit():
    z = randn(2, 4, 16, 16)
    blended = paste_source_row(step(z), torch.zeros(1, 1, 16, 16))
    assert torch.equal(blended[1], z[0])


def test_keep_source_pastes_the_level_of_the_step():
    path, mask = [randn(1, 4, 16, 16, seed=k) for k in range(2)], torch.zeros(1, 1, 16, 16)
    mask[..., 8:, :] = 1
    keep = KeepSource(path, mask)
    for i in range(2):
        z = randn(2, 4, 16, 16, seed=9)
        blended = keep(step(z, i, 2))
        assert torch.equal(blended[:, :, :8], path[i][:, :, :8].expand(2, -1, -1, -1))
        assert torch.equal(blended[:, :, 8:], z[:, :, 8:])
    with pytest.raises(EditbookError, match="2 latents for 5 steps"):
        keep(step(z, 0, 5))


def test_half_open_cells_mix():
    source, z = torch.zeros(1, 4, 16, 16), torch.ones(1, 4, 16, 16)
    assert KeepSource([source], torch.full((1, 1, 16, 16), 0.25))(step(z)).eq(0.25).all()
