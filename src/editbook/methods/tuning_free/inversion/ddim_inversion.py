"""DDIM inversion as an editor: walk the picture up to noise under the old prompt, come back under the new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....masks import KeepSource, mask_array
from ....model import Model
from ....result import Edit
from ....sampling import Schedule, follow
from ...base import Card, Method, Request, guided, invert, reconstruct


@dataclass
class DDIMInversion(Method):
    """Song, Meng and Ermon 2021; the baseline of the survey's inversion branch (its Eq. 7 to 9).

    Args:
        inversion: Which inversion makes the trajectory; another one here is another method of the branch.

    With a mask, the inverted trajectory is pasted back outside it.
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
    inversion: str = "ddim-inversion"

    def __call__(self, model: Model, request: Request) -> Edit:
        """Invert under the source prompt (w = 1), sample under the target prompt."""
        guidance = guided(model, [request.target], self.guidance_scale)
        inversion = invert(model, request, self.inversion, Schedule(model.scheduler, self.steps))
        reconstruction = reconstruct(model, inversion, callbacks=request.callbacks)
        edited = follow(
            model,
            inversion.z_T,
            inversion.moves,
            guidance,
            blend=None if request.mask is None else KeepSource(inversion.latents[1:], request.mask),
            callbacks=request.callbacks,
        )
        assert request.image is not None
        return Edit(
            model.decode(edited),
            request.image,
            reconstruction=model.decode(reconstruction),
            mask=mask_array(request.mask),
            inversion=inversion,
        )
