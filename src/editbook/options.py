"""Options: fields of a dataclass that say which values they take, and one check for all of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .errors import EditbookError, unknown

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "True or False"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
}


@dataclass(frozen=True)
class Values:
    """Which values an option takes: texts, or numbers between two bounds; see `option`."""

    among: tuple[str, ...]
    first: float
    last: float
    with_first: bool
    with_last: bool
    what: str
    hint: str

    def admit(self, value: float) -> bool:
        """Whether a number lies between the bounds; NaN never does, and infinity only where it is one of them."""
        inside = self.first < value < self.last
        return inside or (self.with_first and value == self.first) or (self.with_last and value == self.last)

    def words(self, whole: bool) -> str:
        """The values in words, for a message; of whole numbers or of any."""
        from_below, from_above = self.with_first or self.first > -math.inf, self.with_last or self.last < math.inf
        both = from_below and from_above
        what = self.what or ("a whole number" if whole else "a number" if both else "a finite number")
        if both:
            left, right = "[" if self.with_first else "(", "]" if self.with_last else ")"
            return f"{what} in {left}{self.first:g}, {self.last:g}{right}"
        if from_below:
            return f"{what} {'of at least' if self.with_first else 'above'} {self.first:g}"
        return f"{what} {'of at most' if self.with_last else 'below'} {self.last:g}" if from_above else what


def option(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float = -math.inf,
    below: float = math.inf,
    among: tuple[str, ...] = (),
    what: str = "",
    hint: str = "",
) -> Any:
    """A field of a dataclass whose values `check_fields` knows. A subclass that changes the default keeps them.

    Args:
        default: The default; where it is None, None stays allowed.
        low: The smallest number, or
        above: what numbers must be larger than.
        high: The largest number, or
        below: what numbers must be smaller than.
        among: The texts that are known.
        what: What a number is, for the message.
        hint: What else the message says.
    """
    first, last = above if low is None else low, below if high is None else high
    values = Values(among, first, last, low is not None, high is not None, what, hint)
    return dataclasses.field(default=default, metadata={"values": values})


def fraction(default: float) -> Any:
    """An `option` that is a fraction of the steps."""
    return option(default, low=0, high=1, what="a fraction of the steps")


def check_fields(kind: str, settings: Any) -> None:
    """Check the fields of a dataclass: that each is of its type, if that is a plain one, and has one of its values.

    Args:
        kind: Whose options they are, for the message.
        settings: The dataclass.

    Raises:
        EditbookError: One is of another type or out of its range; the message names it.
    """
    for item in dataclasses.fields(settings):
        value, name = getattr(settings, item.name), f"{item.name} of {kind}"
        plain, *others = str(item.type).split(" | ")
        if others == ["None"] and value is None:
            continue
        if plain in _TYPES and others in ([], ["None"]):
            accepted, words = _TYPES[plain]
            if not isinstance(value, accepted) or (isinstance(value, bool) and plain != "bool"):
                raise EditbookError(f"{name} must be {' or '.join([words, *others])}, got {value!r}.")
        values = _values(type(settings), item.name)
        if values is None:
            continue
        if values.among and value not in values.among:
            raise unknown(name, value, values.among)
        if not values.among and not values.admit(value):
            hint = f"; {values.hint}" if values.hint else ""
            raise EditbookError(f"{name} must be {values.words(plain == 'int')}, got {value!r}{hint}.")


def _values(kind: type, name: str) -> Values | None:
    """What the nearest class says that says anything: defaults alone are changed more often."""
    for base in kind.__mro__:
        item = vars(base).get("__dataclass_fields__", {}).get(name)
        if item is not None and "values" in item.metadata:
            found: Values = item.metadata["values"]
            return found
    return None
