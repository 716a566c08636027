"""The one exception type that a user of editbook is meant to read, and the words for "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def check_options(kind: str, values: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Check that options are of their defaults' types: a number, a whole number, a text, yes or no.

    Options whose default is something else (None, a mapping) are left to the one who reads them.

    Args:
        kind: Whose options they are.
        values: The options by name.
        defaults: What each of them is by default.

    Raises:
        EditbookError: One is of another type; the message names it.
    """
    for name, value in values.items():
        default = defaults.get(name)
        for type_, accepted, words in _TYPES:
            if isinstance(default, type_):
                if not isinstance(value, accepted) or (isinstance(value, bool) and type_ is not bool):
                    raise EditbookError(f"{name} of {kind} must be {words}, got {value!r}.")
                break


_TYPES: tuple[tuple[type, tuple[type, ...], str], ...] = (
    (bool, (bool,), "True or False"),
    (int, (int,), "a whole number"),
    (float, (int, float), "a number"),
    (str, (str,), "a text"),
)
