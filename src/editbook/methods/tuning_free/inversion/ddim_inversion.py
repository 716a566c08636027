"""DDIM inversion as an editor: walk the picture up to noise under the old prompt, come back under the new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....masks import KeepSource
from ....model import Model
from ....result import Edit
from ....sampling import Schedule
from ...base import Card, InvertingMethod, Request, finish, sample_back


@dataclass
class DDIMInversion(InvertingMethod):
    """Song, Meng and Ermon 2021; the baseline of the survey's inversion branch (its Eq. 7 to 9).

    It controls nothing: source and target are sampled side by side from the same noise and do not see each other. With
    another inversion it shows what that inversion does by itself.

    With a mask, the inverted trajectory is pasted back outside it.

    Cost: 4 N evaluations, N up and 3 N down: one for the source row, which is not guided, two for the guided target.
    Editing alone takes 3 N; the source row is ours, and shows the reconstruction.
    """

    card: ClassVar[Card] = Card(
        id="ddim-inversion",
        title="Denoising Diffusion Implicit Models",
        authors="Song, Meng, Ermon",
        year=2021,
        venue="ICLR",
        paper="2010.02502",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "shape", "style"),
    )

    def __call__(self, model: Model, request: Request) -> Edit:
        """Invert under the source prompt (w = 1), sample under the target prompt."""
        prompts = [request.source, request.target]
        model.embed(prompts)  # before the inversion: prompts that cannot be used should cost no walk
        inversion = self.invert(model, request, Schedule(model.scheduler, self.steps))
        z_0 = sample_back(
            model,
            inversion,
            prompts,
            self.guidance_scale,
            blends=[] if request.mask is None else [KeepSource(inversion.latents[1:], request.mask, slice(1, None))],
            callbacks=request.callbacks,
        )
        return finish(model, request, inversion, z_0)
