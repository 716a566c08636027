"""Contrastive Denoising Score: DDS, and each patch shall stay most like the source's patch there (Nam et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from ....attention import Control, Site
from ....model import Model
from ....options import option
from ....score import Draw, ScoreGradient
from ...base import Card, Request
from .delta_denoising_score import DeltaGradient, ScoreMethod

FACTOR = 2000
"""The official factor on the DDS loss, against which the contrastive weight is measured."""
FEWEST = 16
"""Patches that a contrast needs; a 4 x 4 map pooled to four patches says little (ours, for small latents)."""
Outputs = dict[Site, torch.Tensor]


class PatchFeatures(Control):
    """Keeps what the decoder's self-attention layers put out, behind their output projection, of the first row.

    These are the features, not attention maps, queries or keys.
    """

    reads_probabilities: ClassVar[bool] = False
    reads_outputs: ClassVar[bool] = True

    def __init__(self) -> None:
        self.outputs: Outputs = {}
        """Layer -> (pixels, channels)."""

    def wants(self, site: Site) -> bool:
        """Self-attention of the decoder: nine layers in Stable Diffusion."""
        return site.kind == "self" and site.side == "up"

    def observe(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        """Keep it, with its graph if there is one; change nothing."""
        self.outputs[site] = output[0]
        return output


def patches(features: torch.Tensor, site: Site, size: int) -> torch.Tensor:
    """Features of a layer (pixels, channels), averaged over squares of `size` cells: (patches, channels)."""
    if size == 1:
        return features
    grid = features.T.unflatten(1, (site.height, site.width))
    return functional.avg_pool2d(grid[None], size)[0].flatten(1).T


def info_nce(source: torch.Tensor, edited: torch.Tensor, temperature: float) -> torch.Tensor:
    """How hard it is to find each of the source's patches again among the edit's, by cosine: (patches,), 0 is easy.

    The right answer is the patch at the same place (Nam et al. 2024; CUT, Park et al. 2020).

    Args:
        source: (patches, channels).
        edited: The same patches of the edit.
        temperature: tau.
    """
    single = torch.promote_types(source.dtype, torch.float32)
    query, key = (functional.normalize(part.to(single), dim=-1) for part in (source, edited))
    return -(query @ key.T / temperature).log_softmax(-1).diagonal()


class ContrastiveGradient:
    """The DDS gradient, and that of the contrastive loss, which goes through the U-Net.

    Args:
        delta: DDS.
        condition: Embedding of the target prompt, (1, tokens, width).
        weight: Of the sum of the losses, as the official code counts it: against 2000 times the DDS loss.
        temperature: See `info_nce`.
        sizes: Sides of the patches, in cells of a layer's map.
        positions: Patches compared at most, drawn anew each time, the same of both pictures.
        seed: Of that draw; apart from the draw of levels and noises, so that weight 0 is DDS.
    """

    def __init__(
        self,
        delta: DeltaGradient,
        condition: torch.Tensor,
        *,
        weight: float = 3.0,
        temperature: float = 0.07,
        sizes: tuple[int, ...] = (1, 2),
        positions: int = 256,
        seed: int = 0,
    ) -> None:
        self.delta, self.condition, self.weight, self.temperature = delta, condition, weight, temperature
        self.sizes, self.positions, self.generator = sizes, positions, torch.Generator().manual_seed(seed)

    def parts(self, model: Model, z: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """DDS's g, the weighted contrastive gradient, and eps; all shaped like z."""
        kept, size = PatchFeatures(), (z.shape[-2], z.shape[-1])
        with kept.attached(model.unet, size, 2):  # the conditional rows: source, target
            g, eps = self.delta(model, z, draw)
        source, kept.outputs = kept.outputs, {}
        with torch.enable_grad(), kept.attached(model.unet, size, 1):
            leaf = z.detach().requires_grad_()
            # Guidance needs no second row here: only the conditional features are compared.
            model.noise(draw(leaf).to(model.dtype), draw.t, self.condition)
            (pull,) = torch.autograd.grad(self.contrast(source, kept.outputs), leaf)
        # DDS's loss is 2000 times a mean over cells; written as g, a weight is divided by 2000 and times the cells.
        return g, self.weight * size[0] * size[1] / FACTOR * pull, eps

    def contrast(self, source: Mapping[Site, torch.Tensor], edited: Mapping[Site, torch.Tensor]) -> torch.Tensor:
        """The sum over layers and patch sizes of the mean `info_nce`, a number."""
        total = torch.zeros((), device=self.condition.device)
        for site, features in edited.items():
            for size in self.sizes:
                count = (site.height // size) * (site.width // size)
                if count >= FEWEST:
                    chosen = torch.randperm(count, generator=self.generator)[: self.positions].to(features.device)
                    there, here = (patches(part, site, size)[chosen] for part in (source[site], features))
                    total = total + info_nce(there, here, self.temperature).mean()
        return total

    def __call__(self, model: Model, z: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """(g, eps), see `ScoreGradient`."""
        if self.weight == 0:
            return self.delta(model, z, draw)
        g, pull, eps = self.parts(model, z, draw)
        return g + pull, eps


@dataclass
class ContrastiveDenoisingScore(ScoreMethod):
    """Nam, Kwon, Park and Ye 2024: DDS with a leash.

    DDS keeps the picture through a subtraction alone, and shapes may wander. While it scores source and edit, the
    U-Net computes features of both anyway. The edit's patch at a place shall look, in them, more like the source's
    patch there than like any other: a contrastive loss, which keeps where things are and leaves open how they look.

    Even with equal prompts the latent moves: neighbouring patches are alike, so the loss is not 0 for the source itself
    and has a gradient there. The official command line reads `--w_cut` and does not pass it on; its 3.0 always acts.

    Args:
        contrastive_weight: Of the contrastive loss; 0 is DDS.
        temperature: tau of the contrast.
        positions: Patches of each layer that are compared at most; a smaller map gives all of its own.
    """

    card: ClassVar[Card] = Card(
        id="contrastive-denoising-score",
        title="Contrastive Denoising Score for Text-guided Latent Diffusion Image Editing",
        authors="Nam, Kwon, Park, Ye",
        year=2024,
        venue="CVPR",
        paper="2311.18608",
        branch="tuning_free/attention",
        inputs=("source prompt", "target prompt"),
        edit_types=("texture", "object addition"),
    )
    contrastive_weight: float = option(3.0, low=0)
    temperature: float = option(0.07, above=0)
    positions: int = option(256, low=2, hint="there must be one to find and one to miss")

    def gradient(self, model: Model, request: Request, z_s: torch.Tensor) -> ScoreGradient:
        """DDS and the contrast."""
        return ContrastiveGradient(
            DeltaGradient(model, z_s, request.source, request.target, self.guidance_scale),
            model.embed(request.target),
            weight=self.contrastive_weight,
            temperature=self.temperature,
            positions=self.positions,
            seed=request.seed,
        )
