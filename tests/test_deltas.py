"""Deltas: a tuned network from its base, as close as their size allows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from editbook.deltas import apply, compress, widen_input
from editbook.errors import EditbookError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 24, 3), nn.GroupNorm(4, 24), nn.Conv2d(24, 24, 3), nn.Linear(32, 48))


def pair(rank=None):
    """A base and what became of it; of every matrix the difference has the given rank, or a full one."""
    base = network()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            change = 0.1 * torch.randn(len(parameter), parameter[0].numel())
            if rank is not None and parameter.ndim > 1:
                u, s, v = torch.linalg.svd(change, full_matrices=False)
                change = u[:, :rank] * s[:rank] @ v[:rank]
            parameter += change.view(parameter.shape)
    return base, tuned


def distance(one, other):
    return float(
        sum((a - b).detach().square().sum() for a, b in zip(one.parameters(), other.parameters(), strict=True)).sqrt()
    )


def restored(base, tuned, size):
    delta, again = compress(base.state_dict(), tuned.state_dict(), size), copy.deepcopy(base)
    apply(again, delta)
    return delta, again


def test_a_difference_of_low_rank_comes_back_to_half_precision():
    base, tuned = pair(rank=2)
    delta, again = restored(base, tuned, 6_000)
    whole = sum(parameter.numel() for parameter in base.parameters())
    assert sum(value.numel() for value in delta.values()) < whole / 2
    assert distance(again, tuned) < 2e-3 * distance(base, tuned)


def test_more_bytes_are_closer_and_the_size_is_kept():
    base, tuned = pair()
    errors = []
    for size in (800, 2_000, 5_000, 40_000):
        delta, again = restored(base, tuned, size)
        assert sum(value.numel() * value.element_size() for value in delta.values()) <= size
        errors.append(distance(again, tuned))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 2e-3 * distance(base, tuned)
    assert errors[0] < distance(base, tuned)


def test_no_other_split_of_the_ranks_is_better():
    """Moving one rank from a layer to an equally large one cannot help: the split is greedy in error per number."""
    torch.manual_seed(1)
    base = {name: torch.zeros(16, 16) for name in "ab"}
    tuned = {"a": torch.diag(torch.linspace(1, 0.1, 16)), "b": torch.diag(torch.linspace(0.5, 0.05, 16))}
    delta = compress(base, tuned, 2 * 32 * 8)
    ranks = {name: delta[f"up.{name}"].shape[1] if f"up.{name}" in delta else 0 for name in "ab"}
    assert sum(ranks.values()) == 8
    values = sorted([*tuned["a"].diag().tolist(), *tuned["b"].diag().tolist()], reverse=True)[:8]
    assert ranks["a"] == sum(value in tuned["a"].diag().tolist() for value in values)


def test_a_layer_of_another_shape_is_stored_whole():
    base, tuned = pair(rank=1)
    tuned[0] = nn.Conv2d(8, 24, 3)
    delta = compress(base.state_dict(), tuned.state_dict(), 20_000)
    assert torch.equal(delta["full.0.weight"], tuned[0].weight.half())
    wide = copy.deepcopy(base)
    wide[0] = nn.Conv2d(8, 24, 3)
    with torch.no_grad():
        wide[0].bias.copy_(base[0].bias)
    apply(wide, delta)
    assert torch.equal(wide[0].weight, tuned[0].weight.half().float())
    assert torch.allclose(wide[0].bias, tuned[0].bias, atol=1e-3)


def test_what_does_not_fit_is_refused():
    base, tuned = pair()
    with pytest.raises(EditbookError, match="same layers"):
        compress(base.state_dict(), {"a": torch.zeros(2)}, 1000)
    with pytest.raises(EditbookError, match="allow"):
        compress(base.state_dict(), tuned.state_dict(), 10)
    with pytest.raises(EditbookError, match="another base"):
        apply(base, {"difference.9.weight": torch.zeros(3)})
    with pytest.raises(EditbookError, match="shape"):
        apply(base, {"difference.1.weight": torch.zeros(3)})


def test_widening_changes_nothing_at_first(random_model):
    unet = copy.deepcopy(random_model.unet)
    widen_input(unet, 8)
    assert unet.config.in_channels == 8
    z, c, text = random_model.random_latent(0), 100 * random_model.random_latent(1), random_model.embed("a cat")
    with torch.no_grad():
        wide = unet(torch.cat([z, c], 1), 300, encoder_hidden_states=text).sample
    assert torch.allclose(wide, random_model.noise(z, 300, text), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    with pytest.raises(EditbookError, match="can be given more"):
        widen_input(unet, 4)
