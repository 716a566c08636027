"""Direct Inversion: the noises of the way up pull on those of the way down (Elarabawy et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....errors import EditbookError
from ....inversion import Inversion, Inverter, ddim_inversion
from ....model import Model
from ....options import option
from ....sampling import Callback, Guidance, Schedule
from ...base import Card
from .ddim_inversion import DDIMInversion


@dataclass
class Direct(Inverter):
    """Walks up under the empty prompt, remembers the noise estimates, and mixes them into those of the way back.

    In Eq. 9 the noise gap of a step is scaled by 1 - lambda. With lambda = 1 the walk is replayed, whatever prompt and
    guidance; with lambda = 0 it is plain DDIM inversion with guidance. No source prompt is needed: with
    Prompt-to-Prompt it only labels the attention of the source row, which is always replayed exactly.

    The U-Net is told the *current* timestep on the way up, as the formula in the papers says.

    Args:
        injection: lambda in [0, 1], the share of the remembered noise in the edited rows.
        injection_steps: S, the number of steps from the noisiest that are injected; None is all (the official
            notebook; 5 in the code's signature).
        align: "exact" pairs a step with the noise of the same move upwards; "official" with that of the next noisier
            move, as the authors' code does by one step too many, so that lambda = 1 does not return the picture there.
        injected: "noise", or "latent": z_T takes the place of every remembered noise, an ablation of the code.
    """

    id: ClassVar[str] = "direct-inversion"
    needs_source_row: ClassVar[bool] = True
    takes_batch: ClassVar[bool] = True
    injection: float = option(0.5, low=0, high=1, what="a share of the noise")
    injection_steps: int | None = option(None, low=0, what="a number of steps", hint="None is all")
    align: str = option("exact", among=("exact", "official"))
    injected: str = option("noise", among=("noise", "latent"))

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        callbacks: Iterable[Callback] = (),
        **_: Any,
    ) -> Inversion:
        """DDIM inversion under the empty prompt; the source prompt is not used.

        Raises:
            EditbookError: More steps are to be injected than there are.
        """
        steps = schedule.steps if self.injection_steps is None else self.injection_steps
        if steps > schedule.steps:
            raise EditbookError(f"injection_steps must be at most the {schedule.steps} steps of the walk, got {steps}.")
        inversion = ddim_inversion(model, z_0, "", schedule, timestep="current", callbacks=callbacks)
        remembered = inversion.noises
        if self.injected == "latent":
            remembered = [inversion.z_T] * schedule.steps
        elif self.align == "official":
            # The official walk ends with a step that moves nothing; the first sampling step takes that one's noise.
            with torch.no_grad():
                last = model.noise(inversion.z_T, inversion.moves[0].t, model.embed(""))
            remembered = [last, *remembered[:-1]]
        inversion.guide = lambda guidance: Injected(guidance, inversion.noises, remembered[:steps], self.injection)
        return inversion


class Injected:
    """Guidance drawn to remembered noises: row 0 replays its own, the others take a share while there are any.

    Args:
        guidance: Of all rows.
        replayed: e_inv of each step, in sampling order: row 0's estimates.
        remembered: e_inv of the steps in which the other rows are drawn to it, the first ones.
        share: lambda, how far they are drawn.
    """

    def __init__(
        self, guidance: Guidance, replayed: Sequence[torch.Tensor], remembered: Sequence[torch.Tensor], share: float
    ) -> None:
        self.guidance, self.replayed, self.remembered, self.share = guidance, replayed, remembered, share

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """Row 0 is e_inv, the others are eps + lambda (e_inv - eps)."""
        eps = self.guidance(model, z_t, t, i)
        edits = eps[1:]
        if i < len(self.remembered):
            edits = torch.lerp(edits, self.remembered[i].expand_as(edits), self.share)
        return torch.cat([self.replayed[i], edits])


@dataclass
class DirectInversion(DDIMInversion):
    """Elarabawy, Kamath and Denton 2022: one picture, one target prompt, one slider.

    Not the paper of the same first name by Ju et al., which the survey describes under this reference; that one is
    `pnp-inversion`. Defaults are those of the official notebook (the code's signature has 50 steps, w = 7.5, and no
    injection).

    Cost: 4 N evaluations, N up and 3 N down. The paper's are 3 N, for it has no source row; ours, which repeats the
    picture beside the edit, costs one evaluation a step.
    """

    card: ClassVar[Card] = Card(
        id="direct-inversion",
        title="Direct Inversion: Optimization-Free Text-Driven Real Image Editing with Diffusion Models",
        authors="Elarabawy, Kamath, Denton",
        year=2022,
        venue="arXiv",
        paper="2211.07825",
        branch="tuning_free/inversion",
        inputs=("target prompt",),
        edit_types=("texture", "shape", "style", "non-rigid"),
    )
    steps: int = 100
    guidance_scale: float = 3.0
    inversion: str = "direct-inversion"
