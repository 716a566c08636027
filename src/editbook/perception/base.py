"""What a segmenter and a grounder are, and what all of them ask of their input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from ..errors import EditbookError

Picture = Image.Image | np.ndarray
_Loaded = TypeVar("_Loaded")

LEVELS = ("part", "object", "object with its shadow")
"""What the three masks of the pocket segmenter and of the oracle are, in their order; Segment Anything's are nested
likewise, but mean nothing in particular."""


class Segmenter(Protocol):
    """From a place in a picture to outlines."""

    name: str

    def segment(
        self,
        image: Picture,
        points: Sequence[Sequence[float]] | np.ndarray | None = None,
        labels: Sequence[int] | np.ndarray | None = None,
        boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outline what is shown to it: by clicks on *one* object, or by boxes around several.

        Args:
            image: The picture, of any size.
            points: Clicks (x, y) in pixels, (k, 2).
            labels: For each click, 1: this belongs to it, 0: this does not; None takes all as 1.
            boxes: x0, y0, x1, y1 in pixels, (k, 4).

        Returns:
            Masks, bool (k, height, width), and how good the segmenter holds them to be, (k,) in [0, 1]. Three of
            different extent for clicks, of which some may be empty; one for each box.

        Raises:
            EditbookError: See `check_points` and `check_boxes`; neither or both were given.
        """
        ...

    def everything(self, image: Picture) -> tuple[np.ndarray, np.ndarray]:
        """All entities of a picture, the best first: masks, bool (k, height, width), no two over one pixel; scores."""
        ...


class Grounder(Protocol):
    """From words to places in a picture."""

    name: str

    def ground(self, image: Picture, text: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Find what a text names.

        Args:
            image: The picture, of any size.
            text: One phrase, or several with ".", "," or "and" between them.

        Returns:
            Boxes x0, y0, x1, y1 in pixels, float32 (k, 4), best first; scores (k,) in [0, 1]; the phrase of each. k is
            0 where nothing was found.

        Raises:
            EditbookError: The text is empty.
        """
        ...


def loaded(what: str, name: str | Path, load: Callable[[], _Loaded]) -> _Loaded:
    """The result of `load`, or one line that says what could not be loaded and what to do."""
    try:
        return load()
    except ImportError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EditbookError(f"{what} needs a package that is missing: {reason}") from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EditbookError(
            f"Could not load {what} from {str(name)!r}: {reason} "
            "Give 'pocket', a folder that holds it, or the id of one that was downloaded before."
        ) from None


def check_prompts(size: tuple[int, int], points: Any, labels: Any, boxes: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Clicks and their labels as arrays, or None if there are boxes.

    Args:
        size: Width and height of the picture.
        points: See `Segmenter.segment`.
        labels: The same.
        boxes: The same; checked by `check_boxes`.

    Raises:
        EditbookError: Neither or both, labels without points, or what `check_points` says.
    """
    if (points is None) == (boxes is None):
        raise EditbookError("Show the segmenter what to outline: give points or boxes (one of the two).")
    if points is None:
        if labels is not None:
            raise EditbookError("labels belong to points: give points, or leave out labels.")
        return None
    return check_points(size, points, labels)


def check_points(size: tuple[int, int], points: Any, labels: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Clicks float64 (k, 2) and their labels int64 (k,).

    Raises:
        EditbookError: Not of this shape, none at all, outside of the picture, as many labels as points are not there, a
            label that is neither 0 nor 1, or not one that is 1.
    """
    at = _numbers("points", points, 2)
    width, height = size
    for x, y in at:
        if not (0 <= x < width and 0 <= y < height):
            raise EditbookError(f"The click ({x:g}, {y:g}) is outside the picture of {width} x {height} pixels.")
    given = np.ones(len(at), np.int64) if labels is None else np.asarray(labels)
    if given.shape != (len(at),):
        raise EditbookError(f"labels must hold one number for each of the {len(at)} points, got {given.size}.")
    if not np.isin(given, (0, 1)).all() or not (given == 1).any():
        raise EditbookError("labels are 1 (belongs to the object) or 0 (does not), and at least one is 1.")
    return at, given.astype(np.int64)


def check_boxes(size: tuple[int, int], boxes: Any) -> np.ndarray:
    """Boxes float64 (k, 4), cut to the picture; k may be 0.

    Raises:
        EditbookError: Not of this shape; empty, inverted or outside of the picture.
    """
    if np.size(boxes) == 0:
        return np.zeros((0, 4))
    at = _numbers("boxes", boxes, 4)
    width, height = size
    cut = np.clip(at, 0, [width, height, width, height])
    for given, (x0, y0, x1, y1) in zip(at, cut, strict=True):
        if not (x0 < x1 and y0 < y1):
            said = ", ".join(f"{value:g}" for value in given)
            raise EditbookError(
                f"The box ({said}) holds no pixel of the picture of {width} x {height}: give x0 < x1, y0 < y1."
            )
    return cut


def _numbers(what: str, values: Any, columns: int) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != columns or not len(array) or not np.isfinite(array).all():
        raise EditbookError(f"{what} are rows of {columns} finite numbers (in pixels), got {values!r}.")
    return array


def exclusive(masks: np.ndarray, scores: np.ndarray, overlap: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Masks that share no pixel: the better one of two keeps it, and one that a better one covers is dropped.

    Args:
        masks: bool (k, height, width).
        scores: (k,).
        overlap: Share of a mask that may be taken by better ones.
    """
    taken = np.zeros(masks.shape[1:], bool)
    kept, of = [], []
    for index in np.argsort(-scores, kind="stable"):
        rest = masks[index] & ~taken
        if rest.sum() > (1 - overlap) * masks[index].sum():
            kept.append(rest)
            of.append(scores[index])
            taken |= rest
    return np.array(kept, bool).reshape(-1, *masks.shape[1:]), np.array(of, np.float32)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The smallest box x0, y0, x1, y1 around a mask that is not empty; x1 and y1 are past its last pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 if both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def phrases_of(text: str) -> list[str]:
    """The phrases of a text, split at ".", "," and "and"; lower case is left to the models.

    Raises:
        EditbookError: There is none.
    """
    parts = [text]
    for between in (".", ",", " and "):
        parts = [piece for part in parts for piece in part.split(between)]
    found = [part.strip().removeprefix("and ") for part in parts if part.strip()]
    if not found:
        raise EditbookError(f"The grounder needs a text that names something, got {text!r}.")
    return found
