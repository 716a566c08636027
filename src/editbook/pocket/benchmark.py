"""A benchmark: a sequence of editing tasks that are drawn, or read from disk, when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

from ..errors import EditbookError, unknown
from . import grammar
from .tasks import EditTask

TYPES = ("random", *grammar.EDIT_TYPES[:9])
"""PIE-Bench's ten types of edit; the place in this tuple is its `editing_type_id`."""


@dataclass(frozen=True, kw_only=True)
class BenchTask(EditTask):
    """An editing task that belongs to a benchmark.

    Args:
        id: Its name in the benchmark.
        type_id: Index into `TYPES`; None if the benchmark has no types. `edit_type` says what the edit is, which for
            PIE-Bench's type 0 ("random") is known in PocketBench only.
        image_path: Where the source picture, and so an edited one, stands in the benchmark's folder of pictures.
        blended_words: PIE-Bench's `blended_word`, the words whose attention marks where a method such as
            Prompt-to-Prompt may change the picture, in the source and in the target prompt; None if it names none.
    """

    id: str
    type_id: int | None = None
    image_path: str = ""
    blended_words: tuple[str, str] | None = None


class Entry(NamedTuple):
    """A task that has not been made yet."""

    id: str
    type_id: int | None
    make: Callable[[], BenchTask]


class Benchmark(Sequence[BenchTask]):
    """Tasks that are drawn, or read from disk, when they are asked for, and each time anew.

    Args:
        name: What the benchmark is called.
        entries: Its tasks, in order.
    """

    def __init__(self, name: str, entries: Sequence[Entry]) -> None:
        self.name = name
        self._entries = tuple(entries)

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self)} tasks>"

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> BenchTask: ...
    @overload
    def __getitem__(self, index: slice) -> Benchmark: ...
    def __getitem__(self, index: int | slice) -> BenchTask | Benchmark:
        if isinstance(index, slice):
            return Benchmark(self.name, self._entries[index])
        return self._entries[index].make()

    def __iter__(self) -> Iterator[BenchTask]:
        return (entry.make() for entry in self._entries)

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of all tasks; no task is made for it."""
        return tuple(entry.id for entry in self._entries)

    def task(self, id: str) -> BenchTask:
        """The task of that name.

        Raises:
            EditbookError: There is none; the nearest name is suggested.
        """
        for entry in self._entries:
            if entry.id == id:
                return entry.make()
        raise unknown(f"task of {self.name}", id, self.ids)

    def of_type(self, name: str) -> Benchmark:
        """The tasks of one of `TYPES`; no task is made for it.

        Raises:
            EditbookError: Unknown type, or the benchmark has no task of it, or no types at all.
        """
        if name not in TYPES:
            raise unknown("edit type", name, TYPES)
        entries = [entry for entry in self._entries if entry.type_id == TYPES.index(name)]
        if self._entries and all(entry.type_id is None for entry in self._entries):
            raise EditbookError(f"{self.name} does not say of what type its tasks are; take all of its tasks.")
        if not entries:
            raise EditbookError(f"{self.name} has no tasks of type {name!r}; take another type, or all of its tasks.")
        return Benchmark(self.name, entries)
