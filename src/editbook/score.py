"""Score distillation: a latent goes downhill, and the noise estimate at random timesteps says which way that is.

This is no walk along a path (`sampling.follow`): the latent stays clean, is noised to a random level for each update,
and the noise is thrown away again. DreamFusion began it (SDS, Poole et al. 2023), Delta Denoising Score made it edit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from .errors import EditbookError
from .model import Model
from .sampling import Callback, Move, Step, add_noise


@dataclass(frozen=True)
class Draw:
    """What one update draws at random: a level, and the noise. Every latent that is compared gets the same.

    Args:
        i: Which update, from 0.
        t: Training timestep.
        alpha: Its cumulative alpha.
        noise: (1, channels, height, width), standard normal.
    """

    i: int
    t: int
    alpha: float
    noise: torch.Tensor

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Clean latents (n, channels, height, width), noised."""
        return add_noise(z, self.noise, self.alpha)


class ScoreGradient(Protocol):
    """Which way to go: what stands in the place of a loss's gradient."""

    def __call__(self, model: Model, z: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient with respect to z, and the noise estimate at the noised z; both shaped like z."""
        ...


def draws(model: Model, steps: int, *, t_range: tuple[float, float] = (0.05, 0.95), seed: int = 0) -> Iterable[Draw]:
    """Levels, all equally likely, and noises of one seed, drawn on the CPU so that all devices get the same.

    Args:
        model: Whose timesteps and latents.
        steps: How many.
        t_range: The part of the timesteps, as fractions; (0.05, 0.95) of 1000 are the official 50 to 948.
        seed: Of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    alphas = model.scheduler.alphas_cumprod.double().tolist()
    low, high = (round(share * len(alphas)) for share in t_range)
    dtype = torch.promote_types(model.dtype, torch.float32)
    for i in range(steps):
        t = int(torch.randint(low, max(high - 1, low + 1), (1,), generator=generator))
        noise = torch.randn((1, *model.latent_shape), generator=generator, dtype=torch.float32)
        yield Draw(i, t, alphas[t], noise.to(model.device, dtype))


def descend(
    model: Model,
    z_0: torch.Tensor,
    gradient: ScoreGradient,
    *,
    steps: int,
    step_size: float,
    t_range: tuple[float, float] = (0.05, 0.95),
    seed: int = 0,
    mask: torch.Tensor | None = None,
    callbacks: Iterable[Callback] = (),
) -> torch.Tensor:
    """Plain gradient descent on a latent: z <- z - step_size g, with a new level and a new noise each time.

    Args:
        model: The model.
        z_0: Where to start, (1, channels, height, width). The walk is in float32 at least: updates are small.
        gradient: Gives g.
        steps: Updates.
        step_size: What one unit of g moves an element of the latent.
        t_range: See `draws`.
        seed: See `draws`.
        mask: Where z may move, (1, 1, height, width) in [0, 1]; None is everywhere.
        callbacks: Get a `Step` for each update. Its move leaves the random level for the clean one: `z_t` is the
            noised latent, `z_0` what its noise estimate makes of it, and `z_next` the clean latent after the update.

    Returns:
        The latent after the last update, in the model's number format.

    Raises:
        EditbookError: The latent is no longer finite.
    """
    callbacks = list(callbacks)
    z = z_0.to(torch.promote_types(z_0.dtype, torch.float32))
    with torch.no_grad():
        for draw in draws(model, steps, t_range=t_range, seed=seed):
            g, eps = gradient(model, z, draw)
            z_next = z - step_size * (g if mask is None else mask.to(g) * g)
            if not torch.isfinite(z_next).all():
                raise EditbookError(f"The latent grew without bound in update {draw.i}: lower step_size.")
            for callback in callbacks:
                callback(Step(draw.i, steps, Move(draw.t, draw.alpha, 1.0), draw(z), eps, z_next))
            z = z_next
    return z.to(z_0.dtype)
