"""One model object for Stable Diffusion 1.x and the pocket model: plain library parts and four verbs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .deltas import apply, widen_input
from .errors import EditbookError, unknown
from .images import as_image, fit

SHIPPED = Path(__file__).parent / "weights"
_SHIPPED_FOLDERS = {"pocket": "pocket", "pocket-instruct-pix2pix": "instruct-pix2pix"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Model:
    """A latent diffusion model that predicts noise, and everything around it.

    The parts are ordinary diffusers and transformers objects: `unet`, `vae`, `text_encoder`, `tokenizer`,
    `scheduler`. `nfe` counts U-Net evaluations, one for each row of a batch.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        name: str = "",
        folder: Path | None = None,
    ) -> None:
        latent = int(vae.config.latent_channels)
        if unet.config.in_channels not in (latent, 2 * latent):
            raise EditbookError(
                f"{name or 'This model'} has a U-Net with {unet.config.in_channels} input channels; methods here need "
                f"{latent}, as a text-to-image checkpoint has, or {2 * latent}, as InstructPix2Pix."
            )
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise EditbookError(f"Cannot use a model that predicts {scheduler.config.prediction_type!r}.")
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.name = name
        self.folder = folder
        self.nfe = 0

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        # The U-Net's own `device` and `dtype` walk over all of its modules, which takes longer than one of its layers.
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the model computes in."""
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    @property
    def factor(self) -> int:
        """How many pixels a cell of the latent is wide: 8 for Stable Diffusion, 4 for the pocket model."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Side of the pictures that the model was trained on, in pixels."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent at the model's own picture size."""
        side = int(self.unet.config.sample_size)
        return int(self.vae.config.latent_channels), side, side

    @property
    def takes_image(self) -> bool:
        """Whether the U-Net sees a picture's latent beside the noisy one, as InstructPix2Pix's does."""
        return int(self.unet.config.in_channels) == 2 * int(self.vae.config.latent_channels)

    @cached_property
    def clip(self) -> Any | None:
        """CLIP's two towers, for scores, where the checkpoint's folder has them; else None.

        The pocket model's `text_encoder` began as this text tower and was tuned further with the U-Net.
        """
        if self.folder is None or not (self.folder / "clip").is_dir():
            return None
        from transformers import CLIPModel

        clip = CLIPModel.from_pretrained(self.folder / "clip", dtype=torch.float32, use_safetensors=True)
        return clip.eval().requires_grad_(False).to(self.device)

    def encode(self, image: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
        """The latent z_0 of one picture or several, (n, channels, height, width).

        Pictures are cropped to a square and resized to `image_size`. The posterior's mean is taken, not a sample.
        """
        return self.condition(image) * self.vae.config.scaling_factor

    @torch.no_grad()
    def condition(self, image: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
        """What a U-Net that takes a picture sees of it, (n, channels, height, width): its latent, *not scaled*.

        Brooks et al. left out the scaling factor here, not deliberately, and their weights expect it so; the pocket
        model's do, too.
        """
        pictures = [image] if isinstance(image, Image.Image) else list(image)
        arrays = [np.asarray(fit(as_image(picture), self.image_size), np.float32) for picture in pictures]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1
        return self.vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mode()

    @torch.no_grad()
    def decode_batch(self, z_0: torch.Tensor) -> list[Image.Image]:
        """One picture for each latent of a batch (n, channels, height, width)."""
        pixels = self.vae.decode(z_0.to(self.device, self.dtype) / self.vae.config.scaling_factor).sample
        if not torch.isfinite(pixels).all():
            raise EditbookError("The decoder returned NaN or infinite pixels. With float16 use float32 or bfloat16.")
        array = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(picture) for picture in array.permute(0, 2, 3, 1).cpu().numpy()]

    def decode(self, z_0: torch.Tensor) -> Image.Image:
        """The picture of one latent, (channels, height, width) or (1, channels, height, width)."""
        batch = z_0 if z_0.ndim == 4 else z_0[None]
        if len(batch) != 1:
            raise EditbookError(f"decode takes one latent, got {len(batch)}; use decode_batch.")
        return self.decode_batch(batch)[0]

    @torch.no_grad()
    def embed(self, prompts: str | Sequence[str]) -> torch.Tensor:
        """Text embeddings, (n, tokens, width).

        Raises:
            EditbookError: A prompt has more tokens than the text encoder reads; nothing is cut off silently.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        limit = self.tokenizer.model_max_length
        for text in texts:
            length = len(self.tokenizer(text, verbose=False).input_ids)
            if length > limit:
                shown = text if len(text) <= 60 else f"{text[:57]}..."
                raise EditbookError(f"The prompt {shown!r} has {length} tokens; the limit is {limit}. Shorten it.")
        tokens = self.tokenizer(texts, padding="max_length", max_length=limit, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0].to(self.dtype)

    def noise(self, z_t: torch.Tensor, t: int | torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """The noise estimate eps(z_t, t, C), (n, channels, height, width).

        Args:
            z_t: Noisy latents (n, channels, height, width). Of a model that takes a picture, these with its latents
                behind them, (n, 2 channels, height, width); `guidance.InstructGuidance` puts them there.
            t: Training timestep, 0 (clean) to 999 (noise); or one for each latent, an integer tensor (n,).
            embeddings: Text embeddings (n, tokens, width), one for each latent.

        Raises:
            EditbookError: These are not latents of this model, or the estimate is not finite (a diverged latent, or
                float16 that overflowed).
        """
        if z_t.ndim != 4 or z_t.shape[1] != self.unet.config.in_channels:
            raise EditbookError(
                f"The U-Net of this model reads latents (n, {self.unet.config.in_channels}, height, width), got "
                f"{tuple(z_t.shape)}."
            )
        self.nfe += len(z_t)
        out = self.unet(z_t, t, encoder_hidden_states=embeddings).sample
        if self.scheduler.config.prediction_type == "v_prediction":
            alpha = self.scheduler.alphas_cumprod.to(z_t)[t].view(-1, 1, 1, 1)
            out = alpha.sqrt() * out + (1 - alpha).sqrt() * z_t[:, : out.shape[1]]
        if not torch.isfinite(out).all():
            raise EditbookError(
                f"The noise estimate at timestep {t} is not finite: lower the guidance, or use float32."
            )
        return out

    def random_latent(self, seed: int, n: int = 1) -> torch.Tensor:
        """z_T: n times the standard normal latent of a seed, drawn on the CPU so that all devices get the same."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((1, *self.latent_shape), generator=generator, dtype=torch.float32)
        return noise.to(self.device, self.dtype).repeat(n, 1, 1, 1)


def verify(folder: Path) -> None:
    """Compare every file of an exported folder with its SHA256SUMS; raise `EditbookError` naming the first bad one."""
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, name = line.split(maxsplit=1)
        path = folder / name
        if not path.is_file():
            raise EditbookError(f"The weight file {path} is missing. Reinstall editbook, or export the model again.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise EditbookError(
                f"The weight file {path} is damaged (another SHA-256). Reinstall editbook, or export the model again."
            )


def _load_delta(folder: Path, name: str, device: str, dtype: str) -> Model:
    """A base model whose U-Net is changed by a folder's delta."""
    from safetensors.torch import load_file

    config = json.loads((folder / "delta.json").read_text(encoding="utf-8"))
    base = load(config["base"], device=device, dtype=dtype)
    widen_input(base.unet, config["in_channels"])
    apply(base.unet, load_file(folder / "delta.safetensors"))
    return Model(base.unet, base.vae, base.text_encoder, base.tokenizer, base.scheduler, name=name, folder=base.folder)


def load(
    name: str | Path = "pocket",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Model:
    """Load a model: a shipped one, a folder in diffusers layout, or a Stable Diffusion 1.x checkpoint of the hub.

    Args:
        name: "pocket"; "pocket-instruct-pix2pix", which follows instructions; a folder; or a hub id such as
            "stable-diffusion-v1-5/stable-diffusion-v1-5" or "timbrooks/instruct-pix2pix".
        device: "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "float16", "bfloat16" or "float64".
        revision: A commit of the hub's repository; pin one for results that others can repeat.
        local_files_only: Use only what is already on this machine.

    Raises:
        EditbookError: Unknown dtype or device, nothing found under that name, or a file differs from its SHA-256.
    """
    if dtype not in _DTYPES:
        raise unknown("dtype", dtype, _DTYPES)
    try:
        target = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise EditbookError(f"The device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    shipped = _SHIPPED_FOLDERS.get(str(name))
    folder = SHIPPED / shipped if shipped else Path(name)
    if shipped and not (folder / "SHA256SUMS").is_file():
        raise EditbookError(f"The shipped weights are missing from {folder}. Reinstall editbook, or train them.")
    if (folder / "SHA256SUMS").is_file():
        verify(folder)
    if (folder / "delta.json").is_file():
        return _load_delta(folder, str(name), device, dtype)
    # Imported here because they take seconds, and reading a name's error should not.
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    source = str(folder) if folder.is_dir() else str(name)
    options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only or folder.is_dir()}
    try:
        parts = {
            "unet": UNet2DConditionModel.from_pretrained(
                source, subfolder="unet", torch_dtype=_DTYPES[dtype], use_safetensors=True, **options
            ),
            "vae": AutoencoderKL.from_pretrained(
                source, subfolder="vae", torch_dtype=_DTYPES[dtype], use_safetensors=True, **options
            ),
            "text_encoder": CLIPTextModel.from_pretrained(
                source, subfolder="text_encoder", dtype=_DTYPES[dtype], use_safetensors=True, **options
            ),
            "tokenizer": CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **options),
            "scheduler": DDIMScheduler.from_pretrained(source, subfolder="scheduler", **options),
        }
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EditbookError(
            f"Could not load {str(name)!r}: {reason} Use 'pocket', a folder in diffusers layout, or a hub id."
        ) from error
    for part in ("unet", "vae", "text_encoder"):
        parts[part].to(target)
    return Model(**parts, name=str(name), folder=folder if folder.is_dir() else None)
