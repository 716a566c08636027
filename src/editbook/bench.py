"""The sweep: methods over a benchmark's tasks, one line of JSON for each edit, resumable, and the tables made of it."""

from __future__ import annotations

import math
import re
import resource
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .editing import edit
from .errors import EditbookError, unknown
from .files import writable_folder
from .images import save_image
from .methods import REGISTRY, Method
from .metrics import Reader, edit_success, load_reader, psnr, truth_psnr
from .model import Model
from .pocket import OBJECTS, TYPES, bench
from .pocket.benchmark import BenchTask
from .records import RECORDS, Cost, RecordFile, load_costs, load_pictures, load_records
from .result import Edit


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a method with its options.

    Args:
        name: Its name in tables, and of its file of records.
        method: An id of `editbook.methods`.
        options: The method's options, and its inversion's; JSON-able.
        mask: Give the method the task's exact mask, as a user would draw it; or the name of a source of masks, in which
            "{word}" stands for the object that the edit is about.
        model: What `editbook.load` gets, for methods that need another model than the others; "" is the sweep's own.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    mask: bool | str = False
    model: str = ""

    def mask_for(self, task: BenchTask) -> Any:
        """What the method is given as a mask for a task."""
        if isinstance(self.mask, str):
            return filled(self.mask, task)
        return task.mask if self.mask else None


def filled(mask: str, task: BenchTask) -> str:
    """The name of a source of masks, with the object that the edit is about where "{word}" stands.

    That is PIE-Bench's blended word of the source prompt; where there is none, the object that only this prompt has.

    Raises:
        EditbookError: It needs a word, and the edit is about no object of the source.
    """
    gone = task.changed_words.source if task.changed_words else ()
    word = task.blended_words[0] if task.blended_words else next((name for name in gone if name in OBJECTS), None)
    if "{word}" in mask and word is None:
        raise EditbookError("The edit is about no object of the source prompt, so there is no word to look for.")
    return mask.format(word=word)


def drawn_tasks(each: int, size: int = 64) -> list[str]:
    """Names of `each` tasks of every type of PocketBench, one type after the other in turn.

    The survey's Table 2 is made in this way: ten of each type of PIE-Bench. Which ones it took is not published. Here a
    shorter list is the beginning of a longer one, so that a sweep can be extended.

    Raises:
        EditbookError: A type has fewer tasks.
    """
    drawn: list[list[str]] = []
    for number, kind in enumerate(TYPES):
        known = bench(size).of_type(kind).ids
        if not 1 <= each <= len(known):
            raise EditbookError(f"{kind!r} has {len(known)} tasks: ask for 1 to {len(known)} of each type, not {each}.")
        order = np.random.default_rng([number, 4]).permutation(len(known))
        drawn.append([known[k] for k in order[:each]])
    return [name for turn in zip(*drawn, strict=True) for name in turn]


def texts_for(method: Method, task: BenchTask) -> dict[str, str]:
    """What a method is told of a task: both prompts; or the instruction alone, for one that needs it."""
    if "instruction" in method.card.inputs:
        return {"instruction": task.instruction}
    return {"source": task.source_prompt, "target": task.target_prompt}


def measure(made: Edit, task: BenchTask, reading: Any) -> dict[str, Any]:
    """What a comparison keeps of one edit; decibels that would be infinite are given as 99.

    Args:
        made: The edit.
        task: What was asked for.
        reading: The edited picture as read by the scene reader.

    Returns:
        PSNR of the reconstruction to the source; PSNR to the exact answer, whole, inside and outside the mask; whether
        what was asked for happened and whether the rest stayed; the root mean square of Eq. 9's left side at the end;
        NFE and seconds. What the method does not have is None.
    """

    def decibels(value: float) -> float | None:
        return None if math.isnan(value) else round(min(value, 99.0), 2)

    verdict, near, back = edit_success(reading, task), truth_psnr(made.image, task), made.reconstruction
    gap = None
    if made.inversion is not None and made.inversion.sampled is not None:
        gap = round(float(made.inversion.gap().norms()[0][-1]), 5)
    return {
        "reconstruction": None if back is None else decibels(psnr(back, task.source_image)),
        **{region: decibels(value) for region, value in near._asdict().items()},
        "changed": verdict.changed,
        "kept": verdict.kept,
        "gap": gap,
        "nfe": made.nfe,
        "seconds": round(made.seconds, 3),
    }


def peak_memory() -> float:
    """The most memory that this process has had so far, in MiB."""
    status = Path("/proc/self/status")
    # Linux's getrusage also counts what the parent had when it started this process.
    if status.is_file() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def sweep(
    model: Model,
    entry: Entry,
    names: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> list[dict[str, Any]]:
    """Run one entry over tasks of PocketBench; goes on where its file of records stops.

    A kill loses at most the edit that was being made.

    Args:
        model: The model.
        entry: What to run.
        names: Names of tasks.
        folder: Where records are kept, `<entry.name>.jsonl`: one line that says what was run, then one for each task.
            The edits of the first ten names, one of each type, are kept beside it, `<entry.name>/<task>.png`.
        seed: Of all random draws.
        progress: Wraps the names that are left, e.g. `tqdm`.

    Returns:
        The records, in the order of `names`. What a method refuses has "refused", the reason, and no numbers.

    Raises:
        EditbookError: The file holds records of other settings, or is damaged.
    """
    method = REGISTRY[entry.method].configured(**entry.options)  # a wrong option is no refusal of a task
    head = {
        "entry": entry.name,
        "method": entry.method,
        "options": dict(entry.options),
        "model": model.name,
        "seed": seed,
        **({"mask": entry.mask} if entry.mask else {}),
    }
    file = RecordFile(writable_folder(folder) / f"{entry.name}.jsonl", head)
    tasks, reader = bench(model.image_size), load_reader()
    for name in progress([name for name in names if name not in file.known]):
        task = tasks.task(name)
        record, image = attempt(model, method, task, reader, mask=entry.mask_for, seed=seed)
        if image is not None and name in names[: len(TYPES)]:
            save_image(image, writable_folder(folder / entry.name) / f"{name}.png")
        file.add({"task": name, "type": TYPES[task.type_id or 0], **record})
    return [file.known[name] for name in names]


def make_edit(
    model: Model, method: Method, task: BenchTask, *, mask: Callable[[BenchTask], Any], seed: int = 0
) -> Edit:
    """An edit of a task as comparisons make it.

    Args:
        model: The model.
        method: What edits.
        task: Of PocketBench.
        mask: What the method is given as a mask for the task, e.g. `Entry.mask_for`.
        seed: Of all random draws.

    Raises:
        EditbookError: The method refuses the task, or the mask needs a word that the task does not have.
    """
    texts: dict[str, Any] = texts_for(method, task)
    return edit(model, task.source_image, method, **texts, seed=seed, mask=mask(task))


def attempt(
    model: Model, method: Method, task: BenchTask, reader: Reader, *, mask: Callable[[BenchTask], Any], seed: int
) -> tuple[dict[str, Any], Image.Image | None]:
    """One edit of a sweep: what is kept of it, and the picture; or the reason why the method refused, and None."""
    try:
        made = make_edit(model, method, task, mask=mask, seed=seed)
    except EditbookError as error:
        return {"refused": str(error)}, None
    return {**measure(made, task, reader([made.image])[0]), "memory": round(peak_memory())}, made.image


SURVEY_TYPES: dict[str, tuple[str, ...]] = {
    "texture": ("change colour", "change material"),
    "shape": ("change object",),
    "style": ("change style",),
    "non-rigid": ("change pose",),
    "object addition": ("add object",),
    "object removal": ("remove object",),
}
"""The columns of the survey's Table 1, and the types of PocketBench that ask for such an edit."""


def not_refused(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of edits that were made: those that were not refused."""
    return [record for record in records if "refused" not in record]


def measured_ticks(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The share of edits that succeed for each column of the survey's Table 1; NaN where none was tried."""
    shares = {}
    for column, types in SURVEY_TYPES.items():
        verdicts = [record["changed"] and record["kept"] for record in not_refused(records) if record["type"] in types]
        shares[column] = statistics.fmean(verdicts) if verdicts else math.nan
    return shares


@dataclass(frozen=True)
class Row:
    """Means over one entry's records; None where it has no such number.

    Args:
        name: The entry.
        count: How many edits.
        refused: How many tasks the method would not do.
        reconstruction: PSNR of the reconstruction to the source, in dB.
        outside: PSNR to the exact answer outside the mask, in dB.
        inside: The same inside.
        success: Share of edits in which what was asked for happened and the rest stayed.
        changed: Share in which it happened.
        kept: Share in which the rest stayed.
        gap: Root mean square of Eq. 9's left side where sampling ends.
        nfe: U-Net evaluations of an edit.
        seconds: Of an edit, the median.
        memory: Peak of the process that made them, in MiB.
    """

    name: str
    count: int
    reconstruction: float | None
    outside: float | None
    inside: float | None
    success: float
    changed: float
    kept: float
    gap: float | None
    nfe: float
    seconds: float
    memory: float
    refused: int = 0


def summary(name: str, records: Sequence[Mapping[str, Any]]) -> Row:
    """The means of one entry.

    Raises:
        EditbookError: There are no records.
    """
    refused, records = len(records) - len(not_refused(records)), not_refused(records)
    if not records:
        raise EditbookError(f"{name} has no records of edits.")

    def mean(key: str) -> float | None:
        values = [record[key] for record in records if record[key] is not None and math.isfinite(record[key])]
        return statistics.fmean(values) if values else None

    return Row(
        name,
        len(records),
        mean("reconstruction"),
        mean("outside"),
        mean("inside"),
        statistics.fmean(record["changed"] and record["kept"] for record in records),
        statistics.fmean(record["changed"] for record in records),
        statistics.fmean(record["kept"] for record in records),
        mean("gap"),
        statistics.fmean(record["nfe"] for record in records),
        statistics.median(record["seconds"] for record in records),
        max(record["memory"] for record in records),
        refused,
    )


def table(records: Mapping[str, Sequence[Mapping[str, Any]]], costs: Mapping[str, Cost] | None = None) -> str:
    """The summaries as a Markdown table, the best success first.

    Args:
        records: By the entry's name.
        costs: Seconds and memory of each entry, from `load_costs`; None takes those of the records, which one
            long process made.
    """
    rows = sorted((summary(name, found) for name, found in records.items()), key=lambda row: -row.success)
    lines = [
        "| | edits | reconstruction, dB | gap | outside, dB | inside, dB | changed | kept | both | NFE | s | MiB |",
        "| --- " + "| ---: " * 11 + "|",
    ]
    for row in rows:
        back, gap, outside, inside = (
            "–" if value is None else format(value, form)
            for value, form in (
                (row.reconstruction, ".1f"),
                (row.gap, ".3f"),
                (row.outside, ".1f"),
                (row.inside, ".1f"),
            )
        )
        edits = f"{row.count} ({row.refused} refused)" if row.refused else row.count
        cost = row if costs is None else costs.get(row.name)
        spent = "– | –" if cost is None else f"{cost.seconds:.1f} | {cost.memory:.0f}"
        lines.append(
            f"| {row.name} | {edits} | {back} | {gap} | {outside} | {inside} "
            f"| {row.changed:.0%} | {row.kept:.0%} | {row.success:.0%} "
            f"| {row.nfe:.0f} | {spent} |"
        )
    return "\n".join(lines)


def survey_ticks(entries: Iterable[Entry]) -> dict[str, frozenset[str]]:
    """The columns of the survey's Table 1 that have a tick in the row of each entry's method."""
    return {entry.name: frozenset(REGISTRY[entry.method].card.edit_types) for entry in entries}


def ticks_table(records: Mapping[str, Sequence[Mapping[str, Any]]], entries: Iterable[Entry]) -> str:
    """The survey's Table 1 beside what was measured, as Markdown: its tick, and the share of edits that succeed.

    Args:
        records: Of each entry, in the order of rows.
        entries: The suite's, which say what method each is.
    """
    ticks = survey_ticks(entries)
    lines = ["| method | " + " | ".join(SURVEY_TYPES) + " |", "| --- " + "| :---: " * len(SURVEY_TYPES) + "|"]
    for name, found in records.items():
        cells = (
            f"{'✓' if column in ticks[name] else '·'} {'–' if math.isnan(share) else format(share, '.0%')}"
            for column, share in measured_ticks(found).items()
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


P2P = {"guidance_scale": 7.5, "cross_replace": 0.4, "self_replace": 0.6}
"""Prompt-to-Prompt as PIE-Bench's own runs set it: what differs between the entries is the inversion alone."""

SHORT = {"steps": 20}
"""Enough for the pocket model; all else is a method's own default."""

SCORE = {"steps": 60, "guidance_scale": 4.0}

SUITES: dict[str, tuple[Entry, ...]] = {
    "inversions": (
        Entry("ddim-inversion", "prompt-to-prompt", P2P),
        Entry("ddim-inversion-guided", "prompt-to-prompt", {**P2P, "source_guidance_scale": 7.5}),
        *(
            Entry(name, "prompt-to-prompt", {**P2P, "inversion": name})
            for name in (
                "null-text-inversion",
                "negative-prompt-inversion",
                "proxedit",
                "dynamic-prompt-learning",
                "pnp-inversion",
                "direct-inversion",
                "tic-inversion",
                "kv-inversion",
                "target-text-inversion",
            )
        ),
        Entry(
            "proxedit-soft",
            "prompt-to-prompt",
            {**P2P, "inversion": "proxedit", "prox": "l1", "quantile": 0.95},
        ),
        Entry(
            "edit-friendly-ddpm",
            "prompt-to-prompt",
            {**P2P, "inversion": "edit-friendly-ddpm", "skip": 0.24, "inversion_scale": 1.0},
        ),
        # Editors of their own, with their papers' settings: no Prompt-to-Prompt.
        Entry("ledits-pp", "ledits-pp"),
        Entry("null-text-guidance", "null-text-guidance"),
        Entry("latent-inversion-timestep-aware", "latent-inversion-timestep-aware"),
        Entry("disentanglement-diffusion", "disentanglement-diffusion"),
    ),
    "attention": (
        *(
            Entry(name, name, SHORT)
            for name in (
                "prompt-to-prompt",
                "plug-and-play",
                "masactrl",
                "tic-inversion",
                "baret",
                "ti-guided-edit",
                "kv-inversion",
            )
        ),
        # Its own default, Null-text Inversion and 15 updates in each of 25 steps, takes minutes an edit.
        Entry(
            "mag-edit",
            "mag-edit",
            {**SHORT, "inversion": "ddim-inversion", "scale": 10.0, "iterations": 3},
            mask=True,
        ),
        # After 60 updates the target is reached on the small model; then it is left behind. So is the contrast's weight
        # chosen for it: see their pages.
        Entry("delta-denoising-score", "delta-denoising-score", SCORE),
        Entry("contrastive-denoising-score", "contrastive-denoising-score", {**SCORE, "contrastive_weight": 300.0}),
    ),
    "mask-methods": (
        Entry("img2img", "img2img", SHORT, mask=True),
        Entry("diffedit", "diffedit", SHORT),
        Entry("diffedit-exact", "diffedit", SHORT, mask=True),
        # The paper draws 32 results with 100 steps each; a quarter of the steps and four results are ten seconds.
        Entry("blended-diffusion", "blended-diffusion", {"steps": 25, "candidates": 4}, mask=True),
        Entry("blended-latent-diffusion", "blended-latent-diffusion", SHORT, mask=True),
        Entry("pfb-diff", "pfb-diff", SHORT, mask=True),
        Entry("instructedit", "instructedit", SHORT),
        Entry("watch-your-steps", "watch-your-steps", SHORT, model="pocket-instruct-pix2pix"),
        Entry("instruct-pix2pix", "instruct-pix2pix", SHORT, model="pocket-instruct-pix2pix"),
        Entry("mfl", "mfl", {**SHORT, "candidates": 4}),
    ),
}
"""Comparisons of the book by name."""


def suite(name: str) -> tuple[Entry, ...]:
    """The entries of a comparison.

    Raises:
        EditbookError: There is none of that name.
    """
    if name not in SUITES:
        raise unknown("comparison", name, SUITES)
    return SUITES[name]


__all__ = [
    "RECORDS",
    "SUITES",
    "SURVEY_TYPES",
    "Cost",
    "Entry",
    "Row",
    "attempt",
    "drawn_tasks",
    "filled",
    "load_costs",
    "load_pictures",
    "load_records",
    "make_edit",
    "measure",
    "measured_ticks",
    "not_refused",
    "peak_memory",
    "suite",
    "summary",
    "sweep",
    "table",
    "texts_for",
]
