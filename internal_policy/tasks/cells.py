"""Check the cells of a rollout's row."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from internal_policy.errors import InputError, quoted

LARGEST = 2**31 - 1
"""The largest token id and sample number: both are stored as 32-bit integers."""
FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""Ways to write a boolean, in lower case: CSV and pandas turn booleans into texts and numbers."""


def is_empty(cell: Any) -> bool:
    """Whether a cell is empty; pandas writes empty cells as NaN."""
    return cell is None or cell == "" or cell != cell or (isinstance(cell, str) and cell.lower() == "nan")


def text(values: Mapping[str, Any], column: str) -> str | None:
    """The text in a cell, None if it is empty. Raises InputError for anything else."""
    cell = values.get(column)
    if isinstance(cell, str):
        return cell
    if not is_empty(cell):
        raise InputError(f"'{column}' holds {quoted(cell)}; expected text.")
    return None


def ids(values: Mapping[str, Any], column: str) -> tuple[int, ...]:
    """The token ids in a cell, as a list or as JSON text (CSV). Raises InputError for anything else."""
    cell = _parsed(values[column])
    if not isinstance(cell, list) or not cell:
        raise InputError(f"'{column}' holds {quoted(cell)}; expected a list of one or more token ids.")
    for token in cell:
        if type(token) is not int or not 0 <= token <= LARGEST:
            raise InputError(
                f"'{column}' holds {quoted(cell)}; expected a list of token ids, and {quoted(token)} isn't one."
            )
    return tuple(cell)


def numbers(values: Mapping[str, Any], column: str, tokens: int) -> tuple[float, ...] | None:
    """A finite number for each of so many tokens, as a list or as JSON text (CSV); None if the cell is empty.

    Raises InputError for anything else.
    """
    if is_empty(values.get(column)):
        return None
    cell = _parsed(values[column])
    found = [_number(value) for value in cell] if isinstance(cell, list) else []
    if len(found) != tokens or None in found:
        raise InputError(f"'{column}' holds {quoted(cell)}; expected a list of {tokens} numbers, one for each token.")
    return tuple(value for value in found if value is not None)


def sample(values: Mapping[str, Any], column: str) -> int | None:
    """The sample number in a cell, from 0; None if it is empty. Raises InputError for anything else."""
    cell = values.get(column)
    if is_empty(cell):
        return None
    number = _number(cell)
    if number is None or not number.is_integer() or not 0 <= number <= LARGEST:
        raise InputError(f"'{column}' holds {quoted(cell)}; expected a whole number from 0 to {LARGEST}.")
    return int(number)


def number(values: Mapping[str, Any], column: str) -> float | None:
    """The finite number in a cell, None if it is empty. Raises InputError for anything else."""
    cell = values.get(column)
    if is_empty(cell):
        return None
    if (value := _number(cell)) is None:
        raise InputError(f"the {column} is {quoted(cell)}; expected a number.")
    return value


def flag(values: Mapping[str, Any], column: str) -> bool | None:
    """The boolean in a cell, None if it is empty. Raises InputError for anything else."""
    cell = values.get(column)
    if is_empty(cell):
        return None
    if (value := FLAGS.get(str(cell).lower())) is None:
        raise InputError(f"'{column}' holds {quoted(cell)}; expected true or false.")
    return value


def _parsed(cell: Any) -> Any:
    """A cell, read as JSON if it is a text that is JSON."""
    if isinstance(cell, str):
        with suppress(ValueError, RecursionError):
            return json.loads(cell)
    return cell


def _number(cell: Any) -> float | None:
    """A cell as a finite number, None if it isn't one."""
    try:
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
