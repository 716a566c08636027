"""Null-text Inversion: the empty prompt's embedding is tuned, step by step, until guided sampling returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....inversion.embedding_tuning import EmbeddingTuning, TunedInversion, TuningInverter
from ....model import Model
from ....sampling import Callback, Schedule
from ...base import Card
from ..attention.prompt_to_prompt import PromptToPrompt


class NullTextTuning(EmbeddingTuning):
    """Tunes what guidance starts from; the prompt's embedding stays."""

    tunes: ClassVar[str] = "null"


@dataclass
class NullText(TuningInverter):
    """Keeps the source prompt and the network, and tunes what guidance starts from.

    Guidance drives sampling off the path of an unguided inversion. That path is the pivot; for every timestep an
    embedding takes the place of the empty prompt's such that one step with the full w ends on it (Mokady et al. 2023,
    Algorithm 1). The list holds for this w, this number of steps and this source prompt only; it serves the row of the
    edit as well as that of the source. Cost and options: see `TuningInverter`.
    """

    id: ClassVar[str] = "null-text-inversion"
    tuning: ClassVar[type[EmbeddingTuning]] = NullTextTuning

    @property
    def needs_prompt(self) -> bool:
        """What is tuned makes up for guidance towards it."""
        return True

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
        pivot, tuned = self.tune(model, z_0, prompt, schedule, guidance_scale, callbacks)
        return TunedInversion(
            pivot.latents,
            pivot.noises,
            pivot.moves,
            prompt,
            null=torch.stack(tuned.embeddings),
            source_scale=guidance_scale,
            losses=tuned.losses,
        )


@dataclass
class NullTextInversion(PromptToPrompt):
    """Mokady, Hertz, Aberman, Pritch and Cohen-Or 2023: Prompt-to-Prompt on their inversion.

    The survey's Table 1 files it under fine-tuning; no weight is tuned. The fraction of self-attention is the smaller
    one of the official notebook's examples (0.5 to 0.7).

    Cost: 7 N evaluations and one for each update: 3 N and the updates for the inversion, 4 N for two guided rows. The
    official code takes 8 N and the updates: when a step is tuned it makes both halves of guidance again to go on, we
    only the tuned one. The source row is guided there as it is here.
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
