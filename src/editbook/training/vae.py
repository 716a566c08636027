"""The autoencoder: 64 x 64 pixels to a 16 x 16 latent of four channels, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional

from ..errors import EditbookError
from ..pocket import sample_held_out
from .loop import Plan, Recipe, compiled, train
from .start import kept_start, record_of, summed
from .stream import SceneStream


def build_vae() -> AutoencoderKL:
    """Stable Diffusion's autoencoder with three levels instead of four: factor 4."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def reconstruction_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error of pixels, and absolute error of their differences, which keeps edges sharp."""
    edges = functional.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + functional.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
    return 4 * functional.mse_loss(y, x) + 0.5 * functional.l1_loss(y, x) + 0.5 * edges


def held_out_pictures(count: int) -> torch.Tensor:
    """Pictures of scenes kept for tests, float32 (count, 3, 64, 64) in [-1, 1]."""
    arrays = np.stack([sample_held_out(seed).array() for seed in range(count)])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """1 / standard deviation of the latents, which scales them to unit variance (Rombach et al. 2022, appendix G)."""
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in pictures.split(64)])
    return float(1 / latents.std())


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Mean PSNR in dB of reconstructions over pictures in [-1, 1]."""
    errors = [(_round_trip(vae, batch) - batch).square().mean((1, 2, 3)) / 4 for batch in pictures.split(64)]
    return float((-10 * torch.cat(errors).log10()).mean())


def _round_trip(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)


def train_vae(plan: Plan, *, batch_size: int = 16) -> dict[str, Any]:
    """Train the autoencoder and save it, with its measured scaling factor, in `run/vae`.

    If the run has adopted one, see `start.adopt`, it goes on from that. Its latents move, so a denoiser has to be
    trained on them again; `train_decoder` leaves them where they are.
    """
    torch.manual_seed(1)
    start = kept_start(plan.run, "vae", "vae")
    before = record_of(start)
    vae = build_vae() if start is None else AutoencoderKL.from_pretrained(start)
    # Other scenes than those that the former run saw.
    stream = SceneStream(1 + before["samples"], batch_size, reuse=4, workers=plan.workers)

    def objective(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(x, y.float()) + 1e-6 * posterior.kl().mean()

    record = summed(_fit("vae", vae, objective, stream, plan), before)
    if "decoder" in before:
        record["decoder"] = before["decoder"]
    vae.register_to_config(scaling_factor=measure_scaling_factor(vae, held_out_pictures(512)))
    return _save(vae, record, plan.run)


def train_decoder(plan: Plan, *, batch_size: int = 16) -> dict[str, Any]:
    """Tune the decoder of `run/vae` alone and save it there.

    The latents stay what they were, so a denoiser trained on them stays valid; Stable Diffusion's own
    `sd-vae-ft-mse` was made in the same way.

    Raises:
        EditbookError: The autoencoder has not been trained yet.
    """
    if not (plan.run / "vae" / "record.json").is_file():
        raise EditbookError(f"{plan.run / 'vae'} is not finished: run `editbook train vae --run {plan.run}` first.")
    torch.manual_seed(11)
    start = kept_start(plan.run, "vae", "decoder") or plan.run / "vae"
    whole = record_of(start)
    before = whole.get("decoder", record_of(None))
    vae = AutoencoderKL.from_pretrained(start)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)

    def objective(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
        return reconstruction_loss(x, vae.decode(z).sample.float())

    # Other scenes than those that the former run saw.
    stream = SceneStream(11 + before["samples"], batch_size, reuse=4, workers=plan.workers)
    tuned = _fit("decoder", vae, objective, stream, plan, learning_rate=5e-4, decay_from=0.0)
    return _save(vae, {**whole, "decoder": summed(tuned, before)}, plan.run)


def _fit(
    name: str,
    vae: AutoencoderKL,
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    stream: SceneStream,
    plan: Plan,
    learning_rate: float = 1e-3,
    decay_from: float = 0.5,
) -> dict[str, Any]:
    fast = compiled(objective, plan)
    shown = held_out_pictures(8)

    def loss() -> torch.Tensor:
        stream.advance()
        x = stream.pictures(stream.choose()).to(plan.device)
        return fast(x, torch.randn(len(x), 4, 16, 16, device=plan.device))

    @torch.no_grad()
    def show(folder: Path) -> None:
        both = torch.cat([shown, _round_trip(vae, shown.to(plan.device)).cpu()])
        rows = [torch.cat(list(row), -1) for row in both.split(8)]
        array = ((torch.cat(rows, -2) + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / "samples.png")
        print(f"  held-out PSNR {psnr(vae, shown.to(plan.device)):.2f} dB", flush=True)

    record = train(Recipe(name, {"vae": vae}, stream, loss, learning_rate, decay_from, show), plan)
    vae.to("cpu")
    return record


def _save(vae: AutoencoderKL, record: dict[str, Any], run: Path) -> dict[str, Any]:
    record["held_out_psnr_db"] = round(psnr(vae, held_out_pictures(512)), 2)
    vae.save_pretrained(run / "vae")
    (run / "vae" / "record.json").write_text(json.dumps(record, indent=2))
    return record
