"""Going on from a finished model instead of from nothing: its parts become the beginning of a new run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import EditbookError
from ..model import SHIPPED

_STARTS = {
    "model.safetensors": "reader_start",
    "delta.safetensors": "instruct_start",
    "unet/diffusion_pytorch_model.safetensors": "pixel_start",
}
PARTS = ("vae", "clip", "text_encoder", "tokenizer", "scheduler")


def adopt(model: Path, run: Path) -> None:
    """Make a finished model the start of a run.

    After an exported model `train_unet` goes on from its U-Net, with its other parts, and `train_instruct` and
    `train_pixel` begin there; after a reader, an InstructPix2Pix or a pixel model their recipes go on from that.

    Args:
        model: A folder that `export` or one of those recipes wrote.
        run: The run's folder; parts that it has already are kept.

    Raises:
        EditbookError: The folder was written by none of them.
    """
    for weights, start in _STARTS.items():
        if (model / "record.json").is_file() and (model / weights).is_file():
            if not (run / start).exists():
                shutil.copytree(model, run / start)
            if start == "instruct_start":  # a difference: from what, and with which other parts
                adopt(SHIPPED / "pocket", run)
            return
    if not (model / "training.json").is_file():
        raise EditbookError(f"{model} is neither an exported model nor the result of a recipe (no training.json).")
    records = json.loads((model / "training.json").read_text())
    for part in PARTS:
        if not (run / part).exists():
            shutil.copytree(model / part, run / part)
            if part in records:
                (run / part / "record.json").write_text(json.dumps(records[part], indent=2))
    if not (run / "start").exists():
        shutil.copytree(model / "unet", run / "start")
        (run / "start" / "record.json").write_text(json.dumps(records["unet"], indent=2))
