"""DDIM inversion (Song, Meng and Ermon, ICLR 2021), and the survey's Eq. 9 as a measurement.

The survey prints Eq. 7 (sampling) and Eq. 8 (inversion) with their names exchanged, and Eq. 9 with the noise of the
wrong index and without the difference that came before; see the errata page. With gamma_t = sqrt(1 / alpha_t - 1) and
z scaled by 1 / sqrt(alpha), one step of the two paths differs by

    (z - z*)_{t-1} / sqrt(alpha_{t-1}) = (z - z*)_t / sqrt(alpha_t) + (gamma_{t-1} - gamma_t) (eps_t - eps*_{t-1}),

where eps_t was estimated at z_t (sampling) and eps*_{t-1} at z*_{t-1} (inversion). Summed over all steps this is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ..errors import EditbookError
from ..model import Model
from ..sampling import Callback, ClassifierFreeGuidance, Move, Schedule, Trajectory, follow


@dataclass(frozen=True)
class Gap:
    """Both sides of Eq. 9 along one sampling path, (steps, n, channels, height, width), in sampling order.

    Args:
        left: (z - z*) / sqrt(alpha) after each step.
        right: The running sum of (gamma_{t-1} - gamma_t) (eps_t - eps*_{t-1}).
        terms: The summands of `right`.
        timesteps: t of each step.
    """

    left: torch.Tensor
    right: torch.Tensor
    terms: torch.Tensor
    timesteps: list[int]

    def norms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Root mean square of both sides for each step, (steps,) each."""
        return self.left.square().mean((1, 2, 3, 4)).sqrt(), self.right.square().mean((1, 2, 3, 4)).sqrt()


@dataclass
class Inversion:
    """What an inversion returns. All lists stand in *sampling* order, from noise to picture.

    Args:
        latents: z*_T ... z*_0, N + 1 tensors (n, channels, height, width).
        noises: eps*, N tensors: `noises[i]` moved the latent between `latents[i + 1]` and `latents[i]`.
        moves: The N moves of the *sampling* path between them.
        prompt: The prompt under which the picture was inverted.
        sampled: A sampling path back from z*_T, if one was recorded.
    """

    latents: list[torch.Tensor]
    noises: list[torch.Tensor]
    moves: list[Move]
    prompt: str = ""
    sampled: Trajectory | None = field(default=None, repr=False)

    @property
    def z_T(self) -> torch.Tensor:
        """The noisiest latent, from which sampling starts."""
        return self.latents[0]

    @property
    def timesteps(self) -> list[int]:
        """T of each sampling step."""
        return [move.t for move in self.moves]

    def gap(self, sampled: Trajectory | None = None) -> Gap:
        """The survey's Eq. 9 (corrected), both sides, at each step of a sampling path back from `z_T`.

        Args:
            sampled: The recorded sampling path; None takes `self.sampled`.

        Raises:
            EditbookError: There is no sampling path, or it did not start at `z_T` with the same steps.
        """
        path = sampled or self.sampled
        if path is None:
            raise EditbookError("Eq. 9 compares inversion with sampling: give gap() a recorded sampling Trajectory.")
        if [(m.alpha_from, m.alpha_to) for m in path.moves] != [(m.alpha_from, m.alpha_to) for m in self.moves]:
            raise EditbookError("The sampling path did not take the same steps as the inversion.")
        if not torch.equal(path.latents[0], self.z_T):
            raise EditbookError("The sampling path did not start at the inversion's z_T.")
        left = torch.stack(
            [
                (z - z_star) / move.alpha_to**0.5
                for move, z, z_star in zip(self.moves, path.latents[1:], self.latents[1:], strict=True)
            ]
        )
        terms = torch.stack(
            [
                (_gamma(move.alpha_to) - _gamma(move.alpha_from)) * (eps - eps_star)
                for move, eps, eps_star in zip(self.moves, path.noises, self.noises, strict=True)
            ]
        )
        return Gap(left, terms.cumsum(0), terms, self.timesteps)


def _gamma(alpha: float) -> float:
    return (1 / alpha - 1) ** 0.5


def ddim_inversion(
    model: Model,
    z_0: torch.Tensor,
    prompt: str,
    schedule: Schedule,
    *,
    guidance_scale: float = 1.0,
    timestep: str = "next",
    callbacks: Iterable[Callback] = (),
) -> Inversion:
    """Walk the sampling path backwards, from the picture's latent to noise.

    The exact step would need the noise estimate at the noisier latent, which is not known yet; the estimate at the
    current latent stands in for it. That is right to first order in the step (the linearisation error of Eq. 9).

    Args:
        model: The model.
        z_0: The picture's latent (n, channels, height, width), from `Model.encode`.
        prompt: The source prompt; describe the picture.
        schedule: The steps.
        guidance_scale: 1 by default, as in Null-text Inversion; above it inversion tends to diverge.
        timestep: See `Schedule.inversion`.
        callbacks: Get each `Step`.
    """
    walked = Trajectory()
    condition = model.embed(prompt).expand(len(z_0), -1, -1)
    null = model.embed("") if guidance_scale != 1 else None
    guidance = ClassifierFreeGuidance(condition, null, guidance_scale)
    follow(model, z_0, schedule.inversion(timestep), guidance, callbacks=[walked, *callbacks])
    return Inversion(walked.latents[::-1], walked.noises[::-1], schedule.sampling(), prompt)
