"""Latent inversion with timestep-aware sampling: the source prompt first, then the target (Jung et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ....inversion import Inversion
from ....inversion.embedding_tuning import needs_single_precision
from ....inversion.text_optimisation import fit_embedding
from ....masks import KeepSource
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Blend, Guidance, Schedule, whole_steps
from ...base import Card, InvertingMethod, Request, finish, sample_back


@dataclass
class Switch:
    """One guidance for the first steps, another for the rest.

    Args:
        first: Gives the estimate of the steps before `at`.
        second: Gives the estimate from step `at` on.
        at: Number of steps that are the first's.
    """

    first: Guidance
    second: Guidance
    at: int

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The noise estimate of the one whose turn it is."""
        return (self.first if i < self.at else self.second)(model, z_t, t, i)


@dataclass
class LatentInversionTimestepAware(InvertingMethod):
    """Jung, Lee, Djanibekov, Shim and Ye 2024, for edits that change a pose: our reading of the abstract.

    Imagic (Kawar et al. 2023) without its fine-tuning, in three stages. (1) The target prompt's embedding e_tgt is
    fitted to the picture, which gives e_opt. (2) The latent is inverted under the source prompt; that takes the place
    of fine-tuning and keeps the identity. (3) Sampling is conditioned on the source prompt in its first, noisy steps,
    which lay out the picture, and then on eta e_tgt + (1 - eta) e_opt. Only two embeddings of the *same* text are ever
    mixed: the tokens of two texts do not correspond.

    **A reconstruction.** Of the paper we had the abstract only, and no code was published that we know of. Its three
    stages are stated there. The interpolation is Imagic's; that inversion runs under the source prompt, that the
    source phase is unguided (guidance would lead away from the inverted path before the edit begins), and every number
    below are our own choices. Any other inversion may take DDIM's place: the source phase then repeats its source row.

    Args:
        switch: tau in [0, 1], the share of the steps of the way back, from the noisiest on, that the source prompt
            conditions. 1 gives the reconstruction, 0 samples with the target throughout.
        eta: How much of e_tgt is in the target phase's embedding, in [0, 1]; the rest is e_opt.
        text_steps: Steps of the text optimisation; 0 leaves e_opt = e_tgt.
        text_rate: Its learning rate, see `fit_embedding`.
        text_batch: Pairs of timestep and noise in each of its steps.

    With a mask, the inverted trajectory is pasted back outside it.
    """

    card: ClassVar[Card] = Card(
        id="latent-inversion-timestep-aware",
        title="Latent Inversion with Timestep-aware Sampling for Training-free Non-rigid Editing",
        authors="Jung, Lee, Djanibekov, Shim, Ye",
        year=2024,
        venue="arXiv",
        paper="2402.08601",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("non-rigid",),
    )
    switch: float = fraction(0.2)
    eta: float = option(0.8, low=0, high=1)
    text_steps: int = option(100, low=0)
    text_rate: float = option(1e-2, above=0)
    text_batch: int = option(4, low=1)

    def __call__(self, model: Model, request: Request) -> Edit:
        """Fit the text, invert the latent, sample with the source prompt and then with the mixed embedding."""
        if self.text_steps:
            needs_single_precision(model, self.card.id)
        target = model.embed([request.source, request.target])[1:]  # prompts that cannot be used should cost nothing
        schedule = Schedule(model.scheduler, self.steps)
        inversion = self.invert(model, request, schedule)
        fitted, _ = fit_embedding(
            model,
            inversion.latents[-1],
            target,
            steps=self.text_steps,
            learning_rate=self.text_rate,
            batch=self.text_batch,
            seed=request.seed,
        )
        mixed = torch.lerp(fitted, target, self.eta)
        at = whole_steps(self.switch, len(inversion.moves), nearest=True)
        blends: list[Blend] = [lambda step: step.z_next[:1].expand_as(step.z_next) if step.i < at else step.z_next]
        if request.mask is not None:
            blends.append(KeepSource(inversion.latents[1:], request.mask, slice(1, None)))
        scheduled = timestep_aware(model, inversion, mixed, at, self.guidance_scale)
        z_0 = sample_back(
            model,
            scheduled,
            [request.source, request.target],
            self.guidance_scale,
            blends=blends,
            callbacks=request.callbacks,
        )
        inversion.sampled = scheduled.sampled
        return finish(model, request, inversion, z_0)


def timestep_aware(model: Model, inversion: Inversion, mixed: torch.Tensor, at: int, scale: float) -> Inversion:
    """The inversion, made to come back by a prompt schedule: `at` steps under its own prompt, then under an embedding.

    The first row repeats the source throughout. In the source phase the others are guided as it is: not at all after
    DDIM inversion, with its tuned embedding after Null-text Inversion.

    Args:
        model: The model.
        inversion: One picture's.
        mixed: Embeddings of the other rows in the target phase, (n, tokens, width).
        at: Steps of the source phase.
        scale: w of the source phase for an inversion whose source takes the edit's.
    """
    own = scale if inversion.source_scale is None else inversion.source_scale
    first = replace(inversion, guide=None).guidance(model, [inversion.prompt] * (1 + len(mixed)), own, own)

    def embed(model: Model, prompts: Sequence[str]) -> torch.Tensor:
        source = inversion.embed(model, prompts[:1]) if inversion.embed else model.embed(prompts[:1])
        return torch.cat([source, mixed.expand(*source.shape[:-3], -1, -1, -1)], -3)

    def guide(second: Guidance) -> Guidance:
        switch = Switch(first, second, at)
        # As a whole: a solver that builds on the step before must see the steps of both phases.
        return inversion.guide(switch) if inversion.guide else switch

    return replace(inversion, embed=embed, guide=guide)
