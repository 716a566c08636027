"""MagicBrush's layouts (Zhang et al., NeurIPS 2023; github.com/OSU-NLP-Group/MagicBrush).

The test set is a zip file, in which every session has a folder:

    edit_sessions.json          {id: [{"input", "mask", "output", "instruction"}, ...]}, one item a turn
    global_descriptions.json    {id: {picture: caption}}
    images/<id>/<id>-input.png, <id>-mask1.png, <id>-output1.png, <id>-mask2.png, ...

The training and dev sets are parquet files on Hugging Face, one row a turn:

    data/dev-00000-of-00004-<hash>.parquet    img_id, turn_index, source_img, mask_img, instruction, target_img

Its data may not be redistributed; nothing of it is in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import EditbookError
from ..pocket import Benchmark, BenchTask, changed_words
from ..pocket.benchmark import Entry
from .record import UNSPECIFIED, Record, Stored, read_json

SESSIONS = "edit_sessions.json"
CAPTIONS = "global_descriptions.json"
_TEXTS = ("img_id", "turn_index", "instruction")
_PICTURES = {"input": "source_img", "mask": "mask_img", "output": "target_img"}


def magicbrush(folder: str | Path) -> Benchmark:
    """The turns of a MagicBrush folder, each as a task of its own: the unpacked test set, or parquet files.

    A turn edits the accepted result of the turn before (MagicBrush's "independent" setting). Its id is
    "<session>-<turn>", turns counted from 1. `truth` is the result that the annotators accepted: a good answer, not the
    only one, and not always of the source's size. The mask is what they erased from the source (every pixel that is
    not opaque, by the authors' rule), brought to the source's size. There are no types (`of_type` raises).

    Prompts are the global descriptions of the test set. No task from parquet files has a prompt, neither source nor
    target, nor has any of a folder without global_descriptions.json: there they are "", and only methods that follow
    instructions can be run.

    Of the parquet files the names and types of the columns were checked with the data set's card; the files themselves
    were not. The card calls the mask a "white region": both transparent and black-and-white masks are read.

    Args:
        folder: Holds edit_sessions.json and images; or some or all of the parquet files, or `data` with them. Reading
            parquet needs pyarrow.

    Raises:
        EditbookError: A file is missing or damaged, an entry lacks something, stands there twice or has no file's name
            for an id, each of which it names; or pyarrow is missing.
    """
    root = Path(folder)
    shards = sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
    entries = _rows(shards) if shards and not (root / SESSIONS).is_file() else _turns(root)
    return Benchmark(f"MagicBrush in {root}", entries)


def _turns(root: Path) -> list[Entry]:
    """The turns of the unpacked zip file."""
    captions = read_json(root / CAPTIONS, dict) if (root / CAPTIONS).is_file() else None
    entries = []
    for session, turns in read_json(root / SESSIONS, dict).items():
        whole = Record(root / SESSIONS, session, {"turns": turns})
        whole.check_id(session)
        if not whole.get("turns", list):
            raise whole.error("it has no turns.")
        for number, values in enumerate(turns, start=1):
            record = Record(root / SESSIONS, f"{session}-{number}", values)
            names = {key: record.get(key, str) for key in _PICTURES}
            paths = {key: record.path(root / "images", f"{session}/{name}") for key, name in names.items()}
            prompts = ("", "")
            if captions is not None:
                described = Record(root / CAPTIONS, session, captions.get(session))
                prompts = (described.get(names["input"], str), described.get(names["output"], str))
            facts = _facts(record, f"{session}/{names['input']}", prompts)
            entries.append(Entry(record.name, None, partial(_read, record, facts, paths)))
    return entries


def _facts(record: Record, image_path: str, prompts: tuple[str, str]) -> dict[str, Any]:
    """What is known of a turn before its pictures are read."""
    return {
        "id": record.name,
        "image_path": image_path,
        "source_prompt": prompts[0],
        "target_prompt": prompts[1],
        "instruction": record.get("instruction", str),
        "edit_type": UNSPECIFIED,
        "changed_words": changed_words(*prompts),
    }


def _read(record: Record, facts: dict[str, Any], pictures: dict[str, Path] | dict[str, Stored]) -> BenchTask:
    source, truth = record.image(pictures["input"]), record.image(pictures["output"])
    region = Image.fromarray(record.region(pictures["mask"])).resize(source.size, Image.Resampling.NEAREST)
    return BenchTask(**facts, source_image=source, truth=truth, mask=np.asarray(region, np.float32))


def _rows(shards: Sequence[Path]) -> list[Entry]:
    """The turns of parquet files. Texts are read now, pictures when a task is asked for."""
    # A group of rows holds hundreds of pictures, and tasks are mostly asked for in order: keep the last one.
    pictures = lru_cache(maxsize=1)(partial(_read_group, columns=tuple(_PICTURES.values())))
    entries: dict[str, Entry] = {}
    for shard in shards:
        for group, rows in enumerate(_read_texts(shard)):
            for row, values in enumerate(rows):
                place = Record(shard, f"group {group}, row {row}", values)
                session, turn = place.get("img_id", str), place.get("turn_index", int)
                record = Record(shard, f"{session}-{turn}", values)
                place.check_id(session)
                if record.name in entries:
                    raise place.error(f"turn {turn} of {session!r} stands there twice; keep one of them.")
                before = "input" if turn == 1 else f"output{turn - 1}"  # as the zip file calls the same picture
                facts = _facts(record, f"{session}/{session}-{before}.png", ("", ""))
                make = partial(_read_row, record, facts, pictures, group, row)
                entries[record.name] = Entry(record.name, None, make)
    return list(entries.values())


def _read_row(record: Record, facts: dict[str, Any], read: Callable[..., Any], group: int, row: int) -> BenchTask:
    values = Record(record.file, record.name, read(record.file, group)[row])
    stored = {}
    for key, column in _PICTURES.items():
        picture = Record(record.file, f"{record.name}, {column}", values.get(column, dict))
        stored[key] = Stored(column, picture.get("bytes", bytes))
    return _read(record, facts, stored)


def _read_texts(shard: Path) -> list[list[dict[str, Any]]]:
    """Everything but the pictures of one parquet file: groups of rows."""
    with _opened(shard) as file:
        if missing := sorted({*_TEXTS, *_PICTURES.values()} - set(file.schema_arrow.names)):
            raise EditbookError(f"{str(shard)!r} has no column {missing[0]!r}; it is not a file of MagicBrush.")
        groups = range(file.num_row_groups)
    return [_read_group(shard, group, columns=_TEXTS) for group in groups]


def _read_group(shard: Path, group: int, *, columns: Sequence[str]) -> list[dict[str, Any]]:
    """One group of rows of one parquet file, some columns of it."""
    with _opened(shard) as file:
        rows: list[dict[str, Any]] = file.read_row_group(group, columns=list(columns)).to_pylist()
        return rows


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """The parquet file, for as long as it is read."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise EditbookError(
            f"{str(shard)!r} is read by pyarrow, which is missing: pip install 'editbook[data]'."
        ) from None
    try:
        with parquet.ParquetFile(shard) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise EditbookError(f"{str(shard)!r} cannot be read, it is damaged or truncated: {reason}") from error
