"""The pocket world: scenes drawn by a program, so that the right answer of every edit is known. Needs no torch."""

from .bench import COUNTS, bench
from .benchmark import TYPES, Benchmark, BenchTask
from .distribution import BACKGROUNDS, corpus, is_held_out, sample, sample_edit, sample_held_out
from .edits import Change
from .grammar import EDIT_TYPES, PHRASINGS, QUALITIES
from .palette import COLOURS, MATERIALS
from .scene import Scene, Thing
from .sprites import ACCESSORIES, OBJECTS, POSES
from .styles import STYLES
from .tasks import NAMED, ChangedWords, EditTask, changed_words, make_task, task

__all__ = [
    "ACCESSORIES",
    "BACKGROUNDS",
    "COLOURS",
    "COUNTS",
    "EDIT_TYPES",
    "MATERIALS",
    "NAMED",
    "OBJECTS",
    "PHRASINGS",
    "POSES",
    "QUALITIES",
    "STYLES",
    "TYPES",
    "BenchTask",
    "Benchmark",
    "Change",
    "ChangedWords",
    "EditTask",
    "Scene",
    "Thing",
    "bench",
    "changed_words",
    "corpus",
    "is_held_out",
    "make_task",
    "sample",
    "sample_edit",
    "sample_held_out",
    "task",
]
