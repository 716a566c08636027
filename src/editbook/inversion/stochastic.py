"""Inversion of a stochastic sampler: prescribe its latents, and read off the noise that leads from each to the next.

A step with noise, z_{t-1} = mean(z_t) + sigma n, reaches *any* latent if n may be chosen: n = (z_{t-1} - mean) / sigma.
So a picture can be repeated exactly, whatever the guidance, and what is left to decide is through which latents to go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from ..errors import EditbookError
from ..model import Model
from ..sampling import (
    Callback,
    ClassifierFreeGuidance,
    Guidance,
    Move,
    Schedule,
    Step,
    Trajectory,
    add_noise,
    ancestral_sigma,
    clean_estimate,
    follow,
    whole_steps,
)
from .base import Inversion


def independent_noisings(z_0: torch.Tensor, moves: Sequence[Move], seed: int = 0) -> list[torch.Tensor]:
    """The picture noised to every level of a path, each time with *fresh* noise (Huberman-Spiegelglas et al., Eq. 6).

    Neighbours share nothing but the picture, so the noise between them has to carry it.

    Args:
        z_0: The clean latent, (1, channels, height, width).
        moves: The sampling path, N moves.
        seed: Of the noise, drawn on the CPU so that all devices get the same.

    Returns:
        N + 1 latents in sampling order; the last is z_0 itself.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = [torch.randn(z_0.shape, generator=generator, dtype=torch.float32).to(z_0) for _ in moves]
    return [*(add_noise(z_0, eps, move.alpha_from) for eps, move in zip(fresh, moves, strict=True)), z_0]


def chained_noisings(z_0: torch.Tensor, moves: Sequence[Move], seed: int = 0) -> list[torch.Tensor]:
    """The picture noised step by step along one Markov chain, as DDPM's forward process is defined.

    Each latent has the same distribution as in `independent_noisings`; only the neighbours now depend on each other.
    Arguments and result are the same.
    """
    generator = torch.Generator().manual_seed(seed)
    latents, level, z = [z_0], 1.0, z_0
    for move in reversed(moves):
        fresh = torch.randn(z_0.shape, generator=generator, dtype=torch.float32).to(z_0)
        z, level = add_noise(z, fresh, move.alpha_from / level), move.alpha_from
        latents.append(z)
    return latents[::-1]


def with_sigma(moves: Sequence[Move], eta: float = 1.0) -> list[Move]:
    """The moves with eta times DDPM's noise; 1 is DDPM and first-order SDE-DPM-Solver++, 0 is DDIM."""
    return [replace(move, sigma=eta * ancestral_sigma(*move.levels)) for move in moves]


def extract_noise(
    model: Model,
    latents: Sequence[torch.Tensor],
    moves: Sequence[Move],
    guidance: Guidance,
    *,
    prompt: str = "",
    keep_last: bool = True,
    callbacks: Iterable[Callback] = (),
) -> Inversion:
    """Walk through prescribed latents, and keep the noise that each step needs to hit the next one.

    The walk goes on with mean + sigma n rather than with the prescribed latent. The two are equal, but only up to
    rounding, and the sampler that comes back must see the same numbers (the paper's drift correction).

    Args:
        model: The model.
        latents: N + 1 latents in sampling order.
        moves: The N moves between them, with the sigma of each. A move with sigma 0 cannot be steered: the walk takes
            its mean.
        guidance: Gives the noise estimate; sampling back repeats the picture with the same one.
        prompt: Under which the picture is inverted.
        keep_last: Keep the map of the last step; else it is 0, and the path ends at the mean, not at the picture.
        callbacks: Get each `Step`.
    """
    walked, noises = Trajectory(), []

    def hit(step: Step) -> torch.Tensor:
        steer = step.move.sigma > 0 and (keep_last or step.i + 1 < step.total)
        noise = (latents[step.i + 1] - step.z_next) / step.move.sigma if steer else torch.zeros_like(step.z_next)
        noises.append(noise)
        return step.z_next + step.move.sigma * noise

    follow(model, latents[0], moves, guidance, blend=hit, callbacks=[walked, *callbacks])
    path = [replace(move, noise=noise if move.sigma else None) for move, noise in zip(moves, noises, strict=True)]
    return Inversion(walked.latents, walked.noises, path, prompt)


def source_guidance(model: Model, prompt: str, scale: float) -> ClassifierFreeGuidance:
    """Guidance of the picture's own row; scale 0 is the unconditional estimate, at the cost of one evaluation."""
    if scale == 0:
        return ClassifierFreeGuidance(model.embed(""))
    return ClassifierFreeGuidance(model.embed(prompt), model.embed(""), scale)


class SecondOrder:
    """SDE-DPM-Solver++ (2M) as a guidance: the noise estimate that makes a first-order step a second-order one.

    The solver (Lu et al. 2022) extrapolates the clean estimate m_t from the step before,
    D = m_t + h_t / (2 h_{t+1}) (m_t - m_{t+1}), where h is the step in log(sqrt(alpha) / sqrt(1 - alpha)); everything
    else is the first-order step, which with DDPM's sigma is the stochastic DDIM step of `Move`. So handing on the noise
    that belongs to D, (z_t - sqrt(alpha_t) D) / sqrt(1 - alpha_t), is all that is needed.

    The first step, and a step to a level without noise, are first-order. The history begins anew at step 0.

    Args:
        guidance: What estimates the noise.
        moves: The path that will be walked.
        final_first_order: The last so many steps are first-order too. Extrapolation trusts h_t / h_{t+1} to be near 1;
            where steps are even in t, it is about 4 in the step before the last, which comes to timestep 1.
    """

    def __init__(self, guidance: Guidance, moves: Sequence[Move], final_first_order: int = 0) -> None:
        self.guidance, self.moves, self.final = guidance, moves, final_first_order
        self._before: torch.Tensor | None = None

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The effective noise estimate at step i, shaped like z_t."""
        eps = self.guidance(model, z_t, t, i)
        move = self.moves[i]
        clean = clean_estimate(z_t, eps, move.alpha_from)
        before, self._before = self._before, clean
        if i == 0 or i >= len(self.moves) - self.final or move.alpha_to == 1:
            return eps
        if before is None or before.shape != clean.shape:
            raise EditbookError("A second-order path must be walked from its beginning, with the same latents.")
        ratio = _log_snr_step(move) / _log_snr_step(self.moves[i - 1])
        extrapolated = clean + 0.5 * ratio * (clean - before)
        return (z_t - move.alpha_from**0.5 * extrapolated) / (1 - move.alpha_from) ** 0.5


def _log_snr_step(move: Move) -> float:
    """H, how far a move goes in log(sqrt(alpha) / sqrt(1 - alpha))."""
    start, end = (0.5 * torch.logit(torch.tensor(alpha, dtype=torch.float64)).item() for alpha in move.levels)
    return end - start


def kept_part(schedule: Schedule, skip: float) -> list[Move]:
    """The sampling path without its first, noisiest steps: `skip` is the fraction left out.

    Raises:
        EditbookError: skip lies outside [0, 1), or no step is left.
    """
    if not 0 <= skip < 1:
        raise EditbookError(f"skip is the fraction of the steps that are left out, in [0, 1), got {skip!r}.")
    moves = schedule.sampling()
    return moves[whole_steps(skip, len(moves)) :]
