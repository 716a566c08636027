"""InstructPix2Pix: a model that sees the source picture and was trained to do what an instruction says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ....errors import EditbookError
from ....guidance import InstructGuidance
from ....masks import KeepSource, mask_array, noised_path
from ....model import Model
from ....result import Edit
from ....sampling import Schedule, follow
from ...base import Card, Method, Request


def check_image_scale(value: float) -> None:
    """Raise an `EditbookError` unless this can be s_I."""
    if not (math.isfinite(value) and value >= 0):
        raise EditbookError(f"image_guidance_scale must be a finite number of at least 0, got {value!r}; 1.5 is usual.")


def instruct_guidance(model: Model, request: Request, image_scale: float, text_scale: float) -> InstructGuidance:
    """The guidance of a request with a picture and an instruction.

    Raises:
        EditbookError: There is no picture.
    """
    if request.image is None:
        raise EditbookError("An instruction changes a picture: give one.")
    return InstructGuidance(
        model.condition(request.image), model.embed(request.instruction), model.embed(""), image_scale, text_scale
    )


@dataclass
class InstructPix2Pix(Method):
    """Brooks, Holynski and Efros 2023: one walk from pure noise, guided by the picture and by the instruction.

    There is no inversion and no source prompt: the U-Net reads the source's latent in four further input channels. The
    paper samples with 100 ancestral Euler steps; here it is DDIM, as everywhere in this library. A mask is not the
    paper's: outside it the source's latent, noised to each step's level, is pasted.

    Args:
        guidance_scale: s_T, how strongly the instruction is followed. The pocket model likes 4.
        image_guidance_scale: s_I, how strongly the source is kept; the paper explores 1 to 2.2, the
            pocket model likes 3.
    """

    card: ClassVar[Card] = Card(
        id="instruct-pix2pix",
        title="InstructPix2Pix: Learning to Follow Image Editing Instructions",
        authors="Brooks, Holynski, Efros",
        year=2023,
        venue="CVPR",
        paper="2211.09800",
        branch="trained/general",
        inputs=("instruction", "mask (optional)"),
        edit_types=("texture", "shape", "style", "non-rigid", "object addition"),
    )
    takes_image: ClassVar[bool] = True
    image_guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_image_scale(self.image_guidance_scale)

    def __call__(self, model: Model, request: Request) -> Edit:
        """Sample under both guidances."""
        guidance = instruct_guidance(model, request, self.image_guidance_scale, self.guidance_scale)
        assert request.image is not None
        path = Schedule(model.scheduler, self.steps).sampling()
        noise = model.random_latent(request.seed)
        keep = None
        if request.mask is not None:
            source = noised_path(model.encode(request.image), [noise] * len(path), path)
            keep = KeepSource(source, request.mask)
        edited = follow(model, noise, path, guidance, blend=keep, callbacks=request.callbacks)
        return Edit(model.decode(edited), request.image, mask=mask_array(request.mask))
