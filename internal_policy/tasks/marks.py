"""The numbers that come with a response, and the names of their columns."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from internal_policy.errors import InputError, quoted

MARK = "mark."
"""How the columns with marks begin in a table of rollouts; the name of the mark follows."""
LONGEST_NAME = 80
"""Characters of the name of a mark."""
MOST_MARKS = 200
"""Marks of a response."""


def number_of(cell: Any) -> float | None:
    """A finite number or a boolean as a number; None for anything else."""
    if not isinstance(cell, bool | int | float):
        return None
    try:
        value = float(cell)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def marks_of(values: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, float]:
    """The cells that are numbers, by name. Raises InputError for a name that can't be a column."""
    skipped = {*without}
    found = {name: number_of(cell) for name, cell in values.items() if name not in skipped}
    marks = {name: value for name, value in found.items() if value is not None}
    check_names(marks)
    return marks


def check_names(names: Iterable[str]) -> None:
    """Raise InputError for names of marks that can't be columns, or too many of them."""
    names = [*names]
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            raise InputError(
                f"a mark is called {quoted(name)}; expected a printable name of at most {LONGEST_NAME} characters."
            )
    if len(names) > MOST_MARKS:
        raise InputError(f"the response has {len(names)} marks; expected at most {MOST_MARKS}. Remove some.")


def first(marks: Mapping[str, float]) -> float | None:
    """The first mark; None if there is none."""
    return next(iter(marks.values()), None)
