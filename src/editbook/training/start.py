"""Going on from a finished model instead of from nothing: its parts become the beginning of a new run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import EditbookError

PARTS = ("vae", "clip", "text_encoder", "tokenizer", "scheduler")


def adopt(model: Path, run: Path) -> None:
    """Make a finished model the start of a run.

    After an exported model `train_unet` goes on from its U-Net, with its other parts; after a reader `train_reader`
    goes on from that.

    Args:
        model: A folder that `export` or `train_reader` wrote.
        run: The run's folder; parts that it has already are kept.

    Raises:
        EditbookError: The folder was written by neither.
    """
    if (model / "record.json").is_file() and (model / "model.safetensors").is_file():
        if not (run / "reader_start").exists():
            shutil.copytree(model, run / "reader_start")
        return
    if not (model / "training.json").is_file():
        raise EditbookError(f"{model} is neither an exported model nor a reader (it has no training.json).")
    records = json.loads((model / "training.json").read_text())
    for part in PARTS:
        if not (run / part).exists():
            shutil.copytree(model / part, run / part)
            if part in records:
                (run / part / "record.json").write_text(json.dumps(records[part], indent=2))
    if not (run / "start").exists():
        shutil.copytree(model / "unet", run / "start")
        (run / "start" / "record.json").write_text(json.dumps(records["unet"], indent=2))
