"""An unconditional diffusion model of pixels, for methods that work without an autoencoder."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from .errors import EditbookError
from .model import SHIPPED, verify


class PixelDiffusion:
    """A diffusers `UNet2DModel` with a scheduler, as one function: the noise in pictures (n, 3, H, W) in [-1, 1].

    A U-Net with 3 k^2 channels reads the picture in patches of k x k pixels, each a vector of its own (pixel
    unshuffling). No value is lost, unlike in an autoencoder: it is a diffusion model of pixels whose first and last
    layer have a stride. The pocket model reads 4 x 4 patches, because a U-Net at 64 x 64 cells is too slow for a
    laptop's processor; a plain checkpoint, such as google/ddpm-ema-church-256, has k = 1.

    Args:
        unet: The network.
        scheduler: Has its schedule and says what it predicts: "epsilon", "v_prediction" or "sample".
        name: For messages.
    """

    def __init__(self, unet: Any, scheduler: Any, name: str = "") -> None:
        channels = int(unet.config.in_channels)
        self.patch = round((channels / 3) ** 0.5)
        if 3 * self.patch**2 != channels or unet.config.out_channels != channels:
            raise EditbookError(
                f"{name or 'This U-Net'} reads {channels} channels and gives {unet.config.out_channels}; a model of "
                "pixels has 3 k^2 of both (of a model that also learns its variance only the mean is understood)."
            )
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise EditbookError(f"Cannot use a model that predicts {scheduler.config.prediction_type!r}.")
        self.unet = unet.eval().requires_grad_(False)
        self.scheduler = scheduler
        self.name = name

    @property
    def image_size(self) -> int:
        """Side of the pictures that the model was trained on, in pixels."""
        return int(self.unet.config.sample_size) * self.patch

    def noise(self, x_t: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """The noise estimate eps(x_t, t), shaped like x_t.

        Args:
            x_t: Noisy pictures (n, 3, height, width).
            t: Training timestep, or one for each picture, an integer tensor (n,).

        Raises:
            EditbookError: These are no pictures for this model, or the estimate is not finite.
        """
        eps = self._estimates(x_t, t)[0]
        if not torch.isfinite(eps).all():
            raise EditbookError(f"The noise estimate at timestep {t} is not finite: lower the guidance.")
        return eps

    def clean(self, x_t: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """The clean picture that the noise estimate implies, shaped like x_t; arguments as for `noise`."""
        return self._estimates(x_t, t)[1]

    def _estimates(self, x_t: torch.Tensor, t: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if x_t.ndim != 4 or x_t.shape[1] != 3 or x_t.shape[-1] % self.patch or x_t.shape[-2] % self.patch:
            raise EditbookError(
                f"Pictures have the shape (n, 3, height, width), in multiples of {self.patch}, got {tuple(x_t.shape)}."
            )
        out = functional.pixel_shuffle(self.unet(functional.pixel_unshuffle(x_t, self.patch), t).sample, self.patch)
        out = out.to(x_t)
        alpha = self.scheduler.alphas_cumprod.to(x_t)[t].view(-1, 1, 1, 1)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        if self.scheduler.config.prediction_type == "epsilon":
            return out, (x_t - spread * out) / signal
        if self.scheduler.config.prediction_type == "v_prediction":
            return signal * out + spread * x_t, signal * x_t - spread * out
        return (x_t - signal * out) / spread, out


@cache
def load_pixel_diffusion(
    name: str = "pocket-pixel", *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> PixelDiffusion:
    """The shipped model of pixels, or one in diffusers layout (`unet`, `scheduler`, or a U-Net alone).

    Args:
        name: "pocket-pixel", a folder, or a hub id such as "google/ddpm-ema-church-256".
        device: Where it computes.
        dtype: The number format of its weights.

    Raises:
        EditbookError: Nothing is found under that name, or a file differs from its SHA-256.
    """
    from diffusers import DDIMScheduler, UNet2DModel

    folder = SHIPPED / "pixel" if name == "pocket-pixel" else Path(name)
    if name == "pocket-pixel" and not (folder / "SHA256SUMS").is_file():
        raise EditbookError(f"The shipped weights are missing from {folder}. Reinstall editbook, or train them.")
    if (folder / "SHA256SUMS").is_file():
        verify(folder)
    try:
        # The first published checkpoints have everything in one folder.
        flat = folder.is_dir() and not (folder / "unet").is_dir()
        source = str(folder) if folder.is_dir() else name
        unet = UNet2DModel.from_pretrained(source, subfolder=None if flat else "unet", torch_dtype=dtype)
        scheduler = DDIMScheduler.from_pretrained(source, subfolder=None if flat else "scheduler")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EditbookError(f"Could not load the model of pixels {name!r}: {reason}") from error
    return PixelDiffusion(unet.to(device), scheduler, name)
