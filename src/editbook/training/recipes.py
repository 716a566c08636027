"""The recipes by name, with their full length."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from ..errors import unknown
from .loop import Plan


@dataclass(frozen=True)
class Entry:
    """Where a recipe is, and how many samples its full length has."""

    module: str
    function: str
    samples: int


RECIPES = {
    "vae": Entry("vae", "train_vae", 3_000_000),
    "decoder": Entry("vae", "train_decoder", 2_000_000),
    "clip": Entry("clip", "train_clip", 4_000_000),
    "unet": Entry("unet", "train_unet", 20_000_000),
    "reader": Entry("reader", "train_reader", 3_000_000),
    "segmenter": Entry("segmenter", "train_segmenter", 3_000_000),
    "inpainter": Entry("inpainter", "train_inpainter", 2_000_000),
    "instruct-pix2pix": Entry("instruct", "train_instruct", 10_000_000),
    "pixel": Entry("pixel", "train_pixel", 10_000_000),
}


def run_recipe(name: str, plan: Plan) -> dict[str, Any]:
    """Train one part of the pocket model; returns its record."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    entry = RECIPES[name]
    module = importlib.import_module(f".{entry.module}", __package__)
    return getattr(module, entry.function)(plan)
