"""Sources of masks against the exact masks of PocketBench: one line of JSON for each mask, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .bench import filled
from .errors import EditbookError
from .files import writable_folder
from .masks import FoundMask, find_mask
from .metrics import mask_iou
from .model import Model
from .pocket import TYPES, bench
from .records import RecordFile

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(20))
"""Where the map is cut to find its best threshold."""


@dataclass(frozen=True)
class MaskEntry:
    """One source of masks with its options.

    Args:
        name: Its name in tables, and of its file of records.
        mask: The source, e.g. "diffedit"; "{word}" stands for the object that the edit is about.
        options: Of the source and of `MaskShape`; JSON-able.
        model: What `editbook.load` gets: the model that the source asks.
    """

    name: str
    mask: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "pocket"


def best_overlap(heat: np.ndarray, exact: np.ndarray) -> float:
    """The IoU of a map with the exact mask at the best of `THRESHOLDS`: where it is hot, whatever its scale.

    Args:
        heat: (h, w) in [0, 1].
        exact: The right mask, (H, W) in [0, 1]; H is a multiple of h, or h is H.
    """
    enlarged = np.kron(heat, np.ones((len(exact) // len(heat),) * 2))
    return max(mask_iou((enlarged > threshold).astype(np.float32), exact) for threshold in THRESHOLDS)


def measure_mask(found: FoundMask, exact: np.ndarray) -> dict[str, Any]:
    """What a comparison keeps of one mask.

    Args:
        found: The mask and its map.
        exact: The right one, (H, W) in [0, 1], of the mask's size; not empty.

    Returns:
        Its IoU with the exact mask; the IoU that the map would have with the best of `THRESHOLDS`, which leaves
        localisation alone; the share of the picture that it covers.
    """
    return {
        "iou": round(mask_iou(found.mask, exact), 4),
        "best_iou": round(best_overlap(found.heat, exact), 4),
        "area": round(float((found.mask > 0.5).mean()), 4),
    }


def sweep_masks(
    model: Model,
    entry: MaskEntry,
    names: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> list[dict[str, Any]]:
    """Find one source's mask for tasks of PocketBench; goes on where its file of records stops.

    Args:
        model: The model that the source asks.
        entry: What to run.
        names: Names of tasks; those whose exact mask is empty are passed over.
        folder: Where records are kept, `<entry.name>.jsonl`.
        seed: Of all random draws.
        progress: Wraps the names that are left, e.g. `tqdm`.

    Returns:
        The records, in the order of `names`; what the source refuses has "refused", the reason, and no numbers.
    """
    head = {"entry": entry.name, "mask": entry.mask, "options": dict(entry.options), "model": model.name, "seed": seed}
    file, tasks = RecordFile(writable_folder(folder) / f"{entry.name}.jsonl", head), bench(model.image_size)
    for name in progress([name for name in names if name not in file.known]):
        task = tasks.task(name)
        if not (task.mask > 0.5).any():
            continue
        record = {"task": name, "type": TYPES[task.type_id or 0]}
        before, start = model.nfe, time.perf_counter()
        try:
            found = find_mask(
                model,
                task.source_image,
                filled(entry.mask, task),
                entry.options,
                source=task.source_prompt,
                target=task.target_prompt,
                instruction=task.instruction,
                seed=seed,
            )
        except EditbookError as error:
            file.add({**record, "refused": str(error)})
            continue
        seconds = round(time.perf_counter() - start, 3)
        file.add({**record, **measure_mask(found, task.mask), "nfe": model.nfe - before, "seconds": seconds})
    return [file.known[name] for name in names if name in file.known]


MASK_SUITE: tuple[MaskEntry, ...] = (
    MaskEntry("diffedit", "diffedit"),
    MaskEntry("diffedit-empty", "diffedit", {"reference": "empty"}),
    MaskEntry("attention", "attention:{word}"),
    MaskEntry("segment", "segment:{word}"),
    MaskEntry("relevance", "relevance", model="pocket-instruct-pix2pix"),
    MaskEntry("relevance-16", "relevance", {"maps": 16}, model="pocket-instruct-pix2pix"),
)
"""Who finds the mask best."""
