"""Tuning one of guidance's two embeddings, step by step, until the guided walk comes back to the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..errors import EditbookError
from ..model import Model
from ..options import option
from ..sampling import Callback, Schedule, follow
from .base import Inversion, Inverter
from .ddim import ddim_inversion


@dataclass
class TunedInversion(Inversion):
    """An inversion with the record of its tuning.

    Args:
        losses: For each step the loss of the embedding that it began with and after each update; the last one is also
            there when the step stopped early. The smallest is that of the embedding that was kept.
    """

    losses: list[list[float]] = field(default_factory=list)


class EmbeddingTuning:
    """Guidance that tunes an embedding before it is used, so that the step ends on the pivot.

    The loss of step i is the mean square of z_{t-1} - z*_{t-1}, where z_{t-1} is one guided step from the latent that
    the steps before really reached: what they left over is corrected by those that follow. Each step begins with the
    embedding that the last one ended with, and with a fresh Adam. A subclass says which of the two embeddings it is.

    The official code of Null-text Inversion goes on with the last iterate. This takes the best one, which is almost
    always the last.

    The estimate that stays and the first one that is tuned are two calls, as there. One call of two rows gains nothing:
    the gradient goes back through both rows, and a step took 1.04 times as long with 10 updates, 0.98 with 3 (medians,
    pocket model, one CPU thread; single pairs of runs scatter by 0.1).

    Args:
        inversion: The pivot.
        condition: Embedding of the prompt, (1, tokens, width).
        null: Embedding of the empty prompt, (1, tokens, width).
        scale: w of guidance.
        inner_steps: Updates of each step, at most.
        learning_rate: Adam's at the first step; it falls linearly to half, as 1 - i / 2N.
        tolerance: A step stops below tolerance (1 + 100 i / N), looked at after each update; 0 never stops.
    """

    tunes: ClassVar[str]
    """"null" or "condition": the one that is tuned, every position of it free; the other one stays."""

    def __init__(
        self,
        inversion: Inversion,
        condition: torch.Tensor,
        null: torch.Tensor,
        scale: float,
        *,
        inner_steps: int,
        learning_rate: float,
        tolerance: float,
    ) -> None:
        self.inversion, self.condition, self.null, self.scale = inversion, condition, null, scale
        self.inner_steps, self.learning_rate, self.tolerance = inner_steps, learning_rate, tolerance
        self.embeddings: list[torch.Tensor] = []
        self.losses: list[list[float]] = []

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """Tune for step i; the guided noise estimate with the tuned embedding."""
        move, pivot = self.inversion.moves[i], self.inversion.latents[i + 1]
        share = i / len(self.inversion.moves)
        eps_fixed = model.noise(z_t, t, self.condition if self.tunes == "null" else self.null)
        tuned: torch.Tensor = getattr(self, self.tunes).clone().requires_grad_()
        adam = torch.optim.Adam([tuned], lr=self.learning_rate * (1 - share / 2))
        losses: list[float] = []
        best = (math.inf, tuned, eps_fixed)  # loss, embedding, noise estimate
        for iteration in range(self.inner_steps + 1):
            # The last iterate is what the step samples with: it is evaluated, too, but needs no gradient.
            last = iteration == self.inner_steps or self._close(losses, share)
            with torch.set_grad_enabled(not last):
                eps_tuned = model.noise(z_t, t, tuned)
                eps_c, eps_null = (eps_fixed, eps_tuned) if self.tunes == "null" else (eps_tuned, eps_fixed)
                eps = eps_null + self.scale * (eps_c - eps_null)
                loss = (move(z_t, eps) - pivot).square().mean()
            losses.append(float(loss.detach()))
            if losses[-1] < best[0]:
                best = losses[-1], tuned.detach().clone(), eps.detach()
            if last:
                break
            (tuned.grad,) = torch.autograd.grad(loss, tuned)
            adam.step()
        _, kept, guided = best
        setattr(self, self.tunes, kept)
        self.embeddings.append(kept)
        self.losses.append(losses)
        return guided

    def _close(self, losses: list[float], share: float) -> bool:
        """Whether the update just made was the last one: the loss that it was computed from was small enough."""
        return bool(losses) and losses[-1] < self.tolerance * (1 + 100 * share)


@dataclass
class TuningInverter(Inverter):
    """What the inversions share that tune an embedding.

    Cost: N evaluations up; then in each step one for the estimate that stays, one for every update, and one for the
    embedding that results, 3 N and one for each update in all. Gradients need float32; float16 overflows.

    Args:
        inner_steps: Updates in each step, at most.
        learning_rate: Of Adam, at the noisiest step; falls linearly to half of it. With 50 steps this is the official
            1e-2 (1 - i / 100) of Null-text Inversion, which becomes negative when there are more than 100; its paper
            says 0.01 throughout.
        tolerance: A step stops when its loss is below tolerance (1 + 100 i / N), the official 1e-5 + 2e-5 i for 50.
            As in the official code the update is made all the same. 0 never stops.
    """

    tuning: ClassVar[type[EmbeddingTuning]]
    inner_steps: int = option(10, low=0)
    learning_rate: float = option(1e-2, above=0)
    tolerance: float = option(1e-5, low=0, high=math.inf, hint="0 never stops early")

    def tune(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        scale: float,
        callbacks: Iterable[Callback],
    ) -> tuple[Inversion, EmbeddingTuning]:
        """Up by DDIM inversion without guidance, down once with tuning: the pivot, and what was tuned.

        Raises:
            EditbookError: The model computes in a half precision.
        """
        needs_single_precision(model, self.id)
        callbacks = list(callbacks)
        pivot = ddim_inversion(model, z_0, prompt, schedule, callbacks=callbacks)
        tuning = self.tuning(
            pivot,
            model.embed(prompt),
            model.embed(""),
            scale,
            inner_steps=self.inner_steps,
            learning_rate=self.learning_rate,
            tolerance=self.tolerance,
        )
        follow(model, pivot.z_T, pivot.moves, tuning, callbacks=callbacks)
        return pivot, tuning


def needs_single_precision(model: Model, name: str) -> None:
    """Raise if the model computes in float16 or bfloat16, in which embeddings cannot be tuned."""
    if model.dtype.itemsize < 4:
        precision = str(model.dtype).removeprefix("torch.")
        raise EditbookError(
            f"{name} tunes embeddings, which fails in {precision}: load the model with dtype='float32'."
        )
