"""Lay the numbers of a batch out as the tables of a scan."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from internal_policy.measure.sites import WITH_FINAL
from internal_policy.scans.selection import Plan, Selection

Numbers = Mapping[tuple[str, str], np.ndarray]
"""(readout, name) -> (positions, points of the plan); topk_ids and topk_probs have the k as a third axis."""


@dataclass(frozen=True)
class Column:
    """One measure of one site at every measured layer."""

    site: str
    name: str
    values: np.ndarray
    """(positions, readouts, layers), or with the top k as a fourth axis."""
    layers: tuple[int, ...]


def columns(numbers: Numbers, selection: Selection, plan: Plan, n_layers: int) -> Iterator[Column]:
    """All columns; `final` is at the layer after the last, `n_layers`."""
    for site in (*selection.sites, "final"):
        layers = (n_layers,) if site == "final" else plan.layers(selection, site)
        rows = [0] if site == "final" else plan.rows(layers, site)
        for measure in selection.names(site):
            for name in ("topk_ids", "topk_probs") if measure == "topk" else (measure,):
                values = np.stack([np.take(numbers[readout, name], rows, 1) for readout in selection.readouts], 1)
                yield Column(site, name, values, layers)


def policies_table(
    numbers: Numbers, selection: Selection, plan: Plan, n_layers: int, measured: Sequence[range], first: int
) -> pa.Table:
    """One row per rollout x position x readout x layer, one column per site and measure; rollouts count from `first`.

    `measured` are the positions of each rollout that were measured. A site's columns are null in the row of `final` and
    of layers without the site, and vice versa; `entropy_at_input_norm` is null for every readout but raw, the only one
    that depends on the norm.
    """
    lengths = [len(positions) for positions in measured]
    rollout = np.repeat(np.arange(first, first + len(measured), dtype=np.int32), lengths)
    position = np.concatenate([np.array(positions, dtype=np.int32) for positions in measured])
    return rows_table(numbers, selection, plan, n_layers, rollout, position)


def nothing(selection: Selection, plan: Plan) -> Numbers:
    """The numbers of no positions at all."""
    empty = np.zeros((0, len(plan.points)), dtype=np.float32)
    listed = np.zeros((*empty.shape, selection.top_k), dtype=np.float32)
    names = {name for site in WITH_FINAL for name in selection.names(site)} - {"topk"}
    topk = {"topk_ids": listed.astype(np.int32), "topk_probs": listed} if selection.top_k else {}
    kinds = {**dict.fromkeys(names, empty), **topk}
    return {(readout, name): values for readout in selection.readouts for name, values in kinds.items()}


def rows_table(
    numbers: Numbers, selection: Selection, plan: Plan, n_layers: int, rollout: np.ndarray, position: np.ndarray
) -> pa.Table:
    """The rows of `policies_table` for some tokens, given by their rollouts and positions."""
    layers = (*selection.layers, n_layers)
    shape = (len(position), len(selection.readouts), len(layers))
    table = {
        "rollout": pa.array(_spread(rollout[:, None, None], shape)),
        "position": pa.array(_spread(position[:, None, None], shape)),
        "layer": pa.array(_spread(np.array(layers, dtype=np.int32), shape)),
        "readout": pa.array(_spread(np.array(selection.readouts)[:, None], shape)),
    }
    for column in columns(numbers, selection, plan, n_layers):
        present = np.isin(layers, column.layers)
        values = np.zeros((*shape, *column.values.shape[3:]), dtype=column.values.dtype)
        values[:, :, present] = column.values
        absent = np.broadcast_to(~present, shape).copy()
        if column.name == "entropy_at_input_norm":
            absent |= (np.array(selection.readouts) != "raw")[:, None]
        if column.name == "rank":  # integers can't be NaN, and a NaN policy has no ranks
            absent |= np.isnan(values)
            values = np.nan_to_num(values).astype(np.int32)
        table[f"{column.site}.{column.name}"] = _array(values.reshape(-1, *values.shape[3:]), absent.ravel())
    return pa.table(table)


def layers_table(
    numbers: Numbers, selection: Selection, plan: Plan, n_layers: int, measured: Sequence[range], first: int
) -> pa.Table:
    """One row per rollout x readout x layer x site: `tokens`, and the mean of each measure over them, in float64.

    `top1` is the share of tokens that are the policy's top token. Rollouts without a measured position have no rows.
    """
    lengths = np.array([len(positions) for positions in measured])
    rollouts, lengths = first + np.flatnonzero(lengths), lengths[lengths > 0]
    starts = np.cumsum(lengths) - lengths
    count = lengths[:, None, None]
    means_at: dict[str, dict[str, np.ndarray]] = {}
    layers_at: dict[str, tuple[int, ...]] = {}
    for column in columns(numbers, selection, plan, n_layers):
        means = means_at.setdefault(column.site, {})
        layers_at[column.site] = column.layers
        if column.name.startswith("topk"):
            continue
        values = column.values.astype(np.float64)
        if column.name == "entropy_at_input_norm":
            values[:, np.array(selection.readouts) != "raw"] = np.nan
        means[column.name] = np.add.reduceat(values, starts) / count
        if column.name == "rank":
            hits = np.where(np.isnan(values), np.nan, values == 1)
            means["top1"] = np.add.reduceat(hits, starts) / count
    names = list(dict.fromkeys(name for means in means_at.values() for name in means))
    return pa.concat_tables(
        pa.table(
            {
                "rollout": pa.array(_spread(rollouts.astype(np.int32)[:, None, None], shape)),
                "readout": pa.array(_spread(np.array(selection.readouts)[:, None], shape)),
                "layer": pa.array(_spread(np.array(layers_at[site], dtype=np.int32), shape)),
                "site": pa.array([site] * int(np.prod(shape)), pa.string()),
                "tokens": pa.array(_spread(count.astype(np.int32), shape)),
                **{name: _mean(means.get(name), shape) for name in names},
            }
        )
        for site, means in means_at.items()
        for shape in [(len(lengths), len(selection.readouts), len(layers_at[site]))]
    ).sort_by([("rollout", "ascending"), ("readout", "ascending"), ("layer", "ascending")])


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(values, shape).ravel()


def _mean(values: np.ndarray | None, shape: tuple[int, ...]) -> pa.Array:
    return pa.nulls(int(np.prod(shape)), pa.float64()) if values is None else pa.array(values.ravel())


def _array(values: np.ndarray, absent: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values, mask=absent)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1], mask=pa.array(absent))
