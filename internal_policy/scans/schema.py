"""The types of the columns that the tables of a scan have in common."""

from collections.abc import Callable, Mapping

import pandas as pd
import pyarrow as pa
from pyarrow import types

from internal_policy.errors import InputError
from internal_policy.tasks.marks import MARK


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)


def _is_ids(kind: pa.DataType) -> bool:
    return (types.is_list(kind) or types.is_large_list(kind)) and types.is_integer(kind.value_type)


COLUMNS: Mapping[str, Mapping[str, Callable[[pa.DataType], bool]]] = {
    "rollouts": {
        "rollout": types.is_integer,
        **dict.fromkeys(("prompt_ids", "response_ids"), _is_ids),
        **dict.fromkeys(("problem", "answer", "response"), _is_text),
        "reward": types.is_floating,
    },
    "policies": {**dict.fromkeys(("rollout", "position", "layer"), types.is_integer), "readout": _is_text},
    "layers": {
        **dict.fromkeys(("rollout", "layer", "tokens"), types.is_integer),
        **dict.fromkeys(("readout", "site"), _is_text),
    },
    "vocabulary": {"id": types.is_integer, "token": _is_text},
}
"""Table -> its columns, and whether a type is right for each. It may have more."""

MEASURED = ("policies", "layers")
"""Tables whose other columns are numbers, or as many top tokens in each row."""


def _is_measure(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_fixed_size_list, types.is_null)
    )


def complaint(table: str, schema: pa.Schema) -> str | None:
    """What is wrong with the columns of a table with that name, in words; None if their types are right."""
    if twice := next((name for name in schema.names if len(schema.get_all_field_indices(name)) > 1), None):
        return f"it has the column {twice:.40} twice"
    known = COLUMNS.get(table, {})
    measured = [field for field in schema if table in MEASURED and field.name not in known]
    if odd := next((field for field in measured if not _is_measure(field.type)), None):
        return f"its column {odd.name:.40} is {odd.type!s:.40}"
    marks = {name: types.is_floating for name in schema.names if table == "rollouts" and name.startswith(MARK)}
    for name, is_right in {**known, **marks}.items():
        if name in schema.names and not is_right(schema.field(name).type):
            return f"its column {name} is {schema.field(name).type!s:.40}"
    return None


def whole(table: str, found: pd.DataFrame, source: object) -> pd.DataFrame:
    """A table of a scan that was read with all of its columns. Raises InputError if it lacks one that all have."""
    if missing := sorted(COLUMNS[table].keys() - {*found.columns}):
        raise InputError(f"The table {table} of {source} has no column {missing[0]}. Measure the scan again.")
    return found
