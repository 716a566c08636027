"""What the tests of the published layouts share: writing pictures, spoiling files, and PIE-Bench's decoder, slowly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_picture(path: Path, size: tuple[int, int] = (512, 512), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(path)
    return path


NO_FILE_NAMES = ("../../../evil", "/tmp/evil", "a/b", "a\\b", "..", "C:evil", "a\0b", "")


def change_json(path: Path, change: Any) -> None:
    """Load a file, hand its content to `change`, and save what that has made of it."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def slow_decode(runs: list[int], height: int, width: int, border: bool) -> np.ndarray:
    """One pixel after the other, by the description of PIE-Bench's evaluation."""
    mask = np.zeros((height, width), bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        for position in range(start, min(start + length, height * width)):
            mask[position // width, position % width] = True
    for y in range(height):
        for x in range(width):
            if border and (y in (0, height - 1) or x in (0, width - 1)):
                mask[y, x] = True
    return mask
