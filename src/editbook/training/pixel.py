"""An unconditional diffusion model of the world's pixels, for Blended Diffusion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image

from ..pixel_diffusion import PixelDiffusion
from ..sampling import Schedule, add_noise, follow
from .export import write_sums
from .loop import Plan, Recipe, compiled, train
from .start import record_of, summed
from .stream import SceneStream
from .unet import contact_sheet
from .vae import held_out_pictures

PATCH = 4
"""Pixels on a patch's side; see `PixelDiffusion`."""


def build_pixel_unet(widths: tuple[int, ...] = (64, 96)) -> UNet2DModel:
    """Levels of 16, 8, ... patches, self-attention at all but the finest."""
    coarse = len(widths) - 1
    return UNet2DModel(
        sample_size=64 // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * coarse),
        up_block_types=(*("AttnUpBlock2D",) * coarse, "UpBlock2D"),
        attention_head_dim=32,
    )


def build_pixel_scheduler(prediction_type: str = "sample") -> DDIMScheduler:
    """The linear schedule of guided diffusion (Ho et al. 2020; Dhariwal and Nichol 2021)."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="leading",
    )


@torch.no_grad()
def warm_start(unet: UNet2DModel, other: UNet2DConditionModel) -> int:
    """Take over the residual blocks and the time embedding of a latent U-Net; returns how many numbers fitted.

    Its blocks are met from both ends: the finest level is the first on the way down and the last on the way up.
    """
    source = other.state_dict()
    extra = len(other.config.block_out_channels) - len(unet.config.block_out_channels)
    copied = 0
    for name, weight in unet.state_dict().items():
        parts = name.split(".")
        if parts[0] in ("conv_in", "conv_out"):
            continue
        if parts[0] == "up_blocks":
            parts[1] = str(int(parts[1]) + extra)
        match = source.get(".".join(parts))
        if match is not None and match.shape == weight.shape:
            weight.copy_(match)
            copied += weight.numel()
    return copied


def picture_weight(alpha: torch.Tensor) -> torch.Tensor:
    """Weight of the clean picture's squared error: SNR + 1, at most 5, as in `unet.noise_weight`."""
    return (1 / (1 - alpha)).clamp(max=5)


@torch.no_grad()
def denoising_loss(pixels: PixelDiffusion, pictures: torch.Tensor) -> float:
    """The training loss on pictures (n, 3, 64, 64) in [-1, 1], at ten noise levels with fixed noise."""
    alphas = pixels.scheduler.alphas_cumprod
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0)).to(pictures)
    losses = []
    for t in range(50, 1000, 100):
        alpha = float(alphas[t])
        x_t = add_noise(pictures, noise, alpha)
        error = pixels.clean(x_t, t) - pictures
        losses.append(float(picture_weight(alphas[t]) * error.square().mean()))
    return float(np.mean(losses))


def as_pictures(x: torch.Tensor) -> list[Image.Image]:
    """Pictures of a batch (n, 3, H, W) in [-1, 1]."""
    array = ((x.float() + 1) * 127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(picture) for picture in array.permute(0, 2, 3, 1).cpu().numpy()]


class _PixelGuidance:
    """The noise estimate of a model of pixels, for `follow`."""

    def __init__(self, pixels: PixelDiffusion) -> None:
        self.pixels = pixels

    def __call__(self, model: Any, x_t: torch.Tensor, t: int, i: int) -> torch.Tensor:
        return self.pixels.noise(x_t, t)


def sample_pixels(pixels: PixelDiffusion, count: int, *, steps: int = 50, seed: int = 0) -> list[Image.Image]:
    """Pictures from noise, without any condition."""
    noise = torch.randn(count, 3, *(pixels.image_size,) * 2, generator=torch.Generator().manual_seed(seed))
    path = Schedule(pixels.scheduler, steps).sampling()
    return as_pictures(follow(None, noise.to(pixels.unet.device), path, _PixelGuidance(pixels)))  # type: ignore[arg-type]


def train_pixel(plan: Plan, *, batch_size: int = 32, prediction_type: str = "sample") -> dict[str, Any]:
    """Train the U-Net on pictures of the world; saves `run/pixel`, a folder to ship.

    It begins as the latent U-Net of `run/start` where there is one, see `warm_start`.
    """
    torch.manual_seed(31)
    unet, scheduler = build_pixel_unet(), build_pixel_scheduler(prediction_type)
    before = record_of(plan.run / "pixel_start")
    if (plan.run / "pixel_start").is_dir():  # a former model to go on from, see `start.adopt`
        unet = UNet2DModel.from_pretrained(plan.run / "pixel_start" / "unet")
    elif (plan.run / "start").is_dir():
        warm_start(unet, UNet2DConditionModel.from_pretrained(plan.run / "start"))
    pixels = PixelDiffusion(unet, scheduler, "pocket-pixel")
    unet.requires_grad_(True).to(plan.device)
    if plan.device == "cpu":
        for module in unet.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())  # see `train_unet`
    # Other scenes than those that a former run saw.
    stream = SceneStream(32 + before["samples"], batch_size, reuse=8, pool=8192, workers=plan.workers)
    alphas = scheduler.alphas_cumprod.to(plan.device)

    def objective(x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha = alphas[t].view(-1, 1, 1, 1)
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise
        return (picture_weight(alpha) * (pixels.clean(x_t, t) - x_0).square()).mean()

    fast = compiled(objective, plan)

    def loss() -> torch.Tensor:
        stream.advance()
        x_0 = stream.pictures(stream.choose()).to(plan.device)
        t = torch.randint(1, len(alphas), (batch_size,), device=plan.device)
        return fast(x_0, torch.randn_like(x_0), t)

    shown = held_out_pictures(64)

    def show(folder: Path) -> None:
        print(f"  held-out loss {denoising_loss(pixels, shown.to(plan.device)):.4f}", flush=True)
        contact_sheet(sample_pixels(pixels, 16, steps=25), [""] * 16, columns=8, side=128).save(folder / "samples.png")

    record = train(Recipe("pixel", {"unet": unet}, stream, loss, 1e-3, show=show), plan)
    record = summed(record, before)
    unet.to("cpu")
    save_pixel(pixels, record, plan.run / "pixel")
    return record


def save_pixel(pixels: PixelDiffusion, record: dict[str, Any], folder: Path) -> None:
    """Write U-Net and scheduler as diffusers does, in float16, what was measured, and the checksums."""
    record["held_out_loss"] = round(denoising_loss(pixels, held_out_pictures(256)), 4)
    pixels.unet.to(torch.float16).save_pretrained(folder / "unet")
    pixels.unet.to(torch.float32)
    pixels.scheduler.save_pretrained(folder / "scheduler")
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    count = sum(parameter.numel() for parameter in pixels.unet.parameters())
    card = _CARD.format(
        **{"device": "cpu", **record},
        count=count,
        minutes=record["seconds"] / 60,
        kind=pixels.scheduler.config.prediction_type,
    )
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    write_sums(folder)


_CARD = """# The pocket model of pixels: card

An unconditional diffusion model of 64 x 64 pictures of the pocket world, for Blended Diffusion:
`editbook.pixel_diffusion.load_pixel_diffusion()`. `unet` and `scheduler` are plain diffusers folders, float16.

**Network.** `UNet2DModel`, {count:,} parameters. A U-Net on 64 x 64 cells is too slow for a laptop's processor, so it
reads patches of 4 x 4 pixels, 48 numbers each, on a grid of 16 x 16. No number is lost; there is no autoencoder.

**Recipe.** `editbook train pixel`: {samples:,} samples in {minutes:.0f} minutes on {device}. Residual blocks begin as
the latent U-Net's. Linear betas 1e-4 to 0.02. It predicts the clean picture ("{kind}"): with 64 channels for 48 numbers
that learns fastest. Error of the clean picture, weighted with SNR + 1, at most 5: {held_out_loss} on held-out scenes.

**Limits.** A short training of a small network: objects are blobs of the right colours with few details, and edges of
patches show. It knows nothing outside the pocket world.

**Licence.** Weights MIT.
"""
