"""What an edit costs: seconds and memory of each entry of a comparison, measured in a process of its own.

A sweep may run for hours beside other work, and all its edits share one process. So its records say how good an edit
is and how many network evaluations it takes; what it costs is measured apart, on few tasks.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from .bench import Entry, make_edit, peak_memory
from .errors import EditbookError
from .methods import REGISTRY
from .model import load
from .pocket import bench
from .records import Cost


def measure_cost(
    entry: Entry, names: Sequence[str], *, model: str = "pocket", device: str = "cpu", threads: int = 1, seed: int = 0
) -> Cost:
    """Make edits in a fresh process, and say what they cost.

    Args:
        entry: What to run. An entry that names a model gets that one.
        names: Names of tasks of PocketBench; those that the method refuses do not count.
        model: What `editbook.load` gets.
        device: "cpu" or "cuda".
        threads: CPU threads.
        seed: Of all random draws.

    Raises:
        EditbookError: The method refused all of the tasks.
    """
    # Spawned, not forked: a fork would begin with this process's memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, entry, tuple(names), entry.model or model, device, threads, seed).result()


def _measure(entry: Entry, names: Sequence[str], name: str, device: str, threads: int, seed: int) -> Cost:
    import torch

    torch.set_num_threads(threads)
    model = load(name, device=device)
    method, tasks = REGISTRY[entry.method].configured(**entry.options), bench(model.image_size)
    seconds = []
    refused = None
    for task in map(tasks.task, names):
        try:
            seconds.append(make_edit(model, method, task, mask=entry.mask_for, seed=seed).seconds)
        except EditbookError as error:
            refused = error
    if not seconds:
        raise EditbookError(f"{entry.name} made no edit of these {len(names)} tasks: {refused}")
    return Cost(round(statistics.median(seconds), 2), round(peak_memory()), len(seconds))
