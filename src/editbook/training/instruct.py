"""InstructPix2Pix in small: the base U-Net learns to follow instructions, and sees the picture that it shall edit.

Brooks et al. (2023) make their pairs with a language model and Prompt-to-Prompt. Here the grammar writes the
instruction and the renderer draws the exact answer: no language model, a closed vocabulary, pairs without noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from ..deltas import apply, compress, widen_input
from ..editing import edit
from ..guidance import InstructGuidance
from ..metrics import psnr
from ..metrics.truth import edit_success
from ..model import Model
from ..perception.reader import load_reader
from ..pocket import EditTask, bench, sample_edit
from ..sampling import Schedule, add_noise, follow
from .clip import padded_tokens
from .export import write_sums
from .loop import Plan, Recipe, compiled, train
from .start import record_of, summed
from .stream import EditStream
from .unet import LatentPool, build_scheduler, contact_sheet, need, noise_weight

SIZE = 6_600_000
"""Bytes of the shipped difference from the base U-Net."""
PHRASINGS = 2
"""Phrasings of each instruction that are trained; the third is kept for tests of wording."""


def _draw_edit(number: int, size: int) -> tuple[np.ndarray, list[str]]:
    before, after, instruction = sample_edit(number, PHRASINGS)
    return np.stack([before.array(size), after.array(size)]), [instruction]


class InstructStream(EditStream):
    """Pairs with instructions in the trained phrasings."""

    _draw: ClassVar = staticmethod(_draw_edit)


def draw_drops(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of n samples lose their instruction, and which their picture: 5 % the one, 5 % both, 5 % the other."""
    r = torch.rand(n)
    return r < 0.10, (r >= 0.05) & (r < 0.15)


def train_instruct(plan: Plan, *, batch_size: int = 16) -> dict[str, Any]:
    """Tune the U-Net of `run/start` on edits; saves `run/instruct-pix2pix` with the delta to ship.

    Begin with `--start` and an exported model, such as the shipped one. The text encoder and the autoencoder stay as
    they are. The picture's latent is not scaled, as in the original; see `Model.condition`.
    """
    need(plan.run, dict.fromkeys(("start", "vae", "text_encoder", "tokenizer"), "instruct-pix2pix --start MODEL"))
    torch.manual_seed(21)
    vae = AutoencoderKL.from_pretrained(plan.run / "vae").to(plan.device).eval().requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(plan.run / "text_encoder").to(plan.device)
    tokenizer = CLIPTokenizer.from_pretrained(plan.run / "tokenizer")
    unet, scheduler = UNet2DConditionModel.from_pretrained(plan.run / "start"), build_scheduler()
    base = {name: weight.clone() for name, weight in unet.state_dict().items()}
    widen_input(unet, 2 * vae.config.latent_channels)
    before = record_of(plan.run / "instruct_start")
    if (plan.run / "instruct_start").is_dir():  # a former delta to go on from, see `start.adopt`
        apply(unet, load_file(plan.run / "instruct_start" / "delta.safetensors"))
    model = Model(unet, vae, text_encoder, tokenizer, scheduler, "pocket-instruct-pix2pix")
    unet.requires_grad_(True).to(plan.device)
    if plan.device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # see `train_unet`
    # Other pairs than those that the former run saw.
    stream = InstructStream(22 + before["samples"], batch_size, reuse=16, pool=2048, workers=plan.workers)
    pool = LatentPool(stream, vae, plan.device)
    alphas = scheduler.alphas_cumprod.to(plan.device)

    def objective(z_0: torch.Tensor, c: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> Any:
        alpha = alphas[t].view(-1, 1, 1, 1)
        z_t = alpha.sqrt() * z_0 + (1 - alpha).sqrt() * noise
        eps = unet(torch.cat([z_t, c], 1), t, encoder_hidden_states=text).sample.float()
        return (noise_weight(alpha) * (eps - noise).square()).mean()

    fast = compiled(objective, plan)

    def loss() -> torch.Tensor:
        latents, texts = pool.batch()
        no_text, no_picture = draw_drops(batch_size)
        texts = ["" if gone else text for gone, text in zip(no_text.tolist(), texts, strict=True)]
        with torch.no_grad():
            text = text_encoder(padded_tokens(tokenizer, texts).to(plan.device))[0]
        c = latents[:, 0] / vae.config.scaling_factor
        c[no_picture.to(plan.device)] = 0
        z_0 = latents[:, 1]
        t = torch.randint(len(alphas), (batch_size,), device=plan.device)
        return fast(z_0, c, torch.randn_like(z_0), t, text)

    tasks = [bench()[11 * k] for k in range(6)]

    def show(folder: Path) -> None:
        pictures = follow_instructions(model, tasks, steps=10)
        rows = [
            image
            for task, picture in zip(tasks, pictures, strict=True)
            for image in (task.source_image, picture, task.truth)
            if image is not None
        ]
        captions = [text for task in tasks for text in ("source", task.instruction, "truth")]
        contact_sheet(rows, captions, columns=3, side=128).save(folder / "samples.png")

    record = train(Recipe("instruct-pix2pix", {"unet": unet}, stream, loss, 4e-4, show=show), plan)
    record = summed(record, before)
    unet.to("cpu")
    save_instruct(model, base, record, plan.run / "instruct-pix2pix")
    return record


def follow_instructions(
    model: Model,
    tasks: Sequence[EditTask],
    *,
    steps: int = 20,
    image_scale: float = 3.0,
    text_scale: float = 4.0,
) -> list[Image.Image]:
    """Each task's picture after its instruction, from the noise of its number."""
    noise = torch.cat([model.random_latent(k) for k in range(len(tasks))])
    c = model.condition([task.source_image for task in tasks])
    guidance = InstructGuidance(
        c, model.embed([task.instruction for task in tasks]), model.embed(""), image_scale, text_scale
    )
    return model.decode_batch(follow(model, noise, Schedule(model.scheduler, steps).sampling(), guidance))


@torch.no_grad()
def held_out_loss(model: Model, tasks: Sequence[EditTask], *, scaled: bool = False) -> float:
    """The training loss on tasks, at ten noise levels with fixed noise.

    Args:
        model: A model that takes a picture.
        tasks: Tasks of the world.
        scaled: Give it the picture's latent multiplied by the scaling factor, which it was not trained with.
    """
    z_0 = model.encode([task.truth for task in tasks if task.truth is not None])
    c = model.condition([task.source_image for task in tasks])
    c = c * model.vae.config.scaling_factor if scaled else c
    text = model.embed([task.instruction for task in tasks])
    noise = torch.cat([model.random_latent(k) for k in range(len(tasks))])
    alphas = model.scheduler.alphas_cumprod
    losses = []
    for t in range(50, 1000, 100):
        eps = model.noise(torch.cat([add_noise(z_0, noise, float(alphas[t])), c], 1), t, text)
        losses.append(float(noise_weight(alphas[t]) * (eps - noise).square().mean()))
    return float(np.mean(losses))


def measure_instruct(model: Model, base: Model, tasks: Sequence[EditTask]) -> dict[str, dict[str, float]]:
    """Shares of edits that did what was asked, that kept the rest, and both; and dB to the exact truth.

    Beside the pocket InstructPix2Pix stands SDEdit with the base model and the target prompt at its usual strength.
    """
    made = {
        "instruct-pix2pix": [
            picture
            for first in range(0, len(tasks), 8)
            for picture in follow_instructions(model, tasks[first : first + 8])
        ],
        "img2img": [
            edit(base, task.source_image, "img2img", target=task.target_prompt, steps=20, guidance_scale=5.0).image
            for task in tasks
        ],
    }
    measured = {}
    for name, pictures in made.items():
        verdicts = [edit_success(read, task) for read, task in zip(load_reader()(pictures), tasks, strict=True)]
        measured[name] = {
            key: round(float(np.mean([getattr(verdict, key) for verdict in verdicts])), 2)
            for key in ("changed", "kept", "success")
        }
        errors = [psnr(picture, task.truth) for picture, task in zip(pictures, tasks, strict=True)]
        measured[name]["psnr_to_truth_db"] = round(float(np.mean(errors)), 1)
    return measured


def save_instruct(model: Model, base: dict[str, torch.Tensor], record: dict[str, Any], folder: Path) -> None:
    """Write the U-Net's difference from its base, what was measured, and the checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = list(bench())[::7]
    record["held_out_loss"] = {"whole": round(held_out_loss(model, tasks), 4)}
    tuned = {name: weight.float() for name, weight in model.unet.state_dict().items()}
    delta = compress(base, tuned, SIZE)
    save_file(delta, folder / "delta.safetensors")
    shipped = UNet2DConditionModel.from_config(model.unet.config)
    shipped.load_state_dict(
        {name: base.get(name) if weight.shape == base[name].shape else weight for name, weight in tuned.items()}
    )
    apply(shipped, delta)
    small = Model(shipped, model.vae, model.text_encoder, model.tokenizer, model.scheduler, model.name)
    record["held_out_loss"]["delta"] = round(held_out_loss(small, tasks), 4)
    plain = UNet2DConditionModel.from_config({**model.unet.config, "in_channels": model.latent_shape[0]})
    plain.load_state_dict(base)
    parts = model.vae, model.text_encoder, model.tokenizer, model.scheduler
    record["held_out_edits"] = measure_instruct(small, Model(plain, *parts, "pocket"), list(bench())[::11])
    (folder / "MODEL_CARD.md").write_text(_card(record), encoding="utf-8")
    config = {"base": "pocket", "in_channels": model.unet.config.in_channels, "condition": "posterior mode, not scaled"}
    (folder / "delta.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    write_sums(folder)


def _card(record: dict[str, Any]) -> str:
    return _CARD.format(
        **{"device": "cpu", **record},
        minutes=record["seconds"] / 60,
        size=SIZE / 1e6,
        whole=record["held_out_loss"]["whole"],
        delta=record["held_out_loss"]["delta"],
    )


_CARD = """# The pocket InstructPix2Pix: card

The pocket model's U-Net, tuned to follow instructions and to see the picture that it edits (Brooks et al. 2023):
`editbook.load("pocket-instruct-pix2pix")`. Everything else is the pocket model's.

**File.** `delta.safetensors` holds the difference from the pocket U-Net in float16: the first convolution whole (8
input channels), vectors whole, and of all other weights' differences the largest singular values that fit into
{size:.1f} MB. Error of the noise on PocketBench, weighted as in training: {whole} before, {delta} after.

**Data.** Pairs of scenes drawn on the fly, before and after one edit of any of the ten types, with the grammar's
instruction: no language model, no Prompt-to-Prompt, no filter. The third phrasing of each instruction is not trained,
nor is one combination of object, look and background in eight.

**Recipe.** `editbook train instruct-pix2pix`: {samples:,} samples in {minutes:.0f} minutes on {device}. The picture's
latent is the posterior's mode, *not* scaled, as in the original. 5 % of the samples lose the instruction, 5 % the
picture, 5 % both. The text encoder is frozen.

**Limits.** A short training: it leaves things out, blurs, and changes what it was not asked to. It knows nothing
outside the pocket world. What was measured is in `record.json`.

**Licence.** Weights MIT.
"""
