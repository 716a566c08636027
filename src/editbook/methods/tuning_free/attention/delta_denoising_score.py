"""Delta Denoising Score: the source's own score is subtracted, and only the edit is left (Hertz et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....errors import EditbookError
from ....masks import mask_array
from ....model import Model
from ....options import option
from ....result import Edit
from ....score import Draw, ScoreGradient, descend
from ...base import Card, Method, Request, guided


class DistilledGradient:
    """SDS: the guided estimate under the target prompt, less the noise that was really added.

    Its mean over levels and noises is no zero even for a picture that fits the prompt. That bias blurs and saturates.

    Args:
        model: Embeds the prompt.
        target: The prompt.
        scale: w of guidance.
    """

    def __init__(self, model: Model, target: str, scale: float) -> None:
        self.guidance = guided(model, [target], scale)

    def __call__(self, model: Model, z: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """(g, eps), see `ScoreGradient`."""
        eps = self.guidance(model, draw(z).to(model.dtype), draw.t, draw.i).to(z)
        return eps - draw.noise, eps


class DeltaGradient:
    """DDS: the same for the target, less the same for the source picture with its own prompt.

    Level, noise and w are shared, so the added noise cancels, and with it what the two scores have in common.

    Args:
        model: Embeds the prompts.
        z_s: The source's latent, (1, channels, height, width).
        source: What the source shows.
        target: What the edit shall show.
        scale: w of guidance.
    """

    def __init__(self, model: Model, z_s: torch.Tensor, source: str, target: str, scale: float) -> None:
        self.z_s, self.guidance = z_s, guided(model, [source, target], scale)

    def __call__(self, model: Model, z: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """(g, eps), see `ScoreGradient`."""
        noised = draw(torch.cat([self.z_s.to(z), z])).to(model.dtype)
        eps_source, eps = self.guidance(model, noised, draw.t, draw.i).to(z).chunk(2)
        return eps - eps_source, eps


@dataclass
class ScoreMethod(Method):
    """What editors by score distillation share. Nothing is inverted, and no weight is tuned: only the latent moves.

    Args:
        steps: Updates of the latent (not DDIM steps). There is no rule when to stop: more of them edit more.
        step_size: What a unit of g moves an element of the latent. The default is the official one for Stable
            Diffusion, 0.1 x 2000 / 64^2: the learning rate times the factor on a loss that is a mean over the latent's
            cells. The product is what a cell feels, so it is kept for latents of other sizes.
        t_low: Smallest timestep drawn, as a fraction of all.
        t_high: Largest, likewise.

    With a mask, the latent moves inside it only.
    """

    steps: int = option(200, low=1, what="a number of updates")
    step_size: float = option(0.1 * 2000 / 64**2, low=0)
    t_low: float = 0.05
    t_high: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t_low < self.t_high <= 1:
            raise EditbookError(
                f"t_low and t_high are fractions with 0 <= t_low < t_high <= 1, got {self.t_low} and {self.t_high}."
            )

    def gradient(self, model: Model, request: Request, z_s: torch.Tensor) -> ScoreGradient:
        """Which way the latent goes."""
        raise NotImplementedError

    def __call__(self, model: Model, request: Request) -> Edit:
        """Descend from the picture's own latent. The reconstruction is the autoencoder's."""
        if request.image is None:
            raise EditbookError(f"{self.card.id} needs a picture to start from.")
        z_s = model.encode(request.image)
        z = descend(
            model,
            z_s,
            self.gradient(model, request, z_s),
            steps=self.steps,
            step_size=self.step_size,
            t_range=(self.t_low, self.t_high),
            seed=request.seed,
            mask=request.mask,
            callbacks=request.callbacks,
        )
        reconstruction, image = model.decode_batch(torch.cat([z_s, z]))
        return Edit(image, request.image, reconstruction=reconstruction, mask=mask_array(request.mask))


@dataclass
class DeltaDenoisingScore(ScoreMethod):
    """Hertz, Aberman and Cohen-Or 2023, the part of the paper that edits one picture (the official notebook).

    g = eps_w(z_t, t, C_tar) - eps_w(z_s,t, t, C_src) with one t and one noise for both. At the first update, z = z_s,
    the unconditional parts cancel, and g = w [eps(C_tar) - eps(C_src)]: a direction from text to text.

    The survey files it under "needs fine-tuning" (its latent optimisation). No weight is tuned here, only the latent,
    so by the survey's own definition it is tuning-free; its extension CDS is filed there, and so is this. The paper's
    second part, a network trained with this gradient, has no public code and is not here.

    Args:
        loss: "dds", or "sds" for what it improves on (Poole et al. 2023), which does not look at the source prompt.
    """

    card: ClassVar[Card] = Card(
        id="delta-denoising-score",
        title="Delta Denoising Score",
        authors="Hertz, Aberman, Cohen-Or",
        year=2023,
        venue="ICCV",
        paper="2304.07090",
        branch="tuning_free/attention",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "style", "non-rigid", "object addition"),
    )
    loss: str = option("dds", among=("dds", "sds"))

    def gradient(self, model: Model, request: Request, z_s: torch.Tensor) -> ScoreGradient:
        """The delta, or SDS."""
        if self.loss == "sds":
            return DistilledGradient(model, request.target, self.guidance_scale)
        return DeltaGradient(model, z_s, request.source, request.target, self.guidance_scale)
