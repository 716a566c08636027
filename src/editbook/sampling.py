"""The noise schedule, the DDIM step, and the one loop that all methods share.

Convention (Stable Diffusion's own): N steps visit the timesteps t_N > ... > t_1, spaced by r = 1000 // N. Sampling
moves from level t to level t - r with the noise estimated at t. `alpha` is the *cumulative* product (alpha-bar in
DDPM), decreasing in t; below timestep 0 stands `final_alpha` (alphas_cumprod[0] in SD). Inversion walks exactly the
same pairs backwards, so every coefficient cancels and only the noise estimates can differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch

from .errors import EditbookError, unknown
from .model import Model


@dataclass(frozen=True)
class Move:
    """One step of a path: the U-Net is told `t`, the latent moves from level `alpha_from` to `alpha_to`.

    Args:
        t: Training timestep, 0 to 999.
        alpha_from: Cumulative alpha of the level that the step leaves.
        alpha_to: Cumulative alpha of the level where it arrives.
        sigma: Standard deviation of the noise that the step adds; 0 is DDIM.
        noise: That noise, (1, channels, height, width), the same for every row of the batch; None where sigma is 0.
    """

    t: int
    alpha_from: float
    alpha_to: float
    sigma: float = 0.0
    noise: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def levels(self) -> tuple[float, float]:
        """The two noise levels, without what happens between them."""
        return self.alpha_from, self.alpha_to

    def __call__(self, z: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Make the step: the latents where it arrives."""
        z_next = ddim_step(z, eps, self.alpha_from, self.alpha_to, self.sigma)
        return z_next if self.noise is None else z_next + self.sigma * self.noise


class Schedule:
    """N of the model's training timesteps, and the noise levels between them.

    Args:
        scheduler: Any diffusers scheduler with `alphas_cumprod`; its config's `steps_offset` and `set_alpha_to_one`
            are obeyed, its spacing is "leading", as in Stable Diffusion.
        steps: N, at least 1.
    """

    def __init__(self, scheduler: object, steps: int) -> None:
        config = scheduler.config  # type: ignore[attr-defined]
        total = int(config.num_train_timesteps)
        offset = int(config.get("steps_offset", 0))
        if not isinstance(steps, int) or not 1 <= steps <= total - offset:
            raise EditbookError(f"steps must be an integer from 1 to {total - offset}, got {steps!r}.")
        self.steps = steps
        self._alphas = scheduler.alphas_cumprod.double().tolist()  # type: ignore[attr-defined]
        self._final = 1.0 if config.get("set_alpha_to_one", True) else self._alphas[0]
        self._gap = total // steps
        self.timesteps = [min(i * self._gap + offset, total - 1) for i in reversed(range(steps))]
        """The timesteps in sampling order, noisiest first."""

    def alpha(self, t: int) -> float:
        """The cumulative alpha of a timestep; `final_alpha` below 0 (Eq. 2 of the survey, product form)."""
        return self._alphas[t] if t >= 0 else self._final

    def sampling(self, strength: float = 1.0) -> list[Move]:
        """The path from noise to picture, or its last part: `strength` 0.8 starts 80 % of the way up."""
        if not 0 <= strength <= 1:
            raise EditbookError(f"strength must lie in [0, 1], got {strength!r}.")
        start = self.steps - whole_steps(strength, self.steps)
        return [Move(t, self.alpha(t), self.alpha(t - self._gap)) for t in self.timesteps[start:]]

    def part(self, strength: float) -> Schedule:
        """The last steps only, as `sampling(strength)` has them: any inversion then walks up no further than this."""
        part = copy(self)
        part.timesteps = [move.t for move in self.sampling(strength)]
        part.steps = len(part.timesteps)
        return part

    def spread(self, strength: float = 1.0) -> list[Move]:
        """N steps spread evenly over the last part of the timesteps, the last of them to timestep 0 (LEDITS++).

        Where `sampling` leaves out steps and keeps their distance, this keeps their number.

        Args:
            strength: 0.85 starts at 85 % of the timesteps.

        Raises:
            EditbookError: strength is not in (0, 1], or there are fewer timesteps than steps in this part.
        """
        if not 0 < strength <= 1:
            raise EditbookError(f"strength must lie in (0, 1], got {strength!r}.")
        top = whole_steps(strength, len(self._alphas)) - 1
        if top < self.steps:
            raise EditbookError(f"{self.steps} steps do not fit into {top} timesteps: take fewer steps, or skip less.")
        times = [int(t) for t in torch.linspace(top, 1, self.steps, dtype=torch.float64)] + [0]
        return [Move(t, self.alpha(t), self.alpha(after)) for t, after in pairwise(times)]

    def inversion(self, timestep: str = "next") -> list[Move]:
        """The same pairs, backwards: from picture to noise.

        Args:
            timestep: What the U-Net is told while the latent moves up from t - r to t: "next" is t (what the common
                code does), "current" is t - r, clamped at 0 (what the formula in the papers says).
        """
        if timestep not in ("next", "current"):
            raise unknown("timestep convention", timestep, ("next", "current"))
        told = (lambda t: t) if timestep == "next" else (lambda t: max(t - self._gap, 0))
        return [Move(told(t), self.alpha(t - self._gap), self.alpha(t)) for t in reversed(self.timesteps)]


def whole_steps(fraction: float, steps: int, *, nearest: bool = False) -> int:
    """How many whole steps a fraction of all steps is: 0.29 of 100 is 29, whatever floating point makes of it.

    Args:
        fraction: In [0, 1].
        steps: N.
        nearest: Take the nearest number, and not the one below, as most official codes do. For ranges that a paper
            gives in steps, such as MasaCtrl's 4 of 50: 0.08 of 20 is then 2.
    """
    return math.floor(round(fraction * steps, 9) + (0.5 if nearest else 0))


Span = tuple[float, float]
"""Fractions of the steps, from the first to before the last."""


def within(span: Span, step: int, total: int) -> bool:
    """Whether step i of `total` lies in a span, whose ends are the nearest whole steps: 0.08 of 50 is step 4."""
    first, last = (whole_steps(end, total, nearest=True) for end in span)
    return first <= step < last


def ddim_step(
    z: torch.Tensor, eps: torch.Tensor, alpha_from: float, alpha_to: float, sigma: float = 0.0
) -> torch.Tensor:
    """Move a latent between noise levels along the DDIM path (Song et al. 2021, Eq. 12, without its random part).

    Downwards (`alpha_to` > `alpha_from`) this samples: the survey's Eq. 7. Upwards it inverts: its Eq. 8. With the
    same `eps` and `sigma` 0, the step with both levels exchanged is the exact inverse. With `sigma` above 0 it is the
    mean of a stochastic step, to which sigma times a standard normal is added.
    """
    return alpha_to**0.5 * clean_estimate(z, eps, alpha_from) + (1 - alpha_to - sigma**2) ** 0.5 * eps


def ancestral_sigma(alpha_from: float, alpha_to: float) -> float:
    """The sigma with which a step samples like DDPM (Song et al. 2021, Eq. 16 with eta 1; the survey's Eq. 3).

    The first-order SDE-DPM-Solver++ adds exactly the same noise (Lu et al. 2022): its sigma sqrt(1 - exp(-2h)) is this.
    """
    return ((1 - alpha_to) / (1 - alpha_from) * (1 - alpha_from / alpha_to)) ** 0.5


def clean_estimate(z_t: torch.Tensor, eps: torch.Tensor, alpha_t: float) -> torch.Tensor:
    """The picture that the noise estimate implies: z_0 = (z_t - sqrt(1 - alpha_t) eps) / sqrt(alpha_t)."""
    return (z_t - (1 - alpha_t) ** 0.5 * eps) / alpha_t**0.5


def add_noise(z_0: torch.Tensor, noise: torch.Tensor, alpha_t: float) -> torch.Tensor:
    """The forward process in one jump, q(z_t | z_0): the survey's Eq. 2 in closed form."""
    return alpha_t**0.5 * z_0 + (1 - alpha_t) ** 0.5 * noise


@dataclass
class Step:
    """What one pass of the loop saw. `z_next` may be replaced by a blend; callbacks read the final value."""

    i: int
    total: int
    move: Move
    z_t: torch.Tensor
    eps: torch.Tensor
    z_next: torch.Tensor

    @property
    def t(self) -> int:
        """The timestep that the U-Net was told."""
        return self.move.t

    @property
    def z_0(self) -> torch.Tensor:
        """The clean latent as estimated at this step."""
        return clean_estimate(self.z_t, self.eps, self.move.alpha_from)


Callback = Callable[[Step], None]
Blend = Callable[[Step], torch.Tensor]
Direction = Callable[[torch.Tensor, int, int], torch.Tensor]
"""From eps(C) - eps(null) of the guided rows, the timestep t and the step i to the direction to go in instead."""


class Guidance(Protocol):
    """Where the noise estimate of step i comes from."""

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The noise estimate for all latents."""
        ...


class Attention(Protocol):
    """What watches or changes attention while the U-Net runs: a control of `editbook.attention`, or a chain of them."""

    def attached(self, unet: Any, latent_size: tuple[int, int], rows: int) -> AbstractContextManager[object]:
        """A context in which the U-Net's layers report here; `rows` counts the conditional rows, the last ones."""
        ...

    def begin_step(self, i: int, total: int) -> None:
        """Step i of `total` begins."""
        ...


@dataclass
class ClassifierFreeGuidance:
    """eps = eps(null) + w (eps(C) - eps(null)) (Ho & Salimans 2022).

    Args:
        condition: Text embeddings C, (n, tokens, width), a row for each latent; or with a leading axis of steps,
            (steps, n, tokens, width), for methods that change the prompt on the way.
        null: Embeddings of the empty or negative prompt: (1 or n, tokens, width), or with a leading axis of steps,
            (steps, 1 or n, tokens, width), for methods that tune it at each step. May be None if every scale is 1.
        scale: w, a number or one for each row. Rows with w = 1 cost no unconditional evaluation.
        direction: Reshapes eps(C) - eps(null) of the rows whose w is not 1, before it is multiplied by w.

    The U-Net's batch is [null rows that are needed..., all n conditional rows]: attention controls see the last n.
    """

    condition: torch.Tensor
    null: torch.Tensor | None = None
    scale: float | Sequence[float] = 1.0
    direction: Direction | None = None

    def __post_init__(self) -> None:
        n = self.condition.shape[-3]
        scales = [float(self.scale)] * n if isinstance(self.scale, (int, float)) else [float(w) for w in self.scale]
        if not all(math.isfinite(w) for w in scales):
            raise EditbookError(f"A guidance scale must be a finite number, got {self.scale!r}.")
        if len(scales) != n:
            raise EditbookError(f"{len(scales)} guidance scales were given for {n} latents.")
        self._guided = [row for row, w in enumerate(scales) if w != 1.0]
        self._scales = torch.tensor([scales[row] for row in self._guided]).view(-1, 1, 1, 1).to(self.condition)
        if self._guided and self.null is None:
            raise EditbookError("Guidance needs the embedding of the empty prompt; give null, or scale 1.")

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The guided noise estimate at step i, shaped like z_t."""
        condition = self.condition[i] if self.condition.ndim == 4 else self.condition
        if not self._guided:
            return model.noise(z_t, t, condition)
        assert self.null is not None
        null = self.null[i] if self.null.ndim == 4 else self.null
        null = null.expand(len(z_t), -1, -1)[self._guided]
        eps = model.noise(torch.cat([z_t[self._guided], z_t]), t, torch.cat([null, condition]))
        eps_null, guided = eps[: len(self._guided)], eps[len(self._guided) :].clone()
        direction = guided[self._guided] - eps_null
        if self.direction is not None:
            direction = self.direction(direction, t, i)
        guided[self._guided] = eps_null + self._scales * direction
        return guided


def follow(
    model: Model,
    z: torch.Tensor,
    path: Sequence[Move],
    guidance: Guidance,
    *,
    attention: Attention | None = None,
    blend: Blend | None = None,
    callbacks: Iterable[Callback] = (),
    gradients: bool = False,
) -> torch.Tensor:
    """The one loop: walk latents along a path, up or down. Every method of the book runs through here.

    Args:
        model: The model.
        z: Latents at the level where the path begins, (n, channels, height, width).
        path: Moves, e.g. `Schedule.sampling()` or `Schedule.inversion()`.
        guidance: Gives the noise estimate; the seam for guidance.
        attention: Reads or changes attention while the U-Net runs; the seam for attention.
        blend: Gets the `Step`, returns the latent to go on with; the seam for masks and for corrections.
        callbacks: Get the finished `Step`: progress, recording, plots.
        gradients: Leave autograd as the caller has it, for methods that optimise through the whole walk; such a method
            bounds its memory in its guidance, with `torch.utils.checkpoint`. Off, the walk builds no graph.

    Returns:
        The latents where the path ends, (n, channels, height, width).

    Raises:
        EditbookError: A latent or an estimate is not finite, or a control matches no layer.
    """
    if not torch.isfinite(z).all():
        raise EditbookError("The starting latent holds NaN or infinite values.")
    callbacks = list(callbacks)
    size = (z.shape[-2], z.shape[-1])
    autograd = nullcontext() if gradients else torch.no_grad()
    with autograd, attention.attached(model.unet, size, len(z)) if attention else nullcontext():
        for i, move in enumerate(path):
            if attention:
                attention.begin_step(i, len(path))
            eps = guidance(model, z, move.t, i)
            step = Step(i, len(path), move, z, eps, move(z, eps))
            if blend is not None:
                step.z_next = blend(step)
            for callback in callbacks:
                callback(step)
            z = step.z_next
    return z


@dataclass
class Trajectory:
    """A recorded walk: pass it to `follow` as a callback. Everything stands in the order in which it was walked.

    `latents` has one entry more than `noises` and `moves`: the first is where the walk began.

    Args:
        rows: How many rows of the batch to keep, from the first; all by default.
    """

    latents: list[torch.Tensor] = field(default_factory=list)
    noises: list[torch.Tensor] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    rows: int | None = None

    def __call__(self, step: Step) -> None:
        """Record one step."""
        if not self.latents:
            self.latents.append(step.z_t[: self.rows])
        self.latents.append(step.z_next[: self.rows])
        self.noises.append(step.eps[: self.rows])
        self.moves.append(step.move)
