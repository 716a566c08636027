"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import EditbookError


def write_file(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` in one step: whoever looks sees the old file or the whole new one.

    The data goes to a temporary name in the same folder, which is then renamed.

    Raises:
        EditbookError: The folder is missing or not writable, the path is a folder, or the disk is full.
    """
    path = Path(path)
    # Not tempfile: it makes files that only their owner may read, and the rename would keep that.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise EditbookError(f"Cannot write {str(path)!r}: {reason}. Choose another place.") from error
    finally:
        with suppress(OSError, ValueError):  # where there is no such folder the error above has said so
            temporary.unlink(missing_ok=True)
    return path


def save_json(value: Any, path: str | os.PathLike[str]) -> Path:
    """Write `value` as readable JSON in one step; see `write_file`.

    NumPy numbers and arrays and torch tensors become numbers and lists, paths become strings.

    Raises:
        EditbookError: Not writable, or `value` holds something that JSON cannot (a function, NaN, infinity).
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
        data = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EditbookError(f"Cannot write {str(path)!r} as JSON: {error}.") from error
    return write_file(path, data)


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder, with its parents, and prove that a file can be written there.

    Call it before a long computation, so that a bad output path costs a moment and not the result.

    Raises:
        EditbookError: It cannot be made, is a file, or takes no files.
    """
    path = Path(path)
    probe = path / f".{secrets.token_hex(8)}.tmp"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"Cannot write into the folder {str(path)!r}: {reason}. Choose another output folder."
        raise EditbookError(message) from error
    return path


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
