"""Where two noise estimates differ, the picture has to change: the maps of DiffEdit and of Watch Your Steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..errors import EditbookError
from ..sampling import add_noise

Pair = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From noisy latents (n, channels, h, w) to two noise estimates of that shape."""


def noise_difference(pair: Pair, z_0: torch.Tensor, alpha: float, *, maps: int = 10, seed: int = 0) -> torch.Tensor:
    """The mean of |eps_1 - eps_2| over noises and channels (Couairon et al. 2023, step 1).

    Every noise is its own: one unofficial implementation shares one among all copies, and then averages nothing.

    Args:
        pair: Makes both estimates, of a batch of `maps` noisy latents.
        z_0: The picture's latent, (1, channels, h, w).
        alpha: Cumulative alpha of the noise level at which they are compared.
        maps: How many noises are averaged; the variance falls about as 1 / maps.
        seed: Of the noises; the first n of a longer list are those of a shorter one.

    Returns:
        (h, w), at least 0.
    """
    if not isinstance(maps, int) or maps < 1:
        raise EditbookError(f"maps must be a whole number of at least 1, got {maps!r}.")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.stack([torch.randn(z_0.shape[1:], generator=generator) for _ in range(maps)])
    with torch.no_grad():
        first, second = pair(add_noise(z_0, noise.to(z_0), alpha))
    return (first - second).abs().mean((0, 1))


def check_clamp_ratio(ratio: float) -> None:
    """Raise an `EditbookError` unless `clamped_by_mean` can use this."""
    if not 1 < ratio < math.inf:
        raise EditbookError(f"clamp_ratio must be a finite number above 1, got {ratio!r}; 3 is usual.")


def clamped_by_mean(difference: torch.Tensor, ratio: float = 3.0) -> torch.Tensor:
    """The map cut at `ratio` times its mean, and divided by that: diffusers' form of DiffEdit's normalisation.

    Above 0.5 it then covers at most 2 / ratio of the picture (Markov's inequality): 67 % for the usual 3. A style or a
    whole background cannot be masked in this way.

    Args:
        difference: (h, w), at least 0; all 0 stays all 0.
        ratio: Above 1.
    """
    check_clamp_ratio(ratio)
    top = ratio * difference.mean()
    return difference.clamp(max=top) / top.clamp_min(torch.finfo(difference.dtype).tiny)


def without_outliers(difference: torch.Tensor) -> torch.Tensor:
    """The map cut at Q3 + 1.5 (Q3 - Q1), then stretched to [0, 1]: Watch Your Steps' relevance map.

    Args:
        difference: (h, w); a constant map becomes all 0.
    """
    low, high = torch.quantile(
        difference.float().flatten(), torch.tensor([0.25, 0.75], device=difference.device), interpolation="midpoint"
    ).tolist()
    cut = difference.clamp(0, high + 1.5 * (high - low))
    span = cut.max() - cut.min()
    return (cut - cut.min()) / span if span > 0 else torch.zeros_like(cut)
