"""Records of sweeps: files of JSON lines that survive a kill, and those that ship with the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import EditbookError
from .files import save_json, writable_folder
from .images import read_image


class RecordFile:
    """A file that begins with a line that says what was run; then there is one line for each task.

    A kill loses at most the record that was being made. A last line that a kill has torn is cut off.

    Args:
        path: The file; made with the first record.
        head: What is run. JSON-able.

    Raises:
        EditbookError: The file holds records of other settings, or is damaged.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._path, self._head = path, head
        self.known = {record["task"]: record for record in _read(path, head)} if path.is_file() else {}
        """Records by the task's name."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record; its "task" is its name."""
        empty = not self._path.is_file() or self._path.stat().st_size == 0
        with self._path.open("a", encoding="utf-8") as file:
            for line in [self._head, record] if empty else [record]:
                file.write(json.dumps(line) + "\n")
        self.known[record["task"]] = dict(record)


def _read(path: Path, head: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The records of a file. A last line that was torn by a kill is cut off, when there is a `head` to go on under."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if head is not None and lines and not lines[-1].endswith("\n"):
        lines = lines[:-1]
        path.write_text("".join(lines), encoding="utf-8")
    if not lines:
        return []
    try:
        first, *records = (json.loads(line) for line in lines)
    except ValueError:
        raise EditbookError(f"{path} is damaged: delete it, and run the sweep again.") from None
    if head is not None and first != json.loads(json.dumps(head)):
        raise EditbookError(f"{path} holds records of other settings: delete it, or choose another folder.")
    return records


RECORDS = Path(__file__).parent / "records"
"""Records that ship with the library: a folder for each comparison of the book."""


def _folder(name: str | Path) -> Path:
    """Where a comparison's records lie, by the name of one that ships or by the folder."""
    shipped = RECORDS / name
    return shipped if shipped.is_dir() else Path(name)


def load_records(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """All records of a folder, by the entry's name.

    Args:
        folder: A folder that `sweep` wrote, or the name of a comparison whose records ship.

    Raises:
        EditbookError: There are none, or a file is damaged.
    """
    files = sorted(_folder(folder).glob("*.jsonl"))
    if not files:
        raise EditbookError(f"{folder} holds no records: run `editbook bench run` first.")
    return {path.stem: _read(path) for path in files}


def load_pictures(folder: str | Path) -> dict[str, dict[str, Image.Image]]:
    """The edited pictures that a comparison kept, by entry and by task; one task of each type.

    Args:
        folder: As for `load_records`.
    """
    found: dict[str, dict[str, Image.Image]] = {}
    for path in sorted(_folder(folder).glob("*/*.png")):
        found.setdefault(path.parent.name, {})[path.stem] = read_image(path)
    return found


_COSTS = "costs.json"


@dataclass(frozen=True)
class Cost:
    """What an edit of one entry costs.

    Args:
        seconds: The median over the edits.
        memory: The most memory that the process had, model and Python included, in MiB. On a GPU that is the memory of
            the host.
        edits: How many edits were made.
    """

    seconds: float
    memory: float
    edits: int


def save_costs(folder: Path, costs: Mapping[str, Cost]) -> None:
    """Write costs beside a comparison's records; what the file says of other entries stays."""
    known = load_costs(folder) if (folder / _COSTS).is_file() else {}
    merged = {**known, **costs}
    save_json({name: asdict(merged[name]) for name in sorted(merged)}, writable_folder(folder) / _COSTS)


def load_costs(folder: str | Path) -> dict[str, Cost]:
    """What each entry of a comparison costs.

    Args:
        folder: A folder that `save_costs` wrote to, or the name of a comparison whose records ship.

    Raises:
        EditbookError: There is no such file, or it is damaged.
    """
    path = _folder(folder) / _COSTS
    if not path.is_file():
        raise EditbookError(f"{folder} holds no costs: run `editbook bench time` first.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: Cost(**values) for name, values in found.items()}
    except (ValueError, TypeError, AttributeError):
        raise EditbookError(f"{path} is damaged: delete it, and run `editbook bench time` again.") from None
