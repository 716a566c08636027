"""KV Inversion: the stored keys and values are tuned until sampling returns to the picture (Huang et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....attention import Pairs, StoredAttention
from ....inversion import Inversion
from ....inversion.embedding_tuning import TunedInversion, needs_single_precision
from ....masks import KeepSource
from ....model import Model
from ....options import option
from ....sampling import Callback, Guidance, Schedule, follow
from ...base import Card
from .tic_inversion import TIC, TICInversion


class KeyValueTuning:
    """Guidance that tunes the stored keys and values of a step before it samples with them.

    The loss of step i is the mean square of z_{t-1} - z*_{t-1}, where z_{t-1} is one step from the latent that the step
    begins with. Only the arrays have gradients. The best iterate is kept, so no loss ends above where it began.

    Args:
        inversion: The pivots.
        guidance: The noise estimate of the source.
        stored: Asked during the walk; its pairs are replaced by the tuned ones.
        inner_steps: Updates in each step.
        learning_rate: Of Adam, times the standard deviation of each array.
    """

    def __init__(
        self,
        inversion: Inversion,
        guidance: Guidance,
        stored: StoredAttention,
        *,
        inner_steps: int,
        learning_rate: float,
    ) -> None:
        self.inversion, self.guidance, self.stored = inversion, guidance, stored
        self.inner_steps, self.learning_rate = inner_steps, learning_rate
        self.losses: list[list[float]] = []

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """Tune for step i; the noise estimate with the tuned arrays."""
        pairs, places = self.stored.pairs, [place for place in self.stored.pairs if place[1] == i]
        if not places:
            return self.guidance(model, z_t, t, i)
        arrays = [part.clone().requires_grad_() for place in places for part in pairs[place]]
        # Gradients of a small error are far below Adam's usual 1e-8, which would stop it.
        rates = [self.learning_rate * float(array.detach().std()) for array in arrays]
        adam = torch.optim.Adam(
            [{"params": [array], "lr": rate} for array, rate in zip(arrays, rates, strict=True)], eps=1e-20
        )
        move, pivot = self.inversion.moves[i], self.inversion.latents[i + 1]
        losses: list[float] = []
        best: tuple[float, Pairs, torch.Tensor] = (math.inf, {}, z_t)
        for iteration in range(self.inner_steps + 1):
            pairs.update(dict(zip(places, zip(arrays[::2], arrays[1::2], strict=True), strict=True)))
            last = iteration == self.inner_steps
            with torch.set_grad_enabled(not last):
                eps = self.guidance(model, z_t, t, i)
                loss = (move(z_t, eps) - pivot).square().mean()
            losses.append(float(loss.detach()))
            if losses[-1] < best[0]:
                kept = {place: (pairs[place][0].detach().clone(), pairs[place][1].detach().clone()) for place in places}
                best = losses[-1], kept, eps.detach()
            if not last:
                for array, gradient in zip(arrays, torch.autograd.grad(loss, arrays), strict=True):
                    array.grad = gradient
                adam.step()
        pairs.update(best[1])
        self.losses.append(losses)
        return best[2]


@dataclass
class KV(TIC):
    """TIC whose keys and values are then tuned: free arrays, a pair for each layer and step, no weight of the net.

    They begin as what inversion recorded. Step by step, Adam moves them until one step of sampling under the source
    prompt ends on the inversion's path. No code is known, and we read the paper's abstract and one reader's notes: that
    there are two stages, the loss, and that stored and own arrays are mixed by weights is certain; layers, first step,
    the form of the mixture, beginning, rate and number of updates are our reconstruction, in analogy to MasaCtrl and
    Null-text Inversion. The survey has keys and values of *cross*-attention learned; they are those of self-attention.

    Cost: N evaluations up, then in each tuned step one for every update and one for the arrays that result. Gradients
    need float32. The arrays hold for this number of steps, this picture, and any target prompt.

    Args:
        share: beta in [0, 1]: keys and values are beta stored + (1 - beta) own. Below 1 rows are mixed by their place
            in the picture, wherever the new pose put things.
        inner_steps: Updates in each step; 0 is TIC.
        learning_rate: Of Adam, in units of each array's standard deviation; ours, from a few trials on pocket.
        from_pivot: Tune each step from the path's own latent, which makes them independent. Otherwise from the latent
            that the steps before really reached, which corrects what they left over.
        tuning_scale: w of the step that is tuned, and of the source row.
    """

    id: ClassVar[str] = "kv-inversion"
    inversion_prompt: str = "source"
    share: float = option(1.0, low=0, high=1)
    inner_steps: int = option(10, low=0)
    learning_rate: float = option(3e-2, above=0)
    from_pivot: bool = True
    tuning_scale: float = option(1.0)

    def attention(self, pairs: Pairs, steps: int) -> StoredAttention | None:
        """As `TIC.attention`, with the share."""
        stored = super().attention(pairs, steps)
        if stored is not None:
            stored.share = self.share
        return stored

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        callbacks: Iterable[Callback] = (),
        **_: Any,
    ) -> TunedInversion:
        """Up, recording; down once, tuning.

        Raises:
            EditbookError: The model computes in a half precision.
        """
        needs_single_precision(model, self.id)
        callbacks = list(callbacks)
        pivot = super().__call__(model, z_0, prompt, schedule, callbacks=callbacks)
        scale = 0.0 if self.inversion_prompt == "empty" else self.tuning_scale
        inversion = TunedInversion(**{**vars(pivot), "source_scale": scale})
        stored = inversion.attention
        # At beta = 0 the arrays have no part in anything, and no gradient.
        if isinstance(stored, StoredAttention) and self.share > 0:
            tuning = KeyValueTuning(
                inversion,
                inversion.guidance(model, [inversion.prompt], scale),
                stored.serving("all"),
                inner_steps=self.inner_steps,
                learning_rate=self.learning_rate,
            )
            blend = KeepSource(inversion.latents[1:], 0.0) if self.from_pivot else None
            follow(
                model,
                inversion.z_T,
                inversion.moves,
                tuning,
                attention=tuning.stored,
                blend=blend,
                callbacks=callbacks,
            )
            inversion.losses = tuning.losses
        return inversion


@dataclass
class KVInversion(TICInversion):
    """Huang, Liu, Qin and Chen 2023: key and value embeddings learning.

    TIC's editor on the tuned arrays: from the first step on that the inversion stores, the edited row asks with its own
    queries, and the learned keys and values of the picture answer, under the target prompt and w, in both guidance
    halves. One inversion serves any number of target prompts. It is called tuning-free because the network is fixed,
    yet it takes gradient steps for each picture.
    """

    card: ClassVar[Card] = Card(
        id="kv-inversion",
        title="KV Inversion: KV Embeddings Learning for Text-Conditioned Real Image Action Editing",
        authors="Huang, Liu, Qin, Chen",
        year=2023,
        venue="PRCV",
        paper="2309.16608",
        branch="tuning_free/attention",
        inputs=("source prompt", "target prompt"),
        edit_types=("non-rigid",),
    )
    inversion: str = "kv-inversion"
