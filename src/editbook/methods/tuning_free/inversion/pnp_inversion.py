"""PnP Inversion: the source row is put back on its path after every step (Ju et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....inversion import Inversion, Inverter, ddim_inversion
from ....masks import KeepSource
from ....model import Model
from ....options import option
from ....sampling import Callback, Schedule
from ...base import Card
from ..attention.prompt_to_prompt import PromptToPrompt


@dataclass
class PnP(Inverter):
    """Lets the source row repeat the inversion exactly, and leaves the target row free.

    The paper adds the offset z* - z to the source row after each step. That is the same as putting the row back on its
    path, which needs no second pass to measure offsets and leaves no rounding, and is right whatever controls do.

    Args:
        strength: Share of the offset that is added, in [0, 1]; the paper's ablation has 0.4 and 0.8.
        every: Correct every so many steps only, beginning with the first; also an ablation of the paper's.
    """

    id: ClassVar[str] = "pnp-inversion"
    takes_batch: ClassVar[bool] = True
    strength: float = option(1.0, low=0, high=1, what="a share of the offset")
    every: int = option(1, low=1)

    @property
    def needs_prompt(self) -> bool:
        """The source row samples with it, and an editor compares the target row with that."""
        return True

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
        """DDIM inversion, whose source row follows the path on the way back."""
        inversion = ddim_inversion(model, z_0, prompt, schedule, callbacks=callbacks)
        follow_path = KeepSource(inversion.latents[1:], 1 - self.strength, slice(0, 1))
        inversion.blend = lambda step: step.z_next if step.i % self.every else follow_path(step)
        return inversion


@dataclass
class PnPInversion(PromptToPrompt):
    """Ju, Zeng, Bian, Liu and Xu 2024, with Prompt-to-Prompt and the settings of their benchmark.

    The survey says that the difference of the *noises* becomes almost zero. It is the *latents* whose difference is
    made zero; the noises differ as much as guidance makes them.

    Cost: 4 N evaluations, N up and 3 N down. The official code takes 9 N: it measures the offsets of both prompts in a
    guided walk of its own (4 N), and guides the source row as it does the target. Since the row is put back anyway,
    w = 1 gives the same latents and the same attention maps for one evaluation less a step;
    `source_guidance_scale=7.5` has it guided.
    """

    card: ClassVar[Card] = Card(
        id="pnp-inversion",
        title="PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code",
        authors="Ju, Zeng, Bian, Liu, Xu",
        year=2024,
        venue="ICLR",
        paper="2310.01506",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "shape", "style", "non-rigid"),
    )
    cross_replace: float = 0.4
    self_replace: float = 0.6
    inversion: str = "pnp-inversion"
