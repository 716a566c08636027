"""MagicBrush's layout (Zhang et al., NeurIPS 2023; github.com/OSU-NLP-Group/MagicBrush).

    edit_sessions.json          {id: [{"input", "mask", "output", "instruction"}, ...]}, one item a turn
    global_descriptions.json    {id: {picture: caption}}
    images/<id>/<id>-input.png, <id>-mask1.png, <id>-output1.png, <id>-mask2.png, ...

Its data may not be redistributed; nothing of it is in this package.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..pocket import Benchmark, BenchTask, changed_words
from ..pocket.benchmark import Entry
from .record import UNSPECIFIED, Record, read_json

SESSIONS = "edit_sessions.json"
CAPTIONS = "global_descriptions.json"


def magicbrush(folder: str | Path) -> Benchmark:
    """The turns of a MagicBrush folder (the unpacked dev or test set), each as a task of its own.

    A turn edits the accepted result of the turn before (MagicBrush's "independent" setting). Its id is
    "<session>-<turn>", turns counted from 1. `truth` is the result that the annotators accepted: a good answer, not the
    only one, and not always of the source's size. The mask is what they erased from the source (every pixel that is
    not opaque, by the authors' rule), brought to the source's size. Prompts are the global descriptions; "" if the
    folder has none.

    Args:
        folder: Holds edit_sessions.json and images.

    Raises:
        EditbookError: A file is missing or damaged, or an entry lacks something; it names both.
    """
    root = Path(folder)
    captions = read_json(root / CAPTIONS, dict) if (root / CAPTIONS).is_file() else None
    entries = []
    for session, turns in read_json(root / SESSIONS, dict).items():
        whole = Record(root / SESSIONS, session, {"turns": turns})
        if not whole.get("turns", list):
            raise whole.error("it has no turns.")
        for number, values in enumerate(turns, start=1):
            record = Record(root / SESSIONS, f"{session}-{number}", values)
            names = {key: record.get(key, str) for key in ("input", "mask", "output")}
            paths = {key: record.path(root / "images", f"{session}/{name}") for key, name in names.items()}
            prompts = ["", ""]
            if captions is not None:
                described = Record(root / CAPTIONS, session, captions.get(session))
                prompts = [described.get(names[key], str) for key in ("input", "output")]
            facts = {
                "id": record.name,
                "image_path": f"{session}/{names['input']}",
                "source_prompt": prompts[0],
                "target_prompt": prompts[1],
                "instruction": record.get("instruction", str),
                "edit_type": UNSPECIFIED,
                "changed_words": changed_words(prompts[0], prompts[1]),
            }
            entries.append(Entry(record.name, None, partial(_read, record, facts, paths)))
    return Benchmark(f"MagicBrush in {root}", entries)


def _read(record: Record, facts: dict[str, Any], paths: dict[str, Path]) -> BenchTask:
    source, truth = record.image(paths["input"]), record.image(paths["output"])
    region = Image.fromarray(record.region(paths["mask"])).resize(source.size, Image.Resampling.NEAREST)
    return BenchTask(**facts, source_image=source, truth=truth, mask=np.asarray(region, np.float32))
