"""LocalBlend: the mask follows the words, and without attention nothing may change."""

from __future__ import annotations

import pytest
import torch

from editbook.attention import Site, tokens_of
from editbook.errors import EditbookError
from editbook.masks import LocalBlend
from editbook.sampling import Move, Step

PROMPTS = ["a photo of a cat", "a photo of a fox"]
SITE = Site("cross", "down", 8, 0, 8, 8)


def latents(seed=0):
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def step(z, i=9, total=10):
    return Step(i, total, Move(1, 0.5, 0.6), z, z, z)


def attention(tokenizer, cells, value=1.0, rows=(0, 1)):
    """Probabilities whose blend words act in the cells (y, x) of an 8 x 8 map."""
    probabilities = torch.zeros(2, 4, 64, 40)
    for row, word in enumerate(("cat", "fox")):
        for y, x in cells if row in rows else ():
            probabilities[row, :, 8 * y + x, tokens_of(tokenizer, PROMPTS[row], word)] = value
    return probabilities


@pytest.fixture
def local(tokenizer):
    return LocalBlend(tokenizer, PROMPTS, ("cat", "fox"), [8])


def test_an_empty_mask_returns_the_source_bit_for_bit(local, tokenizer):
    local.apply(attention(tokenizer, []), SITE)
    z = latents()
    blended = local(step(z))
    assert local.mask.sum() == 0
    assert torch.equal(blended[0], z[0])
    assert torch.equal(blended[1], z[0])


def test_the_mask_is_the_pooled_neighbourhood_of_the_words(local, tokenizer):
    local.apply(attention(tokenizer, [(2, 5)]), SITE)
    z = latents()
    blended = local(step(z))
    expected = torch.zeros(16, 16)
    expected[2:8, 8:14] = 1  # cells 1..3 by 4..6, two latent cells each
    assert torch.equal(local.mask[0, 0], expected)
    inside = expected.bool()
    torch.testing.assert_close(blended[1][:, inside], z[1][:, inside])
    assert torch.equal(blended[1][:, ~inside], z[0][:, ~inside])


def test_source_and_target_words_both_open_the_mask(local, tokenizer):
    local.apply(attention(tokenizer, [(1, 1)], rows=(0,)) + attention(tokenizer, [(6, 6)], rows=(1,)), SITE)
    local(step(latents()))
    assert local.mask[0, 0, 2, 2] == local.mask[0, 0, 12, 12] == 1
    assert local.mask[0, 0, 2, 12] == 0


def test_maps_of_all_steps_add_up(local, tokenizer):
    local.apply(attention(tokenizer, [(1, 1)]), SITE)
    local(step(latents(), 0))
    assert local.mask[0, 0, 12, 12] == 0
    local.apply(attention(tokenizer, [(6, 6)]), SITE)
    local(step(latents(), 1))
    assert local.mask[0, 0, 2, 2] == local.mask[0, 0, 12, 12] == 1
    assert len(local.masks) == 2


def test_the_threshold_counts_from_the_maximum(tokenizer):
    for threshold, opened in ((0.3, 1), (0.6, 0)):
        local = LocalBlend(tokenizer, PROMPTS, ("cat", "fox"), [8], threshold=threshold)
        local.apply(attention(tokenizer, [(1, 1)]) + attention(tokenizer, [(6, 6)], 0.5), SITE)
        local(step(latents()))
        assert local.mask[0, 0, 12, 12] == opened


def test_blending_begins_after_its_start(local, tokenizer):
    local.apply(attention(tokenizer, []), SITE)
    z = latents()
    assert torch.equal(local(step(z, 1, 10)), z)
    assert not torch.equal(local(step(z, 2, 10)), z)


def test_it_watches_and_changes_nothing(local, tokenizer):
    probabilities = attention(tokenizer, [(2, 5)])
    kept = probabilities.clone()
    assert torch.equal(local.apply(probabilities, SITE), kept)
    assert local.wants(SITE)
    for site in (
        Site("self", "down", 8, 0, 8, 8),
        Site("cross", "mid", 8, 0, 8, 8),
        Site("cross", "up", 16, 0, 16, 16),
    ):
        assert not local.wants(site)


def test_bad_settings_raise(tokenizer):
    for threshold in (0, 1, -1, float("nan")):
        with pytest.raises(EditbookError, match="threshold"):
            LocalBlend(tokenizer, PROMPTS, ("cat", "fox"), [8], threshold=threshold)
    with pytest.raises(EditbookError, match="one word for each"):
        LocalBlend(tokenizer, PROMPTS, ("cat",), [8])
    with pytest.raises(EditbookError, match="Unknown word"):
        LocalBlend(tokenizer, PROMPTS, ("cat", "cat"), [8])
