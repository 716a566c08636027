"""The one exception type that a user of editbook is meant to read, and the words for "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EditbookError(ValueError):
    """Input that editbook cannot work with. The message is one line and says what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> EditbookError:
    """The error for a name that is not in a fixed set, with the nearest known name suggested.

    Args:
        kind: What the name was meant to be, e.g. ``"method"``.
        name: What the user wrote.
        known: Every name that would have been accepted.
    """
    options = sorted(known)
    near = get_close_matches(str(name).lower(), options, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(options)}."
    return EditbookError(f"Unknown {kind} {name!r}. {hint}")
