"""Null-text Inversion: the empty prompt's embedding is tuned, step by step, until guided sampling returns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ....errors import EditbookError
from ....inversion import Inversion, Inverter, ddim_inversion
from ....model import Model
from ....sampling import Callback, Schedule, follow
from ...base import Card
from ..attention.prompt_to_prompt import PromptToPrompt


@dataclass
class TunedInversion(Inversion):
    """An inversion with the record of its tuning.

    Args:
        losses: For each step the loss of the null embedding that it began with and after each update; the last one is
            also there when the step stopped early. The smallest is that of the embedding in `null`.
    """

    losses: list[list[float]] = field(default_factory=list)


class NullTextTuning:
    """Guidance that tunes the null embedding before it is used, so that the step ends on the pivot.

    The loss of step i is the mean square of z_{t-1} - z*_{t-1}, where z_{t-1} is one guided step from the latent that
    the steps before really reached: what they left over is corrected by those that follow. Each step begins with the
    embedding that the last one ended with, and with a fresh Adam.

    The official code goes on with the last iterate. This takes the best one, which is almost always the last.

    Args:
        inversion: The pivot.
        condition: Embedding of the source prompt, (1, tokens, width); it stays.
        null: Embedding to begin with, (1, tokens, width), every position of it free.
        scale: w of guidance.
        inner_steps: Updates of each step, at most.
        learning_rate: Adam's at the first step; it falls linearly to half, as 1 - i / 2N.
        tolerance: A step stops below tolerance (1 + 100 i / N), looked at after each update; 0 never stops.
    """

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
        self.inversion, self.condition, self.scale = inversion, condition, scale
        self.inner_steps, self.learning_rate, self.tolerance = inner_steps, learning_rate, tolerance
        self.null = null
        self.nulls: list[torch.Tensor] = []
        self.losses: list[list[float]] = []

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """Tune for step i; the guided noise estimate with the tuned embedding."""
        move, pivot = self.inversion.moves[i], self.inversion.latents[i + 1]
        share = i / len(self.inversion.moves)
        eps_c = model.noise(z_t, t, self.condition)
        null = self.null.clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=self.learning_rate * (1 - share / 2))
        losses: list[float] = []
        best = (math.inf, null, eps_c)  # loss, embedding, noise estimate
        for iteration in range(self.inner_steps + 1):
            # The last iterate is what the step samples with: it is evaluated, too, but needs no gradient.
            last = iteration == self.inner_steps or self._close(losses, share)
            with torch.set_grad_enabled(not last):
                eps_null = model.noise(z_t, t, null)
                eps = eps_null + self.scale * (eps_c - eps_null)
                loss = (move(z_t, eps) - pivot).square().mean()
            losses.append(float(loss.detach()))
            if losses[-1] < best[0]:
                best = losses[-1], null.detach().clone(), eps.detach()
            if last:
                break
            (null.grad,) = torch.autograd.grad(loss, null)
            adam.step()
        _, self.null, guided = best
        self.nulls.append(self.null)
        self.losses.append(losses)
        return guided

    def _close(self, losses: list[float], share: float) -> bool:
        """Whether the update just made was the last one: the loss that it was computed from was small enough."""
        return bool(losses) and losses[-1] < self.tolerance * (1 + 100 * share)


@dataclass
class NullText(Inverter):
    """Keeps the source prompt and the network, and tunes what guidance starts from.

    Guidance drives sampling off the path of an unguided inversion. That path is the pivot; for every timestep an
    embedding takes the place of the empty prompt's such that one step with the full w ends on it (Mokady et al. 2023,
    Algorithm 1). The list holds for this w, this number of steps and this source prompt only; it serves the row of the
    edit as well as that of the source.

    Cost: N evaluations up; then in each step one for eps(C), one for every update, and one for the embedding that
    results, 3 N and one for each update in all. Gradients need float32; float16 overflows.

    Args:
        inner_steps: Updates in each step, at most.
        learning_rate: Of Adam, at the noisiest step; falls linearly to half of it. With 50 steps this is the official
            1e-2 (1 - i / 100), which becomes negative when there are more than 100; the paper says 0.01 throughout.
        tolerance: A step stops when its loss is below tolerance (1 + 100 i / N), the official 1e-5 + 2e-5 i for 50.
            As in the official code the update is made all the same. 0 never stops.
    """

    id: ClassVar[str] = "null-text-inversion"
    inner_steps: int = 10
    learning_rate: float = 1e-2
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not isinstance(self.inner_steps, int) or self.inner_steps < 0:
            raise EditbookError(f"inner_steps must be an integer of at least 0, got {self.inner_steps!r}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise EditbookError(f"learning_rate must be a finite number above 0, got {self.learning_rate!r}.")
        if not self.tolerance >= 0:
            raise EditbookError(f"tolerance must be at least 0 (0 never stops early), got {self.tolerance!r}.")

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        guidance_scale: float = 7.5,
        callbacks: Iterable[Callback] = (),
        **_: Any,
    ) -> TunedInversion:
        """Up by DDIM inversion, down once with tuning.

        Raises:
            EditbookError: The model computes in a half precision.
        """
        needs_single_precision(model, self.id)
        callbacks = list(callbacks)
        pivot = ddim_inversion(model, z_0, prompt, schedule, callbacks=callbacks)
        tuning = NullTextTuning(
            pivot,
            model.embed(prompt),
            model.embed(""),
            guidance_scale,
            inner_steps=self.inner_steps,
            learning_rate=self.learning_rate,
            tolerance=self.tolerance,
        )
        follow(model, pivot.z_T, pivot.moves, tuning, callbacks=callbacks)
        return TunedInversion(
            pivot.latents,
            pivot.noises,
            pivot.moves,
            prompt,
            null=torch.stack(tuning.nulls),
            source_scale=guidance_scale,
            losses=tuning.losses,
        )


def needs_single_precision(model: Model, name: str) -> None:
    """Raise if the model computes in float16 or bfloat16, in which embeddings cannot be tuned."""
    if model.dtype.itemsize < 4:
        precision = str(model.dtype).removeprefix("torch.")
        raise EditbookError(
            f"{name} tunes embeddings, which fails in {precision}: load the model with dtype='float32'."
        )


@dataclass
class NullTextInversion(PromptToPrompt):
    """Mokady, Hertz, Aberman, Pritch and Cohen-Or 2023: Prompt-to-Prompt on their inversion.

    The survey's Table 1 files it under fine-tuning; no weight is tuned. The fraction of self-attention is the smaller
    one of the official notebook's examples (0.5 to 0.7).
    """

    card: ClassVar[Card] = Card(
        id="null-text-inversion",
        title="Null-text Inversion for Editing Real Images using Guided Diffusion Models",
        authors="Mokady, Hertz, Aberman, Pritch, Cohen-Or",
        year=2023,
        venue="CVPR",
        paper="2211.09794",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "style", "non-rigid"),
    )
    cross_replace: float = 0.8
    self_replace: float = 0.5
    inversion: str = "null-text-inversion"
