"""Reading what others wrote: JSON entries that, when something is wrong with them, say which one and what."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import EditbookError
from ..images import FORMATS, ImageWarning, as_image, read_image

UNSPECIFIED = "unspecified"
"""The `edit_type` of tasks whose benchmark does not say it."""


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        kind: What it has to hold, dict or list.

    Raises:
        EditbookError: No such file, damaged or truncated, of another kind or empty, or a name stands in it twice.
    """
    if not path.is_file():
        raise EditbookError(f"{str(path)!r} does not exist. Give the folder that holds {path.name}.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except EditbookError as error:
        raise EditbookError(f"{str(path)!r}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise EditbookError(f"{str(path)!r} is not valid JSON, it is damaged or truncated: {error}.") from error
    if not isinstance(value, kind):
        raise EditbookError(f"{str(path)!r} holds a {type(value).__name__}, and should hold a {kind.__name__}.")
    if not value:
        raise EditbookError(f"{str(path)!r} has no entries.")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise EditbookError(f"{double!r} stands there twice; keep one of them.")
    return values


def check_id(id: str) -> None:
    """Raise unless the name of a task can begin the name of a file: files called after it stay in their folder.

    Raises:
        EditbookError: It is empty, names another folder or a drive (of any system), or holds a null character.
    """
    # Windows' rules are the stricter ones: both separators and drives.
    if id in ("", "..") or PureWindowsPath(id).name != id or "\0" in id:
        raise EditbookError(f"{id!r} cannot be the id of a task: it is empty, or no plain file name. Rename it.")


@dataclass(frozen=True)
class Stored:
    """A picture that is kept inside of another file, e.g. in a column of a table.

    Args:
        name: What it is called there.
        data: The bytes of its own file.
    """

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def image(self) -> Image.Image:
        """The picture, mode RGB; raises what `read_image` raises."""
        try:
            return as_image(Image.open(BytesIO(self.data), formats=FORMATS))
        except UnidentifiedImageError:
            raise EditbookError("it is not a PNG, JPEG or WebP picture, or its start is damaged.") from None


@dataclass(frozen=True)
class Record:
    """One entry of a JSON file, or one row of a table.

    Args:
        file: Where it stands.
        name: What it is called there.
        values: Its content.
    """

    file: Path
    name: str
    values: Any

    def error(self, message: object) -> EditbookError:
        """The message with the entry and the file before it."""
        return EditbookError(f"Entry {self.name!r} of {str(self.file)!r}: {message}")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Puts the entry's name before the message of an `EditbookError` that is raised inside."""
        try:
            yield
        except EditbookError as error:
            raise self.error(error) from error

    def check_id(self, id: str) -> None:
        """As `check_id`, with the entry's name before the message."""
        with self.named():
            check_id(id)

    def get(self, key: str, kind: type) -> Any:
        """The value of a key.

        Raises:
            EditbookError: There is no such entry, it has no such key, or its value is of another kind.
        """
        if self.values is None:
            raise self.error("it is missing.")
        if not isinstance(self.values, dict):
            raise self.error(f"it is a {type(self.values).__name__}, and should be an object with names.")
        if key not in self.values:
            raise self.error(f"{key!r} is missing.")
        value = self.values[key]
        if not isinstance(value, kind):
            raise self.error(f"{key!r} should be a {kind.__name__}, not a {type(value).__name__}.")
        return value

    def path(self, folder: Path, name: str) -> Path:
        """A file of this entry.

        Raises:
            EditbookError: The name leads out of the folder, or there is no such file.
        """
        relative = PureWindowsPath(name)  # reads both separators, and knows drives
        if not name or relative.anchor or ".." in relative.parts or "\0" in name:
            raise self.error(f"{name!r} is not a path inside {str(folder)!r}.")
        if not (path := folder / name).is_file():
            raise self.error(f"{str(path)!r} does not exist; the folder is incomplete.")
        return path

    def image(self, source: Path | Stored) -> Image.Image:
        """A picture of this entry, mode RGB; raises what `read_image` raises."""
        if isinstance(source, Path):
            with self.named():
                return read_image(source)
        try:
            return source.image()
        except EditbookError as error:
            raise self.error(f"{str(source)!r}: {error}") from error

    def region(self, source: Path | Stored) -> np.ndarray:
        """The region that a mask picture marks: what was erased from it, or else what is white.

        Returns:
            bool (height, width) at the picture's own size.

        Raises:
            EditbookError: As `image` does, or it marks nothing, or it is coloured and nothing was erased.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # that parts are transparent is the point here
            shown = np.asarray(self.image(source))
        with Image.open(
            source if isinstance(source, Path) else BytesIO(source.data)
        ) as file:  # `image` has found it sound, and drops the transparency
            region: np.ndarray = np.asarray(file.convert("RGBA").getchannel("A")) < 255
        if not region.any():
            if (shown != shown[..., :1]).any():
                raise self.error(f"{str(source)!r} marks no region: it is coloured, and no part of it is transparent.")
            region = shown[..., 0] > 127
        if not region.any():
            raise self.error(f"{str(source)!r} marks no region: it is black all over.")
        return region
