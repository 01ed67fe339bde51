"""A scan that is still being measured, as tables in memory: what isn't measured yet is missing in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from internal_policy.scans import positions
from internal_policy.scans.store import Tables

LAYERS = pa.schema(
    {"rollout": pa.int32(), "readout": pa.string(), "layer": pa.int32(), "site": pa.string(), "tokens": pa.int32()}
)
"""The table `layers`, which has no rows before everything is measured."""


def tables(
    record: Mapping[str, Any], rollouts: pa.Table, pieces: Sequence[pa.Table], vocabulary: pd.DataFrame
) -> Tables:
    """The scan so far. `pieces` of the table `policies` are measured, at least one.

    The record needs n_layers, d_vocab, model and selection. `vocabulary` must have every token of the pieces.
    """
    policies = pa.concat_tables([*pieces, _missing(record, rollouts, pieces)])
    texts = pa.Table.from_pandas(vocabulary, preserve_index=False)
    kinds = {"rollouts": rollouts, "policies": policies, "layers": LAYERS.empty_table(), "vocabulary": texts}
    return Tables(record, kinds)


def _missing(record: Mapping[str, Any], rollouts: pa.Table, pieces: Sequence[pa.Table]) -> pa.Table:
    """The rows of the table `policies` that aren't measured yet, without values."""
    names = ["rollout", "position", "readout"]
    measured = {cell for piece in pieces for cell in zip(*(piece[name].to_pylist() for name in names), strict=True)}
    chosen = positions.of_record(record)
    lengths = zip(rollouts["rollout"].to_pylist(), map(len, rollouts["response_ids"].to_pylist()), strict=True)
    absent = [
        (rollout, position, readout)
        for rollout, length in lengths
        for position in chosen.of(length)
        for readout in record["selection"]["readouts"]
        if (rollout, position, readout) not in measured
    ]
    layers = [*record["selection"]["layers"], record["n_layers"]]
    n = len(absent) * len(layers)
    schema = pieces[0].schema
    known = {
        name: np.repeat(values, len(layers)) for name, values in zip(names, zip(*absent, strict=True), strict=False)
    }
    known["layer"] = np.tile(layers, len(absent))
    columns = [
        pa.array(known[field.name], type=field.type) if field.name in known else pa.nulls(n, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema) if n else schema.empty_table()
