"""The text and vision towers: CLIP on the world's captions, which also learns instructions and picture quality.

The text encoder of the diffusion model begins as this text tower. Later chapters condition on instructions and on
quality phrases, so the tower must know them.
A caption meets its picture (Radford et al. 2021). A fifth of the pictures are spoiled and their captions say how much.
An instruction meets the *difference* of the pictures after and before: that loss is ours.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from ..pocket import QUALITIES, sample_held_out
from .loop import Plan, Recipe, compiled, train
from .start import kept_start, record_of, summed
from .stream import EditStream, SceneStream
from .tokenizer import MAX_LENGTH, train_tokenizer

WIDTH = 128


def build_clip(vocabulary: int, start: int, end: int) -> CLIPModel:
    """Two towers of four layers, 128 wide."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4}
    return CLIPModel(
        CLIPConfig(
            text_config={
                **tower,
                "vocab_size": vocabulary,
                "max_position_embeddings": MAX_LENGTH,
                "bos_token_id": start,
                "eos_token_id": end,
                "pad_token_id": end,
                "projection_dim": WIDTH,
            },
            vision_config={**tower, "image_size": 64, "patch_size": 8, "projection_dim": WIDTH},
            projection_dim=WIDTH,
        )
    )


def spoil(pictures: torch.Tensor, level: int) -> torch.Tensor:
    """Pictures (n, 3, h, w) in [-1, 1] made worse: level 0 (unusable) to 4 (untouched), by blur and noise."""
    if level == 4:
        return pictures
    harm = (4 - level) / 4
    small = max(8, round(pictures.shape[-1] * (1 - 0.82 * harm)))
    blurred = functional.interpolate(pictures, small, mode="area")
    blurred = functional.interpolate(blurred, pictures.shape[-1], mode="bilinear")
    return (blurred + 0.35 * harm * torch.randn_like(pictures)).clamp(-1, 1)


def contrastive_loss(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE: row k of a belongs to row k of b. Both (n, width), scaled to length 1 here."""
    logits = scale * functional.normalize(a.float(), dim=-1) @ functional.normalize(b.float(), dim=-1).T
    labels = torch.arange(len(a), device=a.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


@torch.no_grad()
def retrieval(clip: CLIPModel, tokenizer: object, count: int = 256) -> float:
    """Share of held-out pictures whose own caption is the nearest of `count`."""
    scenes = [sample_held_out(10_000 + seed) for seed in range(count)]
    pictures = torch.from_numpy(np.stack([scene.array() for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    tokens = padded_tokens(tokenizer, [scene.caption() for scene in scenes])
    vision = clip.visual_projection(clip.vision_model(pictures).pooler_output)
    text = clip.text_projection(clip.text_model(tokens).pooler_output)
    similarity = functional.normalize(vision, dim=-1) @ functional.normalize(text, dim=-1).T
    return float((similarity.argmax(1) == torch.arange(count)).float().mean())


def padded_tokens(tokenizer: object, texts: list[str]) -> torch.Tensor:
    """Token ids (n, MAX_LENGTH), padded; a text that is too long is cut."""
    padded = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")  # type: ignore[operator]
    return padded.input_ids


def train_clip(plan: Plan, *, batch_size: int = 128) -> dict[str, Any]:
    """Learn the tokenizer and both towers; saves `run/tokenizer`, `run/clip` and `run/text_encoder`.

    If the run has adopted them, see `start.adopt`, it goes on from its towers with its tokenizer, and leaves its
    `text_encoder` alone: that one was tuned with the denoiser, which reads no other.
    """
    torch.manual_seed(2)
    start = kept_start(plan.run, "clip", "clip")
    before = record_of(start)
    if start is None:
        tokenizer = train_tokenizer(plan.run / "tokenizer")
        clip = build_clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(plan.run / "tokenizer")
        clip = CLIPModel.from_pretrained(start, dtype=torch.float32)
    head = nn.Linear(WIDTH, WIDTH, bias=False)  # reads a change from the difference of two pictures; not shipped
    # Other scenes than those that the former run saw.
    stream = SceneStream(2 + before["samples"], batch_size, reuse=4, pool=4096, workers=plan.workers)
    edits = EditStream(3 + before["samples"], batch_size // 4, reuse=8, pool=1024, workers=plan.workers)

    def objective(pictures: torch.Tensor, tokens: torch.Tensor, before_after: torch.Tensor) -> torch.Tensor:
        n, m = len(pictures), len(before_after)
        vision = clip.vision_model(torch.cat([pictures, before_after.flatten(0, 1)])).pooler_output
        vision = clip.visual_projection(vision)
        text = clip.text_projection(clip.text_model(tokens).pooler_output)
        pairs = vision[n:].unflatten(0, (m, 2))
        scale = clip.logit_scale.exp().clamp(max=100)
        change = head(pairs[:, 1] - pairs[:, 0])
        return contrastive_loss(vision[:n], text[:n], scale) + 0.5 * contrastive_loss(change, text[n:], scale)

    fast = compiled(objective, plan)

    def loss() -> torch.Tensor:
        stream.advance()
        slots = stream.choose()
        pictures, captions = stream.pictures(slots), stream.captions(slots)
        for row in range(0, batch_size, 5):
            level = int(torch.randint(5, ()))
            pictures[row : row + 1] = spoil(pictures[row : row + 1], level)
            captions[row] = f"{captions[row]}, {QUALITIES[level]}"
        edits.advance()
        edit_slots = edits.choose()
        tokens = padded_tokens(tokenizer, [*captions, *edits.captions(edit_slots)])
        before_after = edits.pictures(edit_slots)
        return fast(pictures.to(plan.device), tokens.to(plan.device), before_after.to(plan.device))

    networks = {"clip": clip, "head": head}
    recipe = Recipe("clip", networks, stream, loss, decay_from=0.5, more_streams=(edits,))
    record = summed(train(recipe, plan), before)
    clip.to("cpu")
    record["held_out_retrieval_of_256"] = round(retrieval(clip, tokenizer), 4)
    clip.save_pretrained(plan.run / "clip")
    if start is None:
        CLIPTextModel.from_pretrained(plan.run / "clip").save_pretrained(plan.run / "text_encoder")
    (plan.run / "clip" / "record.json").write_text(json.dumps(record, indent=2))
    return record
