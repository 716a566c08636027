"""Going on from a finished model instead of from nothing: its parts become the beginning of a new run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import EditbookError

PARTS = ("vae", "clip", "text_encoder", "tokenizer", "scheduler")


def adopt(model: Path, run: Path) -> None:
    """Make an exported model the start of a run: `train_unet` then goes on from its U-Net, with its other parts.

    Args:
        model: A folder that `export` wrote.
        run: The run's folder; parts that it has already are kept.

    Raises:
        EditbookError: The folder was not written by `export`.
    """
    if not (model / "training.json").is_file():
        raise EditbookError(f"{model} is not an exported model (it has no training.json).")
    records = json.loads((model / "training.json").read_text())
    for part in PARTS:
        if not (run / part).exists():
            shutil.copytree(model / part, run / part)
            if part in records:
                (run / part / "record.json").write_text(json.dumps(records[part], indent=2))
    if not (run / "start").exists():
        shutil.copytree(model / "unet", run / "start")
        (run / "start" / "record.json").write_text(json.dumps(records["unet"], indent=2))
