"""Negative-prompt Inversion: the source prompt takes the place of the empty one (Miyake et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....inversion import Inversion, Inverter, ddim_inversion
from ....model import Model
from ....options import option
from ....sampling import Callback, Schedule
from ...base import Card
from ..attention.prompt_to_prompt import PromptToPrompt


@dataclass
class NegativePrompt(Inverter):
    """Asks when guided sampling repeats an unguided inversion, and finds: when the negative prompt is the source.

    eps(null) + w (eps(C) - eps(null)) = eps(C) for w other than 1 needs eps(null) = eps(C), so null = C. The bracket
    of Eq. 9 that guidance multiplies is then zero on the source row; the linearisation error stays. Nothing is
    optimised, and the source row costs one evaluation a step, whatever w is.

    Args:
        interpolation: Where the negative embedding lies between the source prompt (0, the paper) and the empty prompt
            (1, plain guidance), on the sphere: ProxEdit's `npi_interp`.
    """

    id: ClassVar[str] = "negative-prompt-inversion"
    takes_batch: ClassVar[bool] = True
    interpolation: float = option(0.0, low=0, high=1)

    @property
    def needs_prompt(self) -> bool:
        """It takes the place of the empty one."""
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
    ) -> Inversion:
        """DDIM inversion, with the source prompt as the negative one on the way back."""
        inversion = ddim_inversion(model, z_0, prompt, schedule, callbacks=callbacks)
        inversion.null = slerp(model.embed(prompt), model.embed(""), self.interpolation)
        inversion.source_scale = 1.0 if self.interpolation == 0 else guidance_scale
        return inversion


def slerp(a: torch.Tensor, b: torch.Tensor, amount: float) -> torch.Tensor:
    """From a (0) to b (1) along the great circle between them, both seen as one long vector each."""
    if amount in (0, 1):
        return a if amount == 0 else b
    flat_a, flat_b = a.double().flatten(), b.double().flatten()
    angle = torch.acos((flat_a @ flat_b / (flat_a.norm() * flat_b.norm())).clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(a, b, amount)
    mixed = (torch.sin((1 - amount) * angle) * flat_a + torch.sin(amount * angle) * flat_b) / torch.sin(angle)
    return mixed.view_as(a).to(a)


@dataclass
class NegativePromptInversion(PromptToPrompt):
    """Miyake, Iohara, Saito and Tanaka 2023: Prompt-to-Prompt on their inversion.

    Guidance now leads from source to target, eps(C_src) + w (eps(C_tar) - eps(C_src)), and is small wherever the two
    prompts agree. The replacement fractions are those of PIE-Bench's runs (Ju et al. 2024); the paper gives none.

    Cost: 4 N evaluations, N up and 3 N down. The paper's are 5 N: there both rows are guided, and the source row's two
    estimates are one and the same, which we make once.
    """

    card: ClassVar[Card] = Card(
        id="negative-prompt-inversion",
        title="Negative-prompt Inversion: Fast Image Inversion for Editing with Text-guided Diffusion Models",
        authors="Miyake, Iohara, Saito, Tanaka",
        year=2023,
        venue="WACV 2025",
        paper="2305.16807",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "style", "object removal", "object addition"),
    )
    cross_replace: float = 0.4
    self_replace: float = 0.6
    inversion: str = "negative-prompt-inversion"
