"""Plug-and-Play diffusion features: the source's features and layout under another prompt (Tumanyan et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ....attention import Chain, InjectFeatures, InjectQueriesKeys, injection_place
from ....inversion import Inversion
from ....masks import KeepSource, PasteSourceRow
from ....model import Model
from ....options import fraction, option
from ....result import Edit
from ....sampling import Attention, Blend, Guidance, Schedule, whole_steps
from ...base import Card, InvertingMethod, Request, finish, sample_back


class NegativeGuidance:
    """Guidance away from a mixture of the empty and a negative prompt.

    eps' = a eps(null) + (1 - a) eps(negative) takes the place of eps(null). Guidance is linear in that place, so this
    is a times the guidance with the empty prompt plus 1 - a times the one with the negative prompt, for any rows.

    Args:
        empty: Guidance with the empty prompt.
        negative: Guidance with the negative prompt in its place.
        shares: a of each step, in [0, 1].
    """

    def __init__(self, empty: Guidance, negative: Guidance, shares: Sequence[float]) -> None:
        self.empty, self.negative, self.shares = empty, negative, shares

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """Both guidances, weighed; one alone where the other has no share."""
        share = self.shares[i]
        if share in (0, 1):
            return (self.empty if share else self.negative)(model, z_t, t, i)
        return share * self.empty(model, z_t, t, i) + (1 - share) * self.negative(model, z_t, t, i)


@dataclass
class PlugAndPlay(InvertingMethod):
    """Tumanyan, Geyer, Bagon and Dekel 2023 (the survey's [26]); not PnP Inversion, which is by others.

    A decoder block's residual features say where the parts of things are, in nearly the same way for pictures of
    different looks; queries and keys of self-attention say which places belong together. Both are taken from the source
    while another prompt is sampled from the source's noise. Everything else, colours and textures above all, is free.

    The source's features belong to the latents of the inversion: after every step the source row is put back on its
    path, so it cannot drift, whatever the inversion. Null and conditional row of the target get the same features,
    those of the source row (as in the authors' code for diffusers), unless the source is guided itself.

    Without a source prompt the picture is inverted under the empty one, as in the paper; the authors advise one that
    describes it. The paper inverts with 1000 steps, this class with as many as it samples.

    Args:
        feature_steps: tau_f, the fraction of steps in which residual features are injected.
        attention_steps: tau_A, the fraction in which queries and keys are.
        resolution: Height of the feature map at which injection begins; None is the largest that has at most 16 cells
            and is not the finest: the 16 of the paper in Stable Diffusion. Features go into this decoder level's second
            block, queries and keys into that block's self-attention and all behind it.
        negative_prompt: What the target is to leave, e.g. the look of a sketch; empty for none. While it has a share
            between 0 and 1, a step runs the U-Net twice.
        negative_schedule: How the share a of the empty prompt runs over the steps: "linear" (to 0 at the last),
            "constant", or "exponential" (as e^-6).
        negative_alpha: a at the first step; 1 for pictures and 0.75 for generated sources in the authors' code.
        source_guidance_scale: w of a generated source row. That of a picture is what its inversion needs.

    A generated source (`image=None`) needs no inversion.
    """

    card: ClassVar[Card] = Card(
        id="plug-and-play",
        title="Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation",
        authors="Tumanyan, Geyer, Bagon, Dekel",
        year=2023,
        venue="CVPR",
        paper="2211.12572",
        branch="tuning_free/attention",
        inputs=("target prompt",),
        edit_types=("style",),
    )
    generates: ClassVar[bool] = True
    feature_steps: float = fraction(0.8)
    attention_steps: float = fraction(0.5)
    resolution: int | None = None
    negative_prompt: str = ""
    negative_schedule: str = option("linear", among=("linear", "constant", "exponential"))
    negative_alpha: float = option(1.0, low=0, high=1)
    source_guidance_scale: float = option(5.0, low=0)

    def control(self, model: Model) -> Attention:
        """Both injections, where `injection_place` says."""
        height, first = injection_place(model.unet, model.latent_shape[1:], self.resolution)
        steps = self.walk_length(model)
        return Chain(
            [
                InjectFeatures(height, stop=whole_steps(self.feature_steps, steps)),
                InjectQueriesKeys(first=first, stop=whole_steps(self.attention_steps, steps)),
            ]
        )

    def shares(self, steps: int) -> list[float]:
        """The empty prompt's share a_i of each of the steps walked, beside the negative prompt's."""
        along = [i / max(steps - 1, 1) for i in range(steps)]
        curve = {"linear": lambda x: 1 - x, "constant": lambda x: 1.0, "exponential": lambda x: math.exp(-6 * x)}
        return [self.negative_alpha * curve[self.negative_schedule](x) for x in along]

    def guidance(self, model: Model, inversion: Inversion, prompts: Sequence[str], scale: float | None) -> Guidance:
        """What `sample_back` is to follow, before the inversion wraps it."""
        free = replace(inversion, guide=None)
        empty = free.guidance(model, prompts, self.guidance_scale, scale)
        if not self.negative_prompt:
            return empty
        away = replace(free, null=model.embed(self.negative_prompt))
        negative = away.guidance(model, prompts, self.guidance_scale, scale)
        return NegativeGuidance(empty, negative, self.shares(len(inversion.moves)))

    def __call__(self, model: Model, request: Request) -> Edit:
        """Sample the target beside the source, which stays on the inversion's path."""
        prompts = [request.source, request.target]
        schedule = Schedule(model.scheduler, self.steps)
        model.embed([*prompts, self.negative_prompt])  # prompts that cannot be used should cost no walk
        control = self.control(model)
        inversion = self.invert(model, request, schedule)
        generated = request.image is None
        # The last latent of the path is the picture's own.
        blends: list[Blend] = [] if generated else [KeepSource(inversion.latents[1:], 0.0, slice(0, 1))]
        if request.mask is not None:
            blends.append(PasteSourceRow(request.mask))
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            self.guidance_scale,
            guidance=self.guidance(model, inversion, prompts, self.source_guidance_scale if generated else None),
            attention=control,
            blends=blends,
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
