"""The denoiser: Stable Diffusion's U-Net in small, trained to predict noise (the survey's Eq. 4).

The text encoder begins as CLIP's text tower and is tuned along, as in the first latent diffusion model for text
(Rombach et al. 2022; Stable Diffusion freezes it). A contrastive loss on a small world leaves words that look alike
with nearly the same embedding, and a denoiser that reads those learns colours quickly and shapes hardly at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, CLIPTokenizer

from ..errors import EditbookError
from ..model import Model
from ..pocket import sample_held_out
from ..sampling import ClassifierFreeGuidance, Schedule, follow
from .clip import padded_tokens
from .loop import Plan, Recipe, compiled, train
from .start import record_of, summed
from .stream import SceneStream


def build_unet(width: int) -> UNet2DConditionModel:
    """Three levels (16, 8, 4 cells), cross-attention at each, 5.9 million parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=width,
        attention_head_dim=4,  # in this class of diffusers the *number* of heads
        norm_num_groups=32,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule, with the settings that latent inversion needs."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def noise_weight(alpha: torch.Tensor) -> torch.Tensor:
    """Weight of the squared error of the noise at a level of cumulative alpha, in (0, 10].

    In terms of the clean latent's error it is SNR + 1, as for v-prediction, but at most 5, so that nearly clean latents
    do not rule the loss (the idea of min-SNR, Hang et al. 2023). The plain loss weighs that error by the SNR alone and
    so all but ignores the noisy levels, where shapes are decided; a small model then learns them very slowly.
    """
    snr = alpha / (1 - alpha)
    return ((snr + 1).clamp(max=5) / snr).clamp(max=10)


class LatentPool:
    """Latents of the stream's pool, computed once for each scene or pair, and captions or instructions."""

    def __init__(self, stream: SceneStream, vae: AutoencoderKL, device: str) -> None:
        self._stream, self._vae, self._device = stream, vae, device
        self._latents = torch.empty(0)

    @torch.no_grad()
    def _encode(self, slots: torch.Tensor) -> torch.Tensor:
        pictures = self._stream.pictures(slots).to(self._device)
        latents = self._vae.encode(pictures.flatten(0, -4)).latent_dist.mode() * self._vae.config.scaling_factor
        return latents.float().unflatten(0, pictures.shape[:-3])

    def batch(self) -> tuple[torch.Tensor, list[str]]:
        """Latents (n, 4, 16, 16) or, of pairs, (n, 2, 4, 16, 16), and their texts."""
        if not len(self._latents):  # not sooner: a resumed run first puts the stream back where it stood
            self._latents = torch.cat([self._encode(slots) for slots in torch.arange(self._stream.pool).split(64)])
        fresh = self._stream.advance()
        self._latents[fresh.to(self._device)] = self._encode(fresh)
        slots = self._stream.choose()
        return self._latents[slots.to(self._device)], self._stream.captions(slots)


def need(run: Path, parts: dict[str, str]) -> None:
    """Raise an `EditbookError` that names the command unless a run has these parts: folder -> recipe."""
    for part, recipe in parts.items():
        if not (run / part).is_dir():
            raise EditbookError(f"{run / part} is missing: run `editbook train {recipe} --run {run}` first.")


def train_unet(plan: Plan, *, batch_size: int = 32, no_caption: float = 0.1) -> dict[str, Any]:
    """Train the U-Net on latents of `run/vae`, and tune `run/text_encoder` with it; saves both."""
    need(plan.run, {"vae": "vae", "text_encoder": "clip", "tokenizer": "clip"})
    torch.manual_seed(5)
    vae = AutoencoderKL.from_pretrained(plan.run / "vae").to(plan.device).eval().requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(plan.run / "text_encoder").to(plan.device)
    tokenizer = CLIPTokenizer.from_pretrained(plan.run / "tokenizer")
    unet, scheduler = build_unet(text_encoder.config.hidden_size), build_scheduler()
    before = record_of(plan.run / "start")
    if (plan.run / "start").is_dir():  # a former model to go on from, see `start.adopt`
        unet = UNet2DConditionModel.from_pretrained(plan.run / "start")
    scheduler.save_pretrained(plan.run / "scheduler")
    model = Model(unet, vae, text_encoder, tokenizer, scheduler, "pocket")
    networks = {"unet": unet, "text_encoder": text_encoder}
    for network in networks.values():
        network.requires_grad_(True).to(plan.device)
    if plan.device == "cpu":
        # The backward pass of torch's fused attention takes nearly half of a step on a CPU; plain products do not.
        unet.set_attn_processor(AttnProcessor())
    stream = SceneStream(6, batch_size, reuse=8, pool=8192, workers=plan.workers)
    pool = LatentPool(stream, vae, plan.device)
    alphas = scheduler.alphas_cumprod.to(plan.device)
    scenes = [sample_held_out(seed) for seed in range(16)]

    def objective(z_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        alpha = alphas[t].view(-1, 1, 1, 1)
        z_t = alpha.sqrt() * z_0 + (1 - alpha).sqrt() * noise
        eps = unet(z_t, t, encoder_hidden_states=text_encoder(tokens)[0]).sample.float()
        return (noise_weight(alpha) * (eps - noise).square()).mean()

    fast = compiled(objective, plan)

    def loss() -> torch.Tensor:
        z_0, texts = pool.batch()
        dropped = (torch.rand(len(texts)) < no_caption).tolist()
        texts = ["" if gone else text for gone, text in zip(dropped, texts, strict=True)]
        tokens = padded_tokens(tokenizer, texts).to(plan.device)
        t = torch.randint(len(alphas), (len(z_0),), device=plan.device)
        return fast(z_0, torch.randn_like(z_0), t, tokens)

    def show(folder: Path) -> None:
        embeddings = model.embed([scene.caption() for scene in scenes])
        guidance = ClassifierFreeGuidance(embeddings, model.embed(""), 5.0)
        noise = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(plan.device)
        pictures = model.decode_batch(follow(model, noise, Schedule(scheduler, 25).sampling(), guidance))
        contact_sheet(pictures, [scene.caption() for scene in scenes]).save(folder / "samples.png")

    record = train(Recipe("unet", networks, stream, loss, learning_rate=7e-4, show=show), plan)
    record = summed(record, before)
    for name, network in networks.items():
        network.to("cpu").save_pretrained(plan.run / name)
    (plan.run / "unet" / "record.json").write_text(json.dumps(record, indent=2))
    return record


def contact_sheet(pictures: list[Image.Image], captions: list[str], columns: int = 4, side: int = 192) -> Image.Image:
    """Pictures in rows, each with the beginning of its caption below it."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = k % columns * side, k // columns * (side + 16)
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 2, y + side + 2), caption.removeprefix("a photo of ")[:32], fill=0)
    return sheet
