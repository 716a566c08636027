"""Image-to-image (SDEdit): noise the picture part of the way, denoise it under the new prompt. No control at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import EditbookError
from ...masks import KeepSource, mask_array, noised_path
from ...model import Model
from ...result import Edit
from ...sampling import Schedule, add_noise, follow
from ..base import Card, Method, Request, guided


@dataclass
class ImageToImage(Method):
    """SDEdit with a latent diffusion model, as in diffusers' `StableDiffusionImg2ImgPipeline`.

    One knob trades faithfulness for change: with little noise the picture survives and so does the old object, with
    much noise both go. It is the baseline that every control has to beat.

    Args:
        strength: How far up the noise schedule to start, in (0, 1]; 1 forgets the picture almost entirely.

    With a mask, the source's latent, noised to each step's level, is pasted back outside it (as Blended Latent
    Diffusion does).
    """

    card: ClassVar[Card] = Card(
        id="img2img",
        title="SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
        authors="Meng, He, Song, Song, Wu, Zhu, Ermon",
        year=2022,
        venue="ICLR",
        paper="2108.01073",
        branch="baselines",
        inputs=("target prompt",),
        edit_types=("texture", "shape", "style"),
    )
    strength: float = 0.8

    def __call__(self, model: Model, request: Request) -> Edit:
        """Noise, then denoise."""
        if request.image is None:
            raise EditbookError("img2img needs a picture to start from.")
        path = Schedule(model.scheduler, self.steps).sampling(self.strength)
        if not path:
            raise EditbookError(f"strength {self.strength} of {self.steps} steps leaves no step to take; raise either.")
        z_0 = model.encode(request.image)
        noise = model.random_latent(request.seed)
        keep = None
        if request.mask is not None:
            keep = KeepSource(noised_path(z_0, [noise] * len(path), path), request.mask)
        edited = follow(
            model,
            add_noise(z_0, noise, path[0].alpha_from),
            path,
            guided(model, [request.target], self.guidance_scale),
            blend=keep,
            callbacks=request.callbacks,
        )
        return Edit(
            model.decode(edited),
            request.image,
            reconstruction=model.decode(z_0),
            mask=mask_array(request.mask),
        )
