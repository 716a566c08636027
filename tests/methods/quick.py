"""What methods are tested with: texts that their cards ask for, masks, references, and options that make them quick."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from editbook.methods.base import REGISTRY

_FOLDER = tempfile.TemporaryDirectory()  # as files, references can stand in the settings of an edit


def _file(name: str, array: np.ndarray) -> str:
    path = Path(_FOLDER.name) / name
    Image.fromarray(array).save(path)
    return str(path)


_THING = np.zeros((48, 64), np.uint8)
_THING[8:40, 16:44] = 255
_COLOURS = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)

QUICK: dict[str, dict[str, object]] = {
    "blended-diffusion": {"candidates": 1, "augmentations": 2, "mask": np.tri(64)},
    "blended-latent-diffusion": {"mask": np.tri(64)},
    "disentanglement-diffusion": {"epochs": 0},
    "dynamic-prompt-learning": {"inner_steps": 1, "noun_steps": 1},
    "inpaint-anything": {"task": "fill", "mask": np.tri(64)},
    "mfl": {"mask": np.tri(64), "query": "a cat", "candidates": 2},
    "instructedit": {"mask": np.tri(64)},  # with both prompts and a mask, no other model is asked
    "kv-inversion": {"inner_steps": 1},
    "latent-inversion-timestep-aware": {"text_steps": 2},
    "mag-edit": {"iterations": 1, "mask": np.tri(64)},
    "null-text-inversion": {"inner_steps": 1},
    "pfb-diff": {"mask": np.tri(64)},
    "target-text-inversion": {"inner_steps": 1},
    "tf-icon": {"reference": _file("thing.png", _COLOURS), "reference_mask": _file("mask.png", _THING)},
}


def texts(name: str, thing: str = "fox") -> dict[str, str]:
    """Two prompts, cat to thing; for methods that follow instructions one of those, with the prompts that they know."""
    prompts = {"source": "a photo of a cat on the beach", "target": f"a photo of a {thing} on the beach"}
    inputs = REGISTRY[name].card.inputs
    if "instruction" not in inputs:
        return prompts
    known = {kind: text for kind, text in prompts.items() if any(item.startswith(f"{kind} prompt") for item in inputs)}
    return {"instruction": f"turn the cat into a {thing}", **known}
