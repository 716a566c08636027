"""Putting the trained parts together as one folder that diffusers opens like any Stable Diffusion checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from ..errors import EditbookError
from ..files import writable_folder

_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(run: Path, destination: Path) -> Path:
    """Write the model of a finished run: fp16 safetensors, `model_index.json`, model card, SHA-256 of every file.

    A former export at `destination` is replaced, and only when the new one is complete.

    Raises:
        EditbookError: A part has not been trained yet, or `destination` holds something else than a model.
    """
    for part, config in (("vae", "config.json"), ("clip", "config.json"), ("unet", "config.json")):
        if not (run / part / config).is_file():
            raise EditbookError(f"{run / part} is not finished: run `editbook train {part} --run {run}` first.")
    final = destination.resolve()
    if final.exists() and not (final / "model_index.json").is_file() and (final.is_file() or any(final.iterdir())):
        raise EditbookError(f"{destination} holds something else than a model: choose an empty or a new folder.")
    destination = final.with_name(f".{final.name}.new")
    shutil.rmtree(destination, ignore_errors=True)  # what an export that failed has left
    writable_folder(final.parent)  # an error should not name a folder that the user has not
    writable_folder(destination)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_pretrained(run / "unet"),
        "vae": AutoencoderKL.from_pretrained(run / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(run / "text_encoder"),
        "clip": CLIPModel.from_pretrained(run / "clip"),
    }
    for name, part in parts.items():
        part.to(torch.float16).save_pretrained(destination / name, safe_serialization=True)
    DDIMScheduler.from_pretrained(run / "scheduler").save_pretrained(destination / "scheduler")
    shutil.copytree(run / "tokenizer", destination / "tokenizer")
    index = {**_INDEX, "_diffusers_version": version("diffusers")}
    (destination / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for path in destination.rglob("config.json"):
        # The folder that a part was loaded from is nobody's business. And transformers loads in the format that the
        # config names, diffusers in float32: a pipeline made of both must not mix them.
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if "dtype" in config:
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n")
    records = {part: json.loads((run / part / "record.json").read_text()) for part in ("vae", "clip", "unet")}
    (destination / "training.json").write_text(json.dumps(records, indent=2) + "\n")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    (destination / "MODEL_CARD.md").write_text(_card(records, counts), encoding="utf-8")
    write_sums(destination)
    if final.exists():
        shutil.rmtree(final)
    destination.rename(final)
    return final


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder, for `model.verify`."""
    sums = folder / "SHA256SUMS"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != sums)
    sums.write_text(
        "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
            for path in files
        )
    )


def _card(records: dict[str, dict[str, Any]], counts: dict[str, int]) -> str:

    def length(part: str) -> str:
        runs = [records[part], *filter(None, [records[part].get("decoder")])]
        return ", then its decoder for ".join(
            f"{run['samples']:,} samples, {run['seconds'] / 60:.0f} min on {run.get('device', 'cpu')}" for run in runs
        )

    recall = 100 * records["clip"]["held_out_retrieval_of_256"]
    rows = [
        ("autoencoder", "AutoencoderKL", "vae", f"PSNR {records['vae']['held_out_psnr_db']} dB"),
        ("text and vision towers", "CLIPModel", "clip", f"own caption is the nearest of 256: {recall:.0f} %"),
        ("denoiser", "UNet2DConditionModel", "unet", "see the samples and the loss in the chapter on diffusion"),
    ]
    table = "\n".join(
        f"| {name} | `{kind}` | {counts[part]:,} | {length(part)} | {measured} |" for name, kind, part, measured in rows
    )
    return _CARD.format(table=table)


_CARD = """# The pocket model: card

A Stable-Diffusion-shaped text-to-image model, small enough for a laptop's processor: 64 x 64 pictures of the pocket
world, latents of 4 x 16 x 16. Standard diffusers and transformers folders; `StableDiffusionPipeline.from_pretrained`
opens it.

| part | class | parameters | trained for | measured on held-out scenes |
| --- | --- | ---: | --- | --- |
{table}

**Data.** Scenes of `editbook.pocket`, drawn on the fly from seeds, with captions in four phrasings, editing
instructions and phrases of image quality; no photograph and no text from elsewhere. One combination of object, colour
or material, and background in eight is never shown in training.

**Recipe.** `editbook train vae`, `clip`, `unet`, `decoder`, then `export`: the code is `editbook/training/`. AdamW,
bfloat16 autocast, averaged weights. Autoencoder: squared, absolute and edge error, KL weight 1e-6; its decoder is then
tuned alone, on the latents that the denoiser knows. Towers: CLIP's contrastive
loss; a fifth of the pictures is spoiled at five levels with a caption that says so; instructions are matched with the
difference of the pictures before and after. Denoiser: noise prediction, scaled-linear betas 0.00085 to 0.012 over 1000
steps, captions dropped 10 % of the time; the error is weighted so that, seen as an error of the clean latent, it counts
SNR + 1, at most 5. `text_encoder` begins as CLIP's text tower and is tuned with the denoiser; `clip` keeps its own.

**Use.** Teaching, and testing editing methods against an exact truth. It knows nothing outside the pocket world.

**Limits.** Thin parts (whiskers, bicycle spokes) blur. Look, pose and dress mix when they are asked for all at once, of
two objects one may take the other's attributes, legs of turned animals multiply, and drawn styles are weaker than
photos. Three objects, negations, sizes and words outside the world are not understood. What was measured is in
`report.json` beside the model's folder and on the page "The pocket world and its model".

**Licence.** Weights MIT. The sprites behind the training pictures are Microsoft's Fluent Emoji (MIT).
"""
