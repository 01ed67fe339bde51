"""The numbers of a scan by token: in one rollout, in one cell, or spread over all tokens."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from internal_policy.errors import InputError
from internal_policy.look.view import (
    OF_TOKENS,
    SHOWN_AT,
    View,
    absent,
    check,
    check_measure,
    every,
    lacking,
    positions_of,
    rollouts,
    within,
)
from internal_policy.measure.sites import INPUT_OF, WITH_FINAL
from internal_policy.scans import store

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WINDOW = 512
"""Most tokens that are still distinguishable side by side."""
READ_AT_A_CELL = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""The policies compared at a cell: layer input, attention, FFN, layer output."""

OF_SITE = ("topk_ids", "topk_probs", *(name for name in OF_TOKENS if name != "change"))
"""Columns of a site in a table of a response."""


class Tokens(NamedTuple):
    """Some columns of one part: one row per token, one column per layer."""

    rollout: np.ndarray
    """The rollout of each token, (tokens,)."""
    layers: np.ndarray
    """The layer of each column, (layers,); the last one is `final`."""
    values: list[np.ndarray]
    """For each requested name, (tokens, layers). Of a list, only the first entry."""


def read(view: View, names: Sequence[str]) -> Iterator[Tokens]:
    """Read some columns of the view, part by part. Raises InputError if one was not measured."""
    check(view)
    kept = rollouts(view)["rollout"].to_numpy()
    _measured(view, names)
    for table in store.pieces(view.source, "policies", ["rollout", "layer", *names], within(view)):
        layer = table["layer"].to_numpy()
        n = len(np.unique(layer))
        if not n:
            continue
        rollout = table["rollout"].to_numpy()[::n]  # the rows of a token are adjacent
        chosen = np.isin(rollout, kept)
        if chosen.any():
            values = [_first(table[name]).reshape(-1, n)[chosen] for name in names]
            yield Tokens(rollout[chosen], layer[:n], values)


def table(view: View, names: Sequence[str]) -> pd.DataFrame:
    """The table `policies` of the view: rollout, position, layer and the named columns.

    Raises InputError if one was not measured.
    """
    check(view)
    _measured(view, names)
    found = store.read(view.source, "policies", ["rollout", "position", "layer", *names], within(view))
    return found[found["rollout"].isin(rollouts(view)["rollout"])].reset_index(drop=True)


def _measured(view: View, names: Sequence[str]) -> None:
    columns = store.columns(view.source, "policies")
    if missing := [name for name in names if name not in columns]:
        site, _, measure = missing[0].partition(".")
        raise absent(view, measure, site)


def _first(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a column, NaN where null. Of lists, the first entry, -1 where null."""
    array = column.combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    firsts = array.values.to_numpy(zero_copy_only=False)[array.offset * array.type.list_size :: array.type.list_size]
    return np.where(array.is_valid().to_numpy(zero_copy_only=False), firsts[: len(array)], -1)


def quantiles(view: View, site: str, measure: str = "entropy") -> pd.DataFrame:
    """Exact quantiles of a measure over the tokens: layer, q05, q25, q50, q75, q95."""
    if site not in SHOWN_AT.get(measure, WITH_FINAL):
        raise absent(view, measure, site)
    parts = list(read(view, [f"{site}.{measure}"]))
    without = lacking(check(view), site)
    columns = [-1] if site == "final" else np.flatnonzero(~np.isin(parts[0].layers[:-1], without))
    values = np.concatenate([part.values[0][:, columns] for part in parts])
    if np.isnan(values).all():
        raise absent(view, measure, site)
    found = [np.quantile(np.ascontiguousarray(values[:, n]), QUANTILES) for n in range(values.shape[1])]
    names = [f"q{round(100 * q):02d}" for q in QUANTILES]
    return pd.DataFrame(found, columns=names).assign(layer=parts[0].layers[columns])[["layer", *names]]


def settled(view: View) -> pd.DataFrame:
    """The share of a rollout's tokens whose top token is the model's own from this layer's output on.

    Columns: rollout, layer, site (resid_post), tokens, settled. `statistics.means(settled, "settled")` averages them.
    Raises InputError if no top-k tokens were kept.
    """
    frames = []
    for part in read(view, ["resid_post.topk_ids", "final.topk_ids"]):
        choice, final = part.values[0][:, :-1], part.values[1][:, -1:]
        same = np.logical_and.accumulate((choice == final)[:, ::-1], axis=1)[:, ::-1]
        starts = np.flatnonzero(np.r_[True, part.rollout[1:] != part.rollout[:-1]])
        tokens = np.diff(np.r_[starts, len(part.rollout)])
        shares = np.add.reduceat(same, starts, axis=0, dtype=float) / tokens[:, None]
        n = len(part.layers) - 1
        columns = {
            "rollout": np.repeat(part.rollout[starts], n),
            "layer": np.tile(part.layers[:-1], len(starts)),
            "site": "resid_post",
            "tokens": np.repeat(tokens, n),
            "settled": shares.ravel(),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def response(view: View, rollout: int) -> pd.DataFrame:
    """The measured tokens of a response within the view: position, id, token (its text, from the vocabulary)."""
    found = store.of_rollout(view.source, "rollouts", rollout, ["response_ids"]).to_pandas()
    ids = np.asarray(found["response_ids"].iloc[0], dtype=int)
    at = np.array(positions_of(view, rollout), dtype=int)
    frame = pd.DataFrame({"position": at, "id": ids[at]})
    if not len(frame):
        raise InputError(f"Rollout {rollout} of {view.source} has no response tokens there. Choose other positions.")
    return frame.assign(token=texts(view, frame["id"])).reset_index(drop=True)


def window(response: pd.DataFrame, position: int | None = None, most: int = WINDOW) -> pd.DataFrame:
    """The tokens drawn at once: the first `most` of a response, or as many around `position`.

    `response` has one row per token, with its position. Raises InputError for a position that it lacks.
    """
    first, last = int(response["position"].iloc[0]), int(response["position"].iloc[-1])
    if position is not None and position not in set(response["position"]):
        every = "" if len(response) == last - first + 1 else " that was measured"
        raise InputError(f"There is no position {position} in this response. Choose one from {first} to {last}{every}.")
    at = 0 if position is None else int(np.searchsorted(response["position"], position)) // most * most
    return response.iloc[at : at + most]


def texts(view: View, ids: pd.Series) -> pd.Series:
    """The text of each token id, from the scan's vocabulary; missing for an id that it lacks."""
    known = store.read(view.source, "vocabulary", ["id", "token"], ds.field("id").isin(pa.array(ids.unique())))
    return ids.map(known.set_index("id")["token"])


def _rows(view: View, rollout: int, names: Sequence[str], where: ds.Expression) -> pd.DataFrame:
    """Rows of one rollout's policies. Raises InputError for a rollout or measure that doesn't exist."""
    _measured(view, names)
    here = (ds.field("readout") == view.readout) & where
    return store.of_rollout(view.source, "policies", rollout, ["layer", "position", *names], here).to_pandas()


def cells(view: View, rollout: int, site: str, measure: str = "entropy") -> pd.DataFrame:
    """A measure at every token and layer of a response that has the site: layer, position, value.

    `change` is the entropy at the site minus that at its input (Eqs. 11 to 13). For layer outputs, the model's own
    policy is added as one more layer.
    """
    record = check(view)
    check_measure(measure, OF_TOKENS)
    if site not in SHOWN_AT.get(measure, WITH_FINAL):
        raise absent(view, measure, site)
    if measure == "change":
        before = INPUT_OF[site]
        rows = _rows(view, rollout, [f"{site}.entropy", f"{before}.entropy"], within(view))
        value = rows[f"{site}.entropy"] - rows[f"{before}.entropy"]
    else:
        with_final = site == "resid_post" and "final" in SHOWN_AT.get(measure, WITH_FINAL)
        names = [f"{site}.{measure}", *([f"final.{measure}"] if with_final else [])]
        rows = _rows(view, rollout, names, within(view))
        value = rows[names[0]].fillna(rows[names[-1]])
    if value.isna().all():
        raise absent(view, measure, site)
    layer = rows["layer"]
    shown = (layer < record["n_layers"]) & ~layer.isin(lacking(record, site)) | value.notna()
    return rows[["layer", "position"]].assign(value=value.astype(float))[shown].reset_index(drop=True)


def at_site(view: View, rollout: int, site: str) -> pd.DataFrame:
    """Everything measured at one site for a response: layer, position, id, token, top_token, probability, entropy, ...

    `token` is the actual one, `top_token` the policy's most likely one with its probability. Measures of the site
    follow. For layer outputs, the model's own policy is added as one more layer.
    """
    record = check(view)
    columns = store.columns(view.source, "policies")
    names = [name for name in OF_SITE if f"{site}.{name}" in columns]
    sites = [site, "final"] if site == "resid_post" else [site]
    wanted = [f"{one}.{name}" for one in sites for name in names if f"{one}.{name}" in columns]
    rows = _rows(view, rollout, wanted, within(view))
    rows = rows[~rows["layer"].isin(lacking(record, site))].reset_index(drop=True)
    last = rows["layer"] == record["n_layers"]
    found = rows[["layer", "position"]].copy()
    for name in names:
        found[name] = rows[f"{site}.{name}"]
        if f"final.{name}" in rows:
            found[name] = found[name].where(~last, rows[f"final.{name}"])
    found = found[~last | (site == "resid_post")]
    if "topk_ids" in found:
        top = found.pop("topk_ids").str[0]
        found.insert(2, "probability", found.pop("topk_probs").str[0])
        found.insert(2, "top_token", texts(view, top))
    return response(view, rollout).merge(found, on="position").sort_values(["layer", "position"], ignore_index=True)


def predictions(view: View, rollout: int, position: int, layer: int) -> pd.DataFrame:
    """The top tokens of one layer's policies at one position: site, rank, id, token, probability, before.

    The sites are the layer's input, attention, FFN and output; after the last layer there is only `final`. `before` is
    the token's rank at the layer's input, missing if it was not among the top tokens there.
    """
    record = check(view)
    if not 0 <= layer <= record["n_layers"]:
        raise InputError(
            f"There is no layer {layer}. Choose one from 0 to {record['n_layers'] - 1}, or {record['n_layers']} for "
            "the model's own policy."
        )
    measured = [site for site in READ_AT_A_CELL if site in record["selection"]["sites"]]
    here = [site for site in measured if layer not in lacking(record, site)]
    sites = ["final"] if layer == record["n_layers"] else here
    names = [f"{site}.{name}" for site in sites for name in ("topk_ids", "topk_probs")]
    rows = _rows(view, rollout, names, (ds.field("position") == position) & (ds.field("layer") == layer))
    if not len(rows):
        if layer not in (*record["selection"]["layers"], record["n_layers"]):
            raise InputError(
                f"{view.source} has no layer {layer}. Choose another, or scan again with {every(view, 'layers')}."
            )
        raise InputError(
            f"Rollout {rollout} of {view.source} has no position {position}. Choose an earlier one, from 0."
        )
    row = rows.iloc[0]
    frames = []
    for site in sites:
        ids, probabilities = row[f"{site}.topk_ids"], row[f"{site}.topk_probs"]
        ranks = np.arange(1, len(ids) + 1)
        frames.append(pd.DataFrame({"site": site, "rank": ranks, "id": ids, "probability": probabilities}))
    found = pd.concat(frames, ignore_index=True)
    entered = found[found["site"] == "resid_pre"].set_index("id")["rank"]
    found["before"] = found["id"].map(entered).astype("Int64")
    found["token"] = texts(view, found["id"])
    return found[["site", "rank", "id", "token", "probability", "before"]]
