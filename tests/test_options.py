"""Options say which values they take; one check names the option, its values, and what was given."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import pytest

import editbook
from editbook.errors import EditbookError
from editbook.inversion import INVERSIONS, make_inverter
from editbook.options import check_fields, fraction, option


@dataclass
class Settings:
    count: int = option(3, low=1)
    share: float = option(0.5, above=0, high=1)
    start: float = fraction(0.1)
    slack: float = option(1.0, low=0, high=math.inf, hint="0 never stops")
    rate: float = option(0.1, above=0)
    limit: float = option(0.0, below=1)
    cells: int | None = option(None, low=0, what="a number of cells")
    kind: str = option("near", among=("near", "far"))
    word: str | None = None
    on: bool = False
    anything: str | tuple[str, str] | None = None

    def __post_init__(self) -> None:
        check_fields("a thing", self)


@dataclass
class Other(Settings):
    count: int = 4
    start: float = option(2.0, low=1, high=3)


@pytest.mark.parametrize(
    "values",
    [
        {"count": 1, "share": 1, "start": 0, "slack": math.inf, "limit": -5.0, "cells": 0, "kind": "far"},
        {"start": 1.0, "slack": 0, "cells": None, "word": "cat", "on": True, "anything": ("a", "b")},
        {"cells": 10**6, "word": None, "anything": 7},
    ],
)
def test_values_in_range_pass_as_they_are(values):
    assert asdict(Settings(**values)) == {**asdict(Settings()), **values}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count of a thing must be a whole number of at least 1, got 0."),
        ({"count": 2.0}, "count of a thing must be a whole number, got 2.0."),
        ({"count": True}, "count of a thing must be a whole number, got True."),
        ({"share": 0.0}, "share of a thing must be a number in (0, 1], got 0.0."),
        ({"share": math.nan}, "share of a thing must be a number in (0, 1], got nan."),
        ({"start": 1.01}, "start of a thing must be a fraction of the steps in [0, 1], got 1.01."),
        ({"slack": -1.0}, "slack of a thing must be a number in [0, inf], got -1.0; 0 never stops."),
        ({"rate": 0.0}, "rate of a thing must be a finite number above 0, got 0.0."),
        ({"rate": math.inf}, "rate of a thing must be a finite number above 0, got inf."),
        ({"limit": 1.0}, "limit of a thing must be a finite number below 1, got 1.0."),
        ({"limit": -math.inf}, "limit of a thing must be a finite number below 1, got -inf."),
        ({"cells": -1}, "cells of a thing must be a number of cells of at least 0, got -1."),
        ({"cells": "8"}, "cells of a thing must be a whole number or None, got '8'."),
        ({"kind": "fra"}, "Unknown kind of a thing 'fra'. Did you mean 'far'?"),
        ({"word": 3}, "word of a thing must be a text or None, got 3."),
        ({"on": 1}, "on of a thing must be True or False, got 1."),
    ],
)
def test_other_values_raise_one_line_that_names_option_values_and_what_was_given(values, message):
    with pytest.raises(EditbookError) as caught:
        Settings(**values)
    assert str(caught.value) == message


def test_a_subclass_keeps_the_values_when_it_changes_the_default_only():
    assert Other().count == 4
    with pytest.raises(EditbookError, match="at least 1"):
        Other(count=0)
    with pytest.raises(EditbookError, match=r"start of a thing must be a number in \[1, 3\]"):
        Other(start=0.5)


def test_options_are_checked_through_methods_and_inversions():
    with pytest.raises(EditbookError, match=r"start of masactrl must be a fraction of the steps in \[0, 1\], got 1.5"):
        editbook.methods["masactrl"](start=1.5)
    with pytest.raises(EditbookError, match="self_replace of mag-edit"):  # an option of Prompt-to-Prompt
        editbook.methods["mag-edit"](self_replace=-0.5)
    with pytest.raises(EditbookError, match="skip of edit-friendly-ddpm"):
        make_inverter("edit-friendly-ddpm", {"skip": 1.0})
    with pytest.raises(EditbookError, match="inner_steps of null-text-inversion must be a whole number"):
        editbook.methods["prompt-to-prompt"].configured(inversion="null-text-inversion", inner_steps=1.5)


@pytest.mark.parametrize("name", sorted(INVERSIONS))
def test_every_inversion_checks_the_types_of_its_options(name):
    bad = {bool: "yes", int: "many", float: "much", str: 3}
    for given, default in INVERSIONS[name].options().items():
        if type(default) in bad:
            with pytest.raises(EditbookError, match=f"{given} of {name}"):
                make_inverter(name, {given: bad[type(default)]})
