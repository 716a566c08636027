"""Watch Your Steps: InstructPix2Pix, kept to where the instruction changes its noise estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from ....errors import unknown
from ....masks import KeepSource, MaskShape, RelevanceMask, Subject, mask_array, noised_path
from ....masks.place import paste
from ....model import Model
from ....result import Edit
from ....sampling import Schedule, add_noise, follow
from ...base import Card, Method, Request
from ...trained.general.instruct_pix2pix import check_image_scale, instruct_guidance


@dataclass
class WatchYourSteps(Method):
    """Mirzaei, Aumentado-Armstrong, Brubaker, Kelly, Levinshtein, Derpanis and Gilitschenski 2023.

    1. Relevance: at one high noise level, where the estimates with and without the instruction differ (both see the
       picture; `masks.RelevanceMask`). Cut above a threshold, on the latent's grid and, enlarged, on the pixels'.
       A mask that is given takes its place.
    2. Sampling: InstructPix2Pix, from the source's latent noised to the first step's level. After each step, the
       latent outside the mask becomes the source's, noised with that same noise.
    3. The decoded picture is pasted into the source through the mask in pixels, so what is outside stays exactly.

    It changes a trained model's sampling and trains nothing; hence the survey's place among tuning-free methods. The
    survey says that the "noise" is blended; in the official code it is the latents, and then the pixels. That code
    pastes the level that the step has just left (`timing="official"`), one too noisy, the last one included, and noises
    a posterior sample of the source where this noises its mean.

    Args:
        steps: The class of the official code takes 100, its inner function 20.
        guidance_scale: s_T; its example takes 8.
        image_guidance_scale: s_I; 1, below InstructPix2Pix's usual 1.5, as the mask keeps the rest anyway.
        relevance_threshold: Of the relevance map, in [0, 1); what is above may change.
        relevance_strength: Noise level of the map, as a fraction of the training timesteps.
        maps: Noises that the map averages; 1 in the paper.
        timing: Which level of the source is pasted after a step: the one where it arrives ("matched"), or the one that
            it left ("official").
    """

    card: ClassVar[Card] = Card(
        id="watch-your-steps",
        title="Watch Your Steps: Local Image and Scene Editing by Text Instructions",
        authors="Mirzaei, Aumentado-Armstrong, Brubaker, Kelly, Levinshtein, Derpanis, Gilitschenski",
        year=2023,
        venue="arXiv",
        paper="2308.08947",
        branch="tuning_free/mask",
        inputs=("instruction", "mask (optional)"),
        edit_types=("texture", "style", "object addition"),
    )
    takes_image: ClassVar[bool] = True
    steps: int = 100
    image_guidance_scale: float = 1.0
    relevance_threshold: float = 0.5
    relevance_strength: float = 0.8
    maps: int = 1
    timing: str = "matched"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_image_scale(self.image_guidance_scale)
        if self.timing not in ("matched", "official"):
            raise unknown("timing of watch-your-steps", self.timing, ("matched", "official"))
        self.finder = RelevanceMask(self.relevance_threshold, self.maps, self.relevance_strength)
        self.shape = MaskShape(self.relevance_threshold)

    def masks(self, model: Model, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """Step 1, on the grids of the latent and of the pixels, float32 of 0 and 1; empty without an instruction."""
        assert request.image is not None
        subject = Subject(request.image, instruction=request.instruction, seed=request.seed)
        relevance = self.finder(model, subject, "")
        enlarged = functional.interpolate(
            torch.from_numpy(relevance)[None, None], size=(model.image_size,) * 2, mode="bilinear", align_corners=False
        )
        return self.shape(relevance), self.shape(enlarged[0, 0].numpy())

    def __call__(self, model: Model, request: Request) -> Edit:
        """Find the mask, sample inside it, paste."""
        guidance = instruct_guidance(model, request, self.image_guidance_scale, self.guidance_scale)
        image = request.image
        assert image is not None
        if request.mask is None:
            coarse, fine = self.masks(model, request)
            mask = torch.from_numpy(coarse)[None, None].to(guidance.image)
        else:
            assert request.pixel_mask is not None
            mask, fine = request.mask, request.pixel_mask
        path = Schedule(model.scheduler, self.steps).sampling()
        z_0, noise = model.encode(image), model.random_latent(request.seed)
        if self.timing == "official":
            source = [add_noise(z_0, noise, move.alpha_from) for move in path]
        else:
            source = noised_path(z_0, [noise] * len(path), path)
        edited = follow(
            model,
            add_noise(z_0, noise, path[0].alpha_from),
            path,
            guidance,
            blend=KeepSource(source, mask),
            callbacks=request.callbacks,
        )
        return Edit(
            paste(image, model.decode(edited), fine),
            image,
            reconstruction=model.decode(z_0),
            mask=mask_array(mask),
        )
