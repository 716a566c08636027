"""PIE-Bench's layout, read and written (Ju et al., "PnP Inversion", ICLR 2024; github.com/cure-lab/PnPInversion).

    mapping_file.json                             prompts, instruction, type, mask of every picture
    annotation_images/0_random_140/000000000000.jpg
    annotation_images/1_change_object_80/1_artificial/1_animal/111000000000.jpg
    exact/tasks.json, exact/<id>-source.png ...   ours: pictures without loss, the truth, the soft mask, the scenes

The first three digits of an id are type, kind of picture and category. PIE-Bench's own script reads mapping_file.json
and annotation_images; `exact` is for `pie_bench`, so that a task comes back as it went.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import EditbookError
from ..files import writable_folder
from ..images import save_image
from ..pocket import TYPES, Benchmark, BenchTask, Scene, Thing, changed_words
from ..pocket.benchmark import Entry
from . import rle
from .record import Record, check_id, read_json

MAPPING = "mapping_file.json"
IMAGES = "annotation_images"
EXACT = "exact"
SIZE = 512
"""Side of PIE-Bench's pictures in pixels; its masks have no other."""


def pie_bench(folder: str | Path, *, border: bool = True, exact: bool = True) -> Benchmark:
    """The tasks of a folder in PIE-Bench's layout: the real one, or PocketBench written by `export`.

    Prompts come without their brackets; `BenchTask.bracketed` finds them again from what differs. PIE-Bench has no
    edited pictures, so `truth` is None, and no types for its 140 "random" edits, so theirs is "random".
    Entries and paths are checked now, pictures and masks when a task is asked for.

    Args:
        folder: Holds mapping_file.json and annotation_images.
        border: Whether masks read from mapping_file.json include the outermost pixels, as in PIE-Bench's evaluation.
        exact: Whether to read the lossless pictures, with truth, scenes and soft masks, where `export` has left them.
            False reads what PIE-Bench's own script reads.

    Raises:
        EditbookError: A file is missing or damaged, an entry lacks something or contradicts the others; it names both.
    """
    root = Path(folder)
    mapping = read_json(root / MAPPING, dict)
    extras: dict[str, Any] | None = None
    if exact and (root / EXACT).is_dir():
        extras = read_json(root / EXACT / "tasks.json", dict)
        if odd := sorted(mapping.keys() ^ extras.keys()):
            raise EditbookError(f"Entry {odd[0]!r} stands in only one of {MAPPING} and {EXACT}/tasks.json of {root}.")
    entries = []
    for id, values in mapping.items():
        record = Record(root / MAPPING, id, values)
        record.check_id(id)
        facts = _facts(record)
        path = record.path(root / IMAGES, facts["image_path"])
        if extras is None:
            make = partial(_read, record, facts, path, border)
        else:
            check = partial(_check_published, record, path)
            make = partial(_read_exact, Record(root / EXACT / "tasks.json", id, extras[id]), facts, check)
        entries.append(Entry(id, facts["type_id"], make))
    return Benchmark(f"PIE-Bench layout in {root}", entries)


def _facts(record: Record) -> dict[str, Any]:
    """What mapping_file.json says of a task, but for its mask."""
    source, target = (
        record.get(key, str).replace("[", "").replace("]", "") for key in ("original_prompt", "editing_prompt")
    )
    type_id, words = record.get("editing_type_id", str), record.get("blended_word", str).split()
    if type_id not in map(str, range(len(TYPES))):
        raise record.error(f'\'editing_type_id\' should be one of "0" to "{len(TYPES) - 1}", not {type_id!r}.')
    if len(words) == 1:
        raise record.error(f"'blended_word' should be empty or name a source and a target word, not {words[0]!r} only.")
    record.get("mask", list)
    return {
        "id": record.name,
        "type_id": int(type_id),
        "image_path": record.get("image_path", str),
        "edit_type": TYPES[int(type_id)],
        "source_prompt": source,
        "target_prompt": target,
        "instruction": record.get("editing_instruction", str),
        "changed_words": changed_words(source, target),
        "blended_words": (words[0], words[1]) if words else None,  # the script takes the first two as well
    }


def _read(record: Record, facts: dict[str, Any], path: Path, border: bool) -> BenchTask:
    image = record.image(path)
    if image.size != (SIZE, SIZE):
        raise record.error(f"{str(path)!r} has {image.width} x {image.height} pixels; the layout has {SIZE} x {SIZE}.")
    with record.named():
        mask = rle.decode(record.get("mask", list), (SIZE, SIZE), border=border)
    if not mask.any():
        raise record.error("the mask is empty.")
    return BenchTask(**facts, source_image=image, truth=None, mask=mask.astype(np.float32))


def _check_published(record: Record, path: Path) -> None:
    """Raise where what PIE-Bench's own script reads is damaged, though the exact pictures beside it may be whole."""
    width, height = record.image(path).size
    with record.named():
        rle.decode(record.get("mask", list), (height, width))


def _read_exact(record: Record, facts: dict[str, Any], check: Callable[[], None]) -> BenchTask:
    check()
    folder = record.file.parent
    source = record.image(record.path(folder, f"{record.name}-source.png"))
    truth = record.image(record.path(folder, f"{record.name}-truth.png")) if record.get("truth", bool) else None
    path = record.path(folder, f"{record.name}-mask.npz")
    try:
        with np.load(path) as file:
            mask = file["mask"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise record.error(f"{str(path)!r} cannot be read, it is damaged or truncated: {error}.") from error
    with record.named():
        _check_mask(mask)
        _check_sizes(source, truth, mask)
        scenes = [_scene(record, key) for key in ("source_scene", "target_scene")]
    facts = facts | {"edit_type": record.get("edit_type", str)}
    return BenchTask(
        **facts, source_image=source, truth=truth, mask=mask, source_scene=scenes[0], target_scene=scenes[1]
    )


def _scene(record: Record, key: str) -> Scene | None:
    values = record.get(key, object)
    if values is None:
        return None
    try:
        return Scene(**values | {"objects": tuple(Thing(**thing) for thing in values["objects"])})
    except (TypeError, KeyError) as error:
        raise EditbookError(f"{key!r} does not describe a scene: {error}.") from error


def _check_mask(mask: np.ndarray) -> None:
    if mask.dtype != np.float32 or not (mask.min() >= 0 and 0 < mask.max() <= 1):  # false for NaN as well
        raise EditbookError("the mask should be float32 in [0, 1], and not be empty.")


def _check_sizes(source: Image.Image, truth: Image.Image | None, mask: np.ndarray) -> None:
    if not source.size == (truth or source).size == mask.shape[::-1]:
        raise EditbookError("its source, truth and mask differ in size.")


def export(tasks: Iterable[BenchTask], folder: str | Path, size: int = SIZE) -> Path:
    """Write tasks in PIE-Bench's layout, so that its evaluation script can be run on them, and `pie_bench` read them.

    Pictures are enlarged without smoothing; a mask is 1 where the truth may differ from the source at all. Whatever
    enlarging and JPEG lose, `exact` keeps. The folder appears when everything is in it.

    Args:
        tasks: E.g. `pocket.bench()`, a part of it, or a progress bar around it.
        folder: A new or an empty folder.
        size: Side of the enlarged pictures, a multiple of the tasks' own; the script knows only 512.

    Returns:
        The folder.

    Raises:
        EditbookError: `tasks` is a single task, or none; `size` is below 1; the folder holds something or cannot be
            made; two tasks have one name, or a name that is no file's; a picture is not square or its side does not
            divide `size`; a mask is empty or not in [0, 1].
    """
    if isinstance(tasks, BenchTask) or not isinstance(tasks, Iterable):
        raise EditbookError(f"tasks should be several tasks, e.g. a list of one, not a {type(tasks).__name__}.")
    if not isinstance(size, int | np.integer) or size < 1:
        raise EditbookError(f"size should be a whole number of pixels, 1 or more, not {size!r}.")
    final = Path(folder).resolve()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise EditbookError(f"{str(folder)!r} exists and is not empty. Choose an empty or a new folder.")
    beside = final.with_name(f".{final.name}.new")
    shutil.rmtree(beside, ignore_errors=True)  # what a killed export has left
    try:
        beside.mkdir(parents=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EditbookError(f"Cannot make the folder {str(folder)!r}: {reason}. Choose another place.") from error
    try:
        _write(tasks, beside, size)
        if final.exists():
            final.rmdir()
        beside.rename(final)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return Path(folder)


def _write(tasks: Iterable[BenchTask], root: Path, size: int) -> None:
    mapping: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    writable_folder(root / EXACT)
    for task in tasks:
        if not isinstance(task, BenchTask) or task.type_id is None or not task.image_path:
            raise EditbookError("Only tasks with id, type_id and image_path can be written in PIE-Bench's layout.")
        if task.id in mapping:
            raise EditbookError(f"Two tasks have the id {task.id!r}.")
        try:
            check_id(task.id)
            runs = _write_pictures(task, root, size)
        except EditbookError as error:
            raise EditbookError(f"Task {task.id!r}: {error}") from error
        source, target = task.bracketed
        mapping[task.id] = {
            "image_path": task.image_path,
            "original_prompt": source,
            "editing_prompt": target,
            "editing_instruction": task.instruction,
            "editing_type_id": str(task.type_id),
            "blended_word": " ".join(task.blended_words or ()),
            "mask": runs,
        }
        extras[task.id] = {
            "edit_type": task.edit_type,
            "truth": task.truth is not None,
            "source_scene": asdict(task.source_scene) if task.source_scene else None,
            "target_scene": asdict(task.target_scene) if task.target_scene else None,
        }
    if not mapping:
        raise EditbookError("There are no tasks to write.")
    # One entry a line: indented, every number of a mask would have a line of its own.
    for path, entries in ((root / MAPPING, mapping), (root / EXACT / "tasks.json", extras)):
        lines = [f"{json.dumps(id)}: {json.dumps(entry, ensure_ascii=False)}" for id, entry in entries.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _write_pictures(task: BenchTask, root: Path, size: int) -> list[int]:
    """Write everything of a task but its entries; returns the runs of its enlarged mask."""
    _check_mask(task.mask)
    _check_sizes(task.source_image, task.truth, task.mask)
    picture = root / IMAGES / task.image_path
    if not picture.resolve().is_relative_to(root / IMAGES):
        raise EditbookError(f"{task.image_path!r} leads out of the folder.")
    enlarged = Image.fromarray(_enlarged(np.asarray(task.source_image), size))
    writable_folder(picture.parent)
    save_image(enlarged, picture)
    exact = root / EXACT
    save_image(task.source_image, exact / f"{task.id}-source.png")
    if task.truth is not None:
        save_image(task.truth, exact / f"{task.id}-truth.png")
    np.savez_compressed(exact / f"{task.id}-mask.npz", mask=task.mask)
    return rle.encode(_enlarged(task.mask > 0, size))


def _enlarged(array: np.ndarray, size: int) -> np.ndarray:
    height, width = array.shape[:2]
    if height != width or size % width:
        raise EditbookError(f"a picture of {width} x {height} pixels cannot be enlarged to {size} x {size} evenly.")
    return array.repeat(size // height, axis=0).repeat(size // width, axis=1)
