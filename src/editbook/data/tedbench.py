"""TEdBench's layout (Kawar et al., "Imagic", CVPR 2023; github.com/imagic-editing/imagic-editing.github.io).

input_list.json                              [{"img_name", "target_text"}, ...], 100 edits of 40 pictures
originals/<img_name>
imagic/<img_name>-<Target_text>.png          the results of the authors' own method
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..pocket import Benchmark, BenchTask, changed_words
from ..pocket.benchmark import Entry
from .record import UNSPECIFIED, Record, read_json

INPUTS = "input_list.json"


def tedbench(folder: str | Path) -> Benchmark:
    """The tasks of a TEdBench folder.

    There is a target text and nothing else: source prompt and instruction are "" in every task, `truth` is None, the
    mask is 1 everywhere, and there are no types (`of_type` raises). Methods that need a source prompt have to be given
    one, e.g. by a captioner of `editbook.perception`. A task's id is what the authors named their result of it: the
    picture's name, and the text with underscores and without its full stop.

    Args:
        folder: Holds input_list.json and originals.

    Raises:
        EditbookError: A file is missing or damaged, an entry lacks something, stands there twice, or has a text that
            cannot be part of a file's name; it names both.
    """
    root = Path(folder)
    entries: dict[str, Entry] = {}
    for number, values in enumerate(read_json(root / INPUTS, list)):
        record = Record(root / INPUTS, str(number), values)
        name, text = record.get("img_name", str), record.get("target_text", str)
        path = record.path(root / "originals", name)
        id = f"{name}-{text.removesuffix('.').replace(' ', '_')}"
        record.check_id(id)
        if id in entries:
            raise record.error(f"{text!r} is asked of {name} twice; keep one of them.")
        facts = {
            "id": id,
            "image_path": name,
            "source_prompt": "",
            "target_prompt": text,
            "instruction": "",
            "edit_type": UNSPECIFIED,
            "changed_words": changed_words("", text),
        }
        entries[id] = Entry(id, None, partial(_read, record, facts, path))
    return Benchmark(f"TEdBench in {root}", list(entries.values()))


def _read(record: Record, facts: dict[str, Any], path: Path) -> BenchTask:
    image = record.image(path)
    return BenchTask(**facts, source_image=image, truth=None, mask=np.ones((image.height, image.width), np.float32))
