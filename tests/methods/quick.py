"""Options that make methods and inversions which optimise something quick, and the masks of those that need one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

_FOLDER = tempfile.TemporaryDirectory()  # as files, references can stand in the settings of an edit


def _file(name: str, array: np.ndarray) -> str:
    path = Path(_FOLDER.name) / name
    Image.fromarray(array).save(path)
    return str(path)


_THING = np.zeros((48, 64), np.uint8)
_THING[8:40, 16:44] = 255
_COLOURS = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)

QUICK: dict[str, dict[str, object]] = {
    "disentanglement-diffusion": {"epochs": 0},
    "dynamic-prompt-learning": {"inner_steps": 1, "noun_steps": 1},
    "kv-inversion": {"inner_steps": 1},
    "latent-inversion-timestep-aware": {"text_steps": 2},
    "mag-edit": {"iterations": 1, "mask": np.tri(64)},
    "null-text-inversion": {"inner_steps": 1},
    "target-text-inversion": {"inner_steps": 1},
    "tf-icon": {"reference": _file("thing.png", _COLOURS), "reference_mask": _file("mask.png", _THING)},
}
