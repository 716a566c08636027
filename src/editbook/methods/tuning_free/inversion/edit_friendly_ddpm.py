"""Edit Friendly DDPM inversion: noise maps that carry the picture (Huberman-Spiegelglas et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ....inversion import Inversion, Inverter
from ....inversion.stochastic import (
    chained_noisings,
    extract_noise,
    independent_noisings,
    kept_part,
    source_guidance,
    with_sigma,
)
from ....model import Model
from ....options import option
from ....sampling import Callback, Schedule
from ...base import Card
from .ddim_inversion import DDIMInversion


@dataclass
class EditFriendly(Inverter):
    """Noises the picture anew for every level, and reads off the noise maps that lead a DDPM sampler through it all.

    Because neighbouring latents share nothing but the picture, the maps between them are larger than unit noise, lean
    against their neighbours, and carry the picture's structure. Sampling with them under another prompt keeps it.
    The picture itself comes back to rounding, for any prompt and guidance, as long as the way back repeats them.

    The official code writes eta v under the root of the direction term, where DDIM has eta^2 v; here it is eta^2 v, and
    at the default eta there is no difference.

    Args:
        eta: How much of DDPM's noise a step adds, in (0, 1].
        inversion_scale: Guidance under the source prompt, when the maps are made and on the source row (cfg_src).
        skip: The fraction of the steps that is left out, from the noisiest, in [0, 1): 36 of 100 in the official code.
        keep_last: Keep the map of the last step, which makes the reconstruction exact; False sets it to 0, as the
            official code does, since DDPM adds no noise in its last step.
        chained: Noise the picture along one Markov chain instead, which is ordinary DDPM inversion: it reconstructs as
            exactly, and shows what "edit friendly" is about.
    """

    id: ClassVar[str] = "edit-friendly-ddpm"
    eta: float = option(1.0, above=0, high=1, hint="without noise there is no map to extract")
    inversion_scale: float = option(3.5, low=0)
    skip: float = option(0.36, low=0, below=1, what="a fraction of the steps")
    keep_last: bool = True
    chained: bool = False

    @property
    def needs_prompt(self) -> bool:
        """The maps are made under it, unless without guidance towards any."""
        return self.inversion_scale > 0

    def walk_length(self, schedule: Schedule) -> int:
        """The steps that are kept."""
        return len(kept_part(schedule, self.skip))

    def __call__(
        self,
        model: Model,
        z_0: torch.Tensor,
        prompt: str,
        schedule: Schedule,
        *,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
        **_: Any,
    ) -> Inversion:
        """Noise independently, then extract the maps under the source prompt."""
        moves = with_sigma(kept_part(schedule, self.skip), self.eta)
        latents = (chained_noisings if self.chained else independent_noisings)(z_0, moves, seed)
        inversion = extract_noise(
            model,
            latents,
            moves,
            source_guidance(model, prompt, self.inversion_scale),
            prompt=prompt,
            keep_last=self.keep_last,
            callbacks=callbacks,
        )
        inversion.source_scale = self.inversion_scale
        return inversion


@dataclass
class EditFriendlyDDPM(DDIMInversion):
    """Huberman-Spiegelglas, Kulikov and Michaeli 2024: plain sampling under the target prompt, with the source's maps.

    No attention is controlled; the maps alone hold the layout. For the paper's combination with Prompt-to-Prompt, call
    `prompt-to-prompt` with `inversion="edit-friendly-ddpm"` (its setting: skip 0.12, w 9, cross 0.6, self 0.2).

    Cost: 6 N evaluations, where N steps are kept: two each for the guided extraction, the source row and the target.
    The paper's are 4 N, for it samples the target alone; our source row must be guided as the maps were, to repeat the
    picture.
    """

    card: ClassVar[Card] = Card(
        id="edit-friendly-ddpm",
        title="An Edit Friendly DDPM Noise Space: Inversion and Manipulations",
        authors="Huberman-Spiegelglas, Kulikov, Michaeli",
        year=2024,
        venue="CVPR",
        paper="2304.06140",
        branch="tuning_free/inversion",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "shape", "style", "non-rigid"),
    )
    steps: int = 100
    guidance_scale: float = 15.0
    inversion: str = "edit-friendly-ddpm"
