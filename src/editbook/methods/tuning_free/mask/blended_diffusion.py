"""Blended Diffusion: CLIP pulls the masked part of a picture towards a text, and every step blends the source back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from ....clip_guidance import ClipDistance, Warps, load_clip_distance
from ....errors import EditbookError, unknown
from ....images import fit
from ....masks import at_side, mask_array
from ....masks.place import paste
from ....model import Model
from ....pixel_diffusion import load_pixel_diffusion
from ....ranking import ranked
from ....result import Edit
from ....sampling import Move, Schedule, Step, add_noise, ancestral_sigma, clean_estimate, follow
from ...base import Card, Method, Request


@dataclass(frozen=True)
class Space:
    """Where Blended Diffusion walks: pixels, as published, or latents.

    Args:
        scheduler: Its noise schedule.
        x_0: The source there, (1, channels, h, w).
        mask: Where the edit may act there, 0 or 1, (1, 1, h, w).
        pixel_mask: The same in pixels, (1, 1, H, W).
        noise: From noisy points (n, channels, h, w) and a timestep to the noise estimate, with gradients.
        decode: From clean points to pictures (n, 3, H, W) in [-1, 1], with gradients.
    """

    scheduler: Any
    x_0: torch.Tensor
    mask: torch.Tensor
    pixel_mask: torch.Tensor
    noise: Callable[[torch.Tensor, int], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]


def as_pixels(image: Image.Image) -> torch.Tensor:
    """A picture as float32 (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


class ClipGuidance:
    """A noise estimate without a condition, and the gradient of CLIP's distance beside it.

    CLIP looks at the estimate of the clean picture, mixed with the noisy one where that is still poor (official code;
    the paper says the estimate alone), grey outside the mask, through random warps.

    Args:
        space: Where to walk.
        clip: Measures the distance.
        text: From `ClipDistance.embed`.
        scale: lambda, of CLIP's distance.
        range_scale: Of the mean square by which the estimate leaves [-1, 1].
        background_scale: Of the mean squared difference from the source outside the mask.
        views: How many warped views, the first of them plain.
        generators: Of the warps, one for each row, so that a row does not depend on its neighbours.
        shift_noise: Guide the noise estimate, as DDIM needs it; else only remember the gradient.
    """

    def __init__(
        self,
        space: Space,
        clip: ClipDistance,
        text: torch.Tensor,
        *,
        scale: float,
        range_scale: float = 50.0,
        background_scale: float = 0.0,
        views: int = 8,
        generators: Iterable[torch.Generator],
        shift_noise: bool = False,
    ) -> None:
        self.space, self.clip, self.text, self.warps = space, clip, text, Warps()
        self.scale, self.range_scale, self.background_scale = scale, range_scale, background_scale
        self.views, self.generators, self.shift_noise = views, list(generators), shift_noise
        self.alphas = space.scheduler.alphas_cumprod.double().tolist()
        self.gradient = torch.zeros(())
        """-dL/dx_t of the last step, shaped like x_t."""
        self.distances = torch.zeros(())
        """CLIP's distance of each row at the last step, mean over the views, (n,)."""
        self.seen = torch.zeros(())
        """What CLIP saw at the last step, (views, n, 3, s, s) in [-1, 1]."""

    def __call__(self, model: Model, z_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        """The noise estimate; afterwards `gradient` holds the way towards the text."""
        alpha = self.alphas[t]
        with torch.enable_grad():
            x = z_t.detach().requires_grad_()
            eps = self.space.noise(x, t)
            loss = self.loss(x, eps, alpha)
            (gradient,) = torch.autograd.grad(loss, x)
        self.gradient = -gradient
        if not torch.isfinite(self.gradient).all():
            raise EditbookError(f"The gradient of CLIP's distance is not finite at timestep {t}: use float32.")
        eps = eps.detach()
        return eps - (1 - alpha) ** 0.5 * self.gradient if self.shift_noise else eps

    def loss(self, x_t: torch.Tensor, eps: torch.Tensor, alpha: float) -> torch.Tensor:
        """L, summed over the rows: none of them counts less for having neighbours."""
        x_0 = clean_estimate(x_t, eps, alpha)
        share = (1 - alpha) ** 0.5
        looked = self.space.decode(share * x_0 + (1 - share) * x_t) * self.space.pixel_mask
        small = self.clip.fit(looked)
        views = [small]
        if self.views > 1:
            drawn = [self.warps.draw(self.views - 1, generator) for generator in self.generators]
            for affine, projective in zip(*(torch.stack(maps, 1) for maps in zip(*drawn, strict=True)), strict=True):
                views.append(Warps.apply(small, affine, projective))
        self.seen = torch.stack(views).detach()
        distances = torch.stack([self.clip(view, self.text) for view in views]).mean(0)
        self.distances = distances.detach()
        picture = self.space.decode(x_0)
        beyond = (picture - picture.clamp(-1, 1)).square().mean((1, 2, 3))
        loss = self.scale * distances.sum() + self.range_scale * beyond.sum().to(distances)
        if self.background_scale:
            kept = (picture - self.space.decode(self.space.x_0)) * (1 - self.space.pixel_mask)
            loss = loss + self.background_scale * kept.square().mean((1, 2, 3)).sum().to(distances)
        return loss


class BlendNoised:
    """The end of each step: the random part of the move, and fresh noise over the source outside the mask.

    Args:
        space: Where to walk.
        guidance: Whose gradient moves the mean of a random step by sigma^2 times itself.
        generators: Of the noises, one for each row.
        timing: Which level the source is noised to: the one that the step has left ("paper"), or the one where it
            arrives ("matched").
        blending: Whether to blend at all.
    """

    def __init__(
        self,
        space: Space,
        guidance: ClipGuidance,
        generators: Iterable[torch.Generator],
        timing: str = "paper",
        blending: bool = True,
    ) -> None:
        self.space, self.guidance, self.generators = space, guidance, list(generators)
        self.timing, self.blending = timing, blending

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise, each row from its own generator."""
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(rows).to(like)

    def __call__(self, step: Step) -> torch.Tensor:
        """The points to go on with."""
        x, sigma = step.z_next, step.move.sigma
        noise, background = self.draw(x), self.draw(x)  # always both: what is blended changes no other draw
        if sigma:
            x = x + sigma**2 * self.guidance.gradient.to(x) + sigma * noise
        if not self.blending:
            return x
        if self.timing == "paper":
            if step.i == step.total - 1:
                return x  # the paper's result is the estimate of the last step, blended only as a picture
            alpha = step.move.alpha_from
        else:
            alpha = step.move.alpha_to
        return torch.where(self.space.mask > 0, x, add_noise(self.space.x_0, background, alpha))


@dataclass
class BlendedDiffusion(Method):
    """Avrahami, Lischinski and Fried 2022: an unconditional model of pixels, guided by CLIP inside a mask.

    The picture is noised part of the way. Each step back estimates the clean picture; CLIP, which sees the masked part
    alone, says in which direction it comes closer to the text; and outside the mask the source is put back, noised
    afresh to the current level, so that the next step sees one whole. Of several runs, CLIP picks the best.

    Left out: the learned variance (it is the posterior's, "fixed small"), and LPIPS beside the squared error in the
    baseline without blending. The survey speaks of a reconstruction branch: there is none, the source is noised afresh;
    and the augmentations are projective warps of the estimated picture.

    Args:
        steps: Of the whole schedule.
        guidance_scale: lambda, the weight of CLIP's distance. 1000 in the paper, for 256 pixels and ViT-B/16;
            it suits the pocket model, too (sigma^2 g is then a tenth to a fourth of a step).
        strength: How far up the picture is noised; 25 of 100 steps are skipped in the paper.
        space: "pixel", as published; or "latent", our adaptation, which is neither this method nor Blended Latent
            Diffusion: the same walk with the model's latents under the empty prompt, and gradients through the decoder.
        sampler: "ancestral", or "ddim", where the gradient changes the noise estimate.
        timing: Which level the source is noised to: the one that the step has left ("paper": its box and its code), or
            the one where it arrives ("matched").
        candidates: Runs, of which CLIP picks; the paper makes 32, its README advises 64.
        batch_size: Runs at a time; it changes no result.
        augmentations: Views that CLIP's distance is averaged over; 1 is the plain one.
        range_scale: Weight of leaving the range of pixels.
        background_scale: Weight of the squared error outside the mask; 10000 in the baseline without blending.
        blending: False leaves out the blend, not the paste.
        paste: Paste the source outside the mask into the result.
        pixel_model: For "pixel": "pocket-pixel", or see `load_pixel_diffusion`.
        clip: "pocket", or see `load_clip_distance`; "openai/clip-vit-base-patch16" in the paper.
    """

    card: ClassVar[Card] = Card(
        id="blended-diffusion",
        title="Blended Diffusion for Text-driven Editing of Natural Images",
        authors="Avrahami, Lischinski, Fried",
        year=2022,
        venue="CVPR",
        paper="2111.14818",
        branch="tuning_free/mask",
        inputs=("target prompt", "mask"),
        edit_types=("texture", "object removal", "object addition"),
    )
    steps: int = 100
    guidance_scale: float = 1000.0
    strength: float = 0.75
    space: str = "pixel"
    sampler: str = "ancestral"
    timing: str = "paper"
    candidates: int = 8
    batch_size: int = 8
    augmentations: int = 8
    range_scale: float = 50.0
    background_scale: float = 0.0
    blending: bool = True
    paste: bool = True
    pixel_model: str = "pocket-pixel"
    clip: str = "pocket"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "space": ("pixel", "latent"),
            "sampler": ("ancestral", "ddim"),
            "timing": ("paper", "matched"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(f"{name} of blended-diffusion", getattr(self, name), known)
        for name in ("candidates", "batch_size", "augmentations"):
            if getattr(self, name) < 1:
                raise EditbookError(f"{name} of blended-diffusion must be at least 1, got {getattr(self, name)!r}.")
        for name in ("range_scale", "background_scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise EditbookError(f"{name} must be a finite number of at least 0, got {getattr(self, name)!r}.")

    def walk_in(self, model: Model, request: Request) -> tuple[Space, Image.Image]:
        """The space to walk in, and the source at its size."""
        assert request.image is not None
        assert request.pixel_mask is not None
        open_ = (request.pixel_mask > 0).astype(np.float32)
        # The loss is computed in float32 at least: in half precision its gradient overflows.
        dtype = torch.promote_types(model.dtype, torch.float32)
        if self.space == "pixel":
            pixels = load_pixel_diffusion(self.pixel_model, device=str(model.device), dtype=dtype)
            source = fit(request.image, pixels.image_size)
            mask = torch.from_numpy(at_side(open_, pixels.image_size))[None, None].to(model.device, dtype)

            def pixel_noise(x_t: torch.Tensor, t: int) -> torch.Tensor:
                model.nfe += len(x_t)
                return pixels.noise(x_t, t)

            x_0 = as_pixels(source).to(mask)
            return Space(pixels.scheduler, x_0, mask, mask, pixel_noise, lambda x: x), source
        if model.dtype != dtype:
            raise EditbookError(
                "blended-diffusion in latents needs gradients through the decoder, which fails in "
                f"{str(model.dtype).removeprefix('torch.')}: load the model with dtype='float32'."
            )
        null = model.embed("")
        mask = torch.from_numpy(open_)[None, None].to(model.device, dtype)

        def noise(z_t: torch.Tensor, t: int) -> torch.Tensor:
            return model.noise(z_t, t, null.expand(len(z_t), -1, -1))

        def decode(z_0: torch.Tensor) -> torch.Tensor:
            return model.vae.decode(z_0 / model.vae.config.scaling_factor).sample

        z_0 = model.encode(request.image)
        cells = torch.from_numpy(at_side(open_, z_0.shape[-1]))[None, None].to(z_0)
        return Space(model.scheduler, z_0, cells, mask, noise, decode), request.image

    def path(self, space: Space) -> list[Move]:
        """The moves of one run; the noise of a random step is the blend's to draw, for each row its own."""
        moves = Schedule(space.scheduler, self.steps).sampling(self.strength)
        if not moves:
            raise EditbookError(f"strength {self.strength} of {self.steps} steps leaves no step to take; raise either.")
        if self.sampler == "ddim":
            return moves
        return [Move(m.t, *m.levels, ancestral_sigma(*m.levels)) for m in moves]

    def runs(self, model: Model, request: Request) -> list[tuple[float, Image.Image]]:
        """Every candidate with CLIP's distance of its masked part, the best first."""
        if request.image is None or request.pixel_mask is None:
            raise EditbookError("blended-diffusion needs a picture and a mask.")
        clip = load_clip_distance(self.clip, str(model.device))
        text = clip.embed(request.target)
        space, source = self.walk_in(model, request)
        path = self.path(space)
        fine = space.pixel_mask[0, 0].float().cpu().numpy()
        made: list[Image.Image] = []
        for first in range(0, self.candidates, self.batch_size):
            seeds = [request.seed + k for k in range(first, min(first + self.batch_size, self.candidates))]
            noises, warps = ([torch.Generator().manual_seed(seed) for seed in seeds] for _ in range(2))
            guidance = ClipGuidance(
                space,
                clip,
                text,
                scale=self.guidance_scale,
                range_scale=self.range_scale,
                background_scale=self.background_scale,
                views=self.augmentations,
                generators=warps,
                shift_noise=self.sampler == "ddim",
            )
            blend = BlendNoised(space, guidance, noises, self.timing, self.blending)
            start = space.x_0.expand(len(seeds), -1, -1, -1)
            x_T = add_noise(start, blend.draw(start), path[0].alpha_from)
            x = follow(model, x_T, path, guidance, blend=blend, callbacks=request.callbacks)
            with torch.no_grad():
                arrays = ((space.decode(x) + 1) * 127.5).round().clamp(0, 255).byte()
            made += [Image.fromarray(array) for array in arrays.permute(0, 2, 3, 1).cpu().numpy()]
        order = ranked(made, request.target, clip, fine)
        return [(distance, paste(source, made[k], fine) if self.paste else made[k]) for distance, k in order]

    def __call__(self, model: Model, request: Request) -> Edit:
        """Make the candidates, and return the one that CLIP likes best."""
        best = self.runs(model, request)[0][1]
        assert request.image is not None
        return Edit(best, request.image, mask=mask_array(request.mask))
