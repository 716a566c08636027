"""AdaIN: the statistics of the reference inside the mask, the latent itself outside."""

from __future__ import annotations

import torch

from editbook.masks import AdaIN, adain
from editbook.sampling import Move, Step


def latents(seed=0, n=1):
    return torch.randn(n, 4, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_statistics_move_inside_and_nothing_outside():
    z, reference = latents(0)[0], 3 * latents(1)[0] + 2
    inside, there = torch.zeros(6, 6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.bool)
    inside[1:4, 1:5] = True
    there[2:, :3] = True
    changed = adain(z, reference, inside, there)
    torch.testing.assert_close(changed[:, inside].mean(1), reference[:, there].mean(1))
    torch.testing.assert_close(changed[:, inside].std(1), reference[:, there].std(1))
    assert torch.equal(changed[:, ~inside], z[:, ~inside])


def test_a_latent_with_itself_stays():
    z, inside = latents()[0], torch.rand(6, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    torch.testing.assert_close(adain(z, z, inside, inside), z, rtol=0, atol=1e-12)


def test_masks_without_a_deviation_change_nothing():
    z, one, full = latents()[0], torch.zeros(6, 6, dtype=torch.bool), torch.ones(6, 6, dtype=torch.bool)
    one[2, 2] = True
    for inside, there in ((one, full), (full, one), (one & ~one, full)):
        assert torch.equal(adain(z, latents(1)[0], inside, there), z)
    assert torch.isfinite(adain(torch.ones_like(z), latents(1)[0], full, full)).all()


def test_the_blend_acts_in_its_span_on_its_row():
    z = latents(0, 3)
    blend = AdaIN(2, 1, (0.2, 0.6))
    for i in range(10):
        changed = blend(Step(i, 10, Move(500, 0.5, 0.6), z, z, z))
        assert torch.equal(changed[:2], z[:2])
        assert torch.equal(changed[2], z[2]) == (i not in (2, 3, 4, 5))
    torch.testing.assert_close(blend(Step(3, 10, Move(500, 0.5, 0.6), z, z, z))[2].mean((1, 2)), z[1].mean((1, 2)))
