"""Going on from a finished model instead of from nothing: its parts become the beginning of a new run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..errors import EditbookError
from ..model import SHIPPED

_STARTS = {
    "model.safetensors": ("reader_start", ("reader", "segmenter", "inpainter")),
    "delta.safetensors": ("instruct_start", ("instruct-pix2pix",)),
    "unet/diffusion_pytorch_model.safetensors": ("pixel_start", ("pixel",)),
}
"""Weights of what is no whole model, with the folder of a run that they go to and the recipes that begin there."""
_FROM_MODELS = ("vae", "decoder", "clip", "unet", "instruct-pix2pix", "pixel")
_Network = TypeVar("_Network", bound=nn.Module)
PARTS = ("vae", "clip", "text_encoder", "tokenizer", "scheduler")


def adopt(model: Path, run: Path, recipe: str | None = None) -> None:
    """Make a finished model the start of a run.

    After an exported model `train_vae`, `train_decoder`, `train_clip` and `train_unet` go on from its parts, and
    `train_instruct` and `train_pixel` begin there; after a reader, segmenter or inpainter, an InstructPix2Pix or a
    pixel model their recipes go on from that.

    Args:
        model: A folder that `export` or one of those recipes wrote.
        run: The run's folder; parts that it has already are kept.
        recipe: The recipe that is to go on, to be refused where it would not; None asks nothing.

    Raises:
        EditbookError: The folder was written by none of them, or the recipe does not go on from it.
    """
    for weights, (start, recipes) in _STARTS.items():
        if (model / "record.json").is_file() and (model / weights).is_file():
            _check_goes_on(recipe, recipes, model)
            if not (run / start).exists():
                shutil.copytree(model, run / start)
            if start == "instruct_start":  # a difference: from what, and with which other parts
                adopt(SHIPPED / "pocket", run)
            return
    if not (model / "training.json").is_file():
        raise EditbookError(f"{model} is neither an exported model nor the result of a recipe (no training.json).")
    _check_goes_on(recipe, _FROM_MODELS, model)
    records = json.loads((model / "training.json").read_text())
    for part in PARTS:
        if not (run / part).exists():
            shutil.copytree(model / part, run / part)
            if part in records:
                (run / part / "record.json").write_text(json.dumps(records[part], indent=2))
    if not (run / "start").exists():
        shutil.copytree(model / "unet", run / "start")
        (run / "start" / "record.json").write_text(json.dumps(records["unet"], indent=2))


def _check_goes_on(recipe: str | None, recipes: tuple[str, ...], model: Path) -> None:
    if recipe is not None and recipe not in recipes:
        raise EditbookError(f"--start: {recipe} cannot go on from {model}; from that folder {', '.join(recipes)} can.")


def kept_start(run: Path, part: str, recipe: str) -> Path | None:
    """The finished part of a run that a recipe goes on from and will write over, as it was before.

    It is copied to `run/<recipe>_start` before the recipe's first checkpoint, so that a resumed recipe does not take
    its own result for its beginning.

    Returns:
        The copy; None if there was no finished part, and the recipe begins from nothing.
    """
    start = run / f"{recipe}_start"
    if not (run / recipe / "checkpoint.pt").exists():
        shutil.rmtree(start, ignore_errors=True)  # what a run that was killed at once has left
        if (run / part / "record.json").is_file():
            shutil.copytree(run / part, start, ignore=shutil.ignore_patterns("checkpoint.*"))
    return start if start.is_dir() else None


def record_of(start: Path | None) -> dict[str, Any]:
    """What is recorded of the part that a recipe goes on from: no samples and no time if there is none."""
    if start is None or not start.is_dir():
        return {"samples": 0, "seconds": 0.0}
    record: dict[str, Any] = json.loads((start / "record.json").read_text())
    return record


def network_to_train(run: Path, new: _Network, load: Callable[[Path], _Network]) -> tuple[_Network, dict[str, Any]]:
    """The network of one file that a recipe trains, and what is recorded of it: the one adopted, or else the new one.

    Args:
        run: The run's folder.
        new: Where the recipe begins if nothing was adopted.
        load: Reads what was, from its folder.
    """
    start = run / "reader_start"  # `adopt` calls the start so for every network that is one file
    network = load(start).train().requires_grad_(True) if start.is_dir() else new
    return network, record_of(start)


def summed(record: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A record whose samples and seconds include those of the part that the recipe went on from."""
    return record | {name: round(record[name] + before[name], 1) for name in ("samples", "seconds")}
