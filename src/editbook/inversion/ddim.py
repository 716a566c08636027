"""DDIM inversion (Song, Meng and Ermon, ICLR 2021): the pivot from which most other inversions begin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..model import Model
from ..options import option
from ..sampling import Attention, Callback, ClassifierFreeGuidance, Schedule, Trajectory, follow
from .base import Inversion, Inverter


def ddim_inversion(
    model: Model,
    z_0: torch.Tensor,
    prompt: str,
    schedule: Schedule,
    *,
    guidance_scale: float = 1.0,
    timestep: str = "next",
    attention: Attention | None = None,
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
        guidance_scale: Of the walk up: 1 by default, as in Null-text Inversion; above it inversion tends to diverge.
        timestep: See `Schedule.inversion`.
        attention: Reads or changes attention on the way up; its step 0 is the one next to the picture.
        callbacks: Get each `Step`.
    """
    walked = Trajectory()
    condition = model.embed(prompt).expand(len(z_0), -1, -1)
    null = model.embed("") if guidance_scale != 1 else None
    guidance = ClassifierFreeGuidance(condition, null, guidance_scale)
    follow(model, z_0, schedule.inversion(timestep), guidance, attention=attention, callbacks=[walked, *callbacks])
    return Inversion(walked.latents[::-1], walked.noises[::-1], schedule.sampling(), prompt)


@dataclass
class DDIM(Inverter):
    """`ddim_inversion` as a part of an editor; its source row comes back without guidance.

    Args:
        timestep: What the U-Net is told on the way up, see `Schedule.inversion`.
        inversion_scale: Guidance on the way up.
    """

    id: ClassVar[str] = "ddim-inversion"
    takes_batch: ClassVar[bool] = True
    timestep: str = "next"
    inversion_scale: float = option(1.0, low=0, hint="1 is no guidance")

    def __call__(
        self, model: Model, z_0: torch.Tensor, prompt: str, schedule: Schedule, *, callbacks: Any = (), **_: Any
    ) -> Inversion:
        """Invert under the source prompt."""
        return ddim_inversion(
            model,
            z_0,
            prompt,
            schedule,
            guidance_scale=self.inversion_scale,
            timestep=self.timestep,
            callbacks=callbacks,
        )
