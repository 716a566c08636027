"""Every inversion under every editor: the product that the library is built as, measured and seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .bench import Entry, attempt
from .errors import EditbookError
from .files import writable_folder
from .images import save_image
from .inversion import INVERSIONS
from .methods import REGISTRY
from .metrics import load_reader
from .model import Model
from .pocket import TYPES, bench
from .records import RecordFile

_SHORT = {"steps": 20, "guidance_scale": 5.0}
PAIR_EDITORS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("no control", "ddim-inversion", _SHORT),
        *(
            Entry(name, name, _SHORT)
            for name in (
                "prompt-to-prompt",
                "proxedit",
                "masactrl",
                "tic-inversion",
                "plug-and-play",
                "ti-guided-edit",
                "baret",
                "diffedit",
            )
        ),
        Entry("disentanglement-diffusion", "disentanglement-diffusion", {**_SHORT, "epochs": 0}),
        Entry("mag-edit", "mag-edit", {**_SHORT, "scale": 10.0, "iterations": 3}, mask=True),
        Entry("pfb-diff", "pfb-diff", _SHORT, mask=True),
    )
}
"""One of each kind of editor that takes any inversion; methods that differ in their defaults only are left out."""

PAIR_TASK = "722000000000"
"""The task of PocketBench on which the book shows all pairs."""

FEW_UPDATES: dict[str, dict[str, Any]] = {
    "null-text-inversion": {"inner_steps": 3},
    "dynamic-prompt-learning": {"inner_steps": 3, "noun_steps": 2},
    "kv-inversion": {"inner_steps": 3},
    "target-text-inversion": {"inner_steps": 3},
}
"""What makes the inversions that optimise quick enough to try them everywhere; the others run as they are."""


def sweep_pairs(
    model: Model,
    editor: Entry,
    names: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[Iterable[tuple[str, str]]], Iterable[tuple[str, str]]] = iter,
) -> list[dict[str, Any]]:
    """One editor under every inversion, over tasks of PocketBench; goes on where its file of records stops.

    Args:
        model: The model.
        editor: Of `PAIR_EDITORS`.
        names: Names of tasks.
        folder: Where records are kept, `<editor>.jsonl`; the edits of the first task are kept beside it,
            `<editor>/<inversion>.png`.
        seed: Of all random draws.
        progress: Wraps the pairs (task, inversion) that are left, e.g. `tqdm`.

    Returns:
        The records, all inversions of a task before the next task; each as `bench.sweep` has them, and "inversion". A
        pair that cannot work together has "refused", the reason.

    Raises:
        EditbookError: The file holds records of other settings, or is damaged.
    """
    head = {"editor": editor.name, "method": editor.method, "options": dict(editor.options), "seed": seed}
    file = RecordFile(writable_folder(folder) / f"{editor.name}.jsonl", {**head, "model": model.name})
    tasks, reader = bench(model.image_size), load_reader()
    pairs = [(name, inversion) for name in names for inversion in INVERSIONS]
    for name, inversion in progress([pair for pair in pairs if " ".join(pair) not in file.known]):
        task = tasks.task(name)
        options = {**editor.options, "inversion": inversion, **FEW_UPDATES.get(inversion, {})}
        record: dict[str, Any]
        try:
            method = REGISTRY[editor.method].configured(**options)
        except EditbookError as error:  # these two never fit; others are refused for the task's prompts
            record, image = {"refused": str(error)}, None
        else:
            record, image = attempt(model, method, task, reader, mask=editor.mask_for, seed=seed)
        if image is not None and name == names[0]:
            save_image(image, writable_folder(folder / editor.name) / f"{inversion}.png")
        known = {"task": f"{name} {inversion}", "inversion": inversion, "type": TYPES[task.type_id or 0]}
        file.add({**known, **record})
    return [file.known[" ".join(pair)] for pair in pairs]
