"""A view of a scan: one readout, all or some rollouts, all positions or a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from numbers import Integral
from operator import and_
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from internal_policy.errors import InputError, counted, joined
from internal_policy.look import conditions, statistics
from internal_policy.look.conditions import Outcome
from internal_policy.look.statistics import Average
from internal_policy.measure.sites import CHANGES, INPUT_OF, ONLY_AT, SITES, WITH_FINAL
from internal_policy.scans import positions, schema, store
from internal_policy.scans.store import Tables

WORDS = {"raw": "raw hidden states", "norm": "through the final norm"}
"""Readout -> its name on screen."""
LENSES = {"tuned": "through the tuned lens", "jacobian": "through the Jacobian lens"}
"""Kind of a lens, and by default the name of its readout -> its name on screen."""
MODULES = {"attention": ("attn_in", "attn_out"), "FFN": ("mlp_in", "mlp_out")}
"""What some layers of a model may lack -> its sites."""
CONTROLS = ("renyi_half", "renyi_2", "logit_scale", "entropy_at_input_scale", "entropy_shuffled", "entropy_random")
"""Measures that only a scan with --controls has."""
AVERAGED = ("entropy", "logprob", "rank", "top1", "kl", "norm", "cosine", "entropy_at_input_norm", *CONTROLS)
"""Measures with means in the table `layers`."""
WITH_CHANGES = ("entropy", "entropy_at_input_norm")
"""Measures that an entropy change is made of."""
MADE_OF = {"change": "entropy", "top1": "rank", "settled": "topk", "topk_ids": "topk", "topk_probs": "topk"}
"""What is shown or stored under another name -> the measure that it is made of."""
OF_TOKENS = ("entropy", "change", *(name for name in AVERAGED[1:] if name != "top1"))
"""Measures of single tokens; `change` is the entropy change."""
SHOWN_AT: Mapping[str, Sequence[str]] = {**ONLY_AT, "change": ONLY_AT["entropy_at_input_norm"], "norm": SITES}
"""Measures that are only shown at some sites -> those sites. The state after the final norm is in another space, so its
norm can't be compared with theirs."""


@dataclass(frozen=True)
class View:
    """Which part of a scan to look at."""

    source: Path | Tables
    """The scan's folder, or its tables in memory."""
    readout: str = "raw"
    """How hidden states were unembedded."""
    outcome: Outcome = "all"
    """Which rollouts, by their reward."""
    first: int = 0
    """The first position of a response to include."""
    last: int | None = None
    """The last position to include; None for no limit."""
    where: tuple[str, ...] = ()
    """Conditions on the numbers that came with the responses, such as `acc>=0.5`."""


@dataclass(frozen=True)
class About:
    """Facts about the numbers in a figure, for its caption."""

    model: str
    readout: str
    rollouts: int
    tokens: int
    n_layers: int
    d_vocab: int
    """Size of the vocabulary; its logarithm is the largest possible entropy."""
    which: str = ""
    """The filter in words; empty if everything is included."""
    modules: str = ""
    """How many of the measured layers have attention and an FFN; empty if all have both."""
    label: str = ""
    """What a comparison calls the scan, different from the others; empty elsewhere."""


def how(readout: str) -> str:
    """A readout in words: raw hidden states, through the final norm, or through a lens by its name."""
    return {**WORDS, **LENSES}.get(readout, f"through the {readout} lens")


def default(source: Path | Tables) -> View:
    """All of a scan, with its first readout."""
    return View(source, store.record(source)["selection"]["readouts"][0])


def for_tokens(source: Path | Tables) -> View:
    """All of a scan with the readout whose top tokens say most: through the final norm, or else the first."""
    first = default(source)
    return replace(first, readout="norm") if "norm" in store.record(source)["selection"]["readouts"] else first


def check(view: View) -> Mapping[str, Any]:
    """The record of the scan. Raises InputError if the scan is unfinished or lacks that readout."""
    record = store.record(view.source)
    readouts = record["selection"]["readouts"]
    if view.readout not in readouts:
        if view.readout not in (*WORDS, *LENSES):
            raise InputError(f"There is no readout '{view.readout}'. Choose from {', '.join(readouts)}.")
        option = "--readout both" if view.readout in WORDS else "--lens FILE"
        remedy = option if isinstance(view.source, Path) else "that readout"
        raise InputError(
            f"{view.source} was not measured with the readout '{view.readout}', only with {joined(readouts)}. "
            f"Scan again with {remedy}."
        )
    conditions.check(view.outcome, view.where)
    for name, position in (("first", view.first), ("last", 0 if view.last is None else view.last)):
        if not isinstance(position, Integral) or isinstance(position, bool) or position < 0:
            raise InputError(f"{name} is {position!r:.60}. Give a position of a response, a whole number from 0.")
    if isinstance(view.source, Path):
        store.check_sizes(view.source)
    return record


def rollouts(view: View, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The rollouts in the view: rollout, reward, tokens (how many are in the window), and more `columns`.

    Rollouts without tokens in the window are left out. Raises InputError if none are left.
    """
    columns = list(dict.fromkeys(["rollout", "reward", *columns]))
    more = conditions.columns(view.where, store.columns(view.source, "rollouts")) if view.where else []
    found = _responses(view.source, (*dict.fromkeys([*columns, *more]),), _written(view.source)).copy(deep=False)
    measured = positions.of_record(store.record(view.source))
    found["tokens"] = [
        len(positions.within(measured.of(length), view.first, view.last)) for length in found.pop("length")
    ]
    found = found[conditions.met(found, view.outcome, view.where) & (found["tokens"] > 0)]
    if not len(found):
        raise InputError(
            f"{view.source} has no response tokens among {words(view) or 'its rollouts'}. Widen the filter."
        )
    return found[[*columns, "tokens"]].reset_index(drop=True)


@lru_cache(maxsize=8)
def _responses(source: Path | Tables, columns: tuple[str, ...], written: int) -> pd.DataFrame:  # noqa: ARG001
    """Columns of the table `rollouts`, and the `length` of each response, cached like `_layers`."""
    found = store.read(source, "rollouts", [*dict.fromkeys([*columns, "response_ids"])])
    length = found["response_ids"].map(len)
    return found[list(columns)].assign(length=length)


def _written(source: Path | Tables) -> int:
    """When a scan's record was written, in nanoseconds; 0 for tables in memory."""
    return 0 if isinstance(source, Tables) else (source / store.RECORD).stat().st_mtime_ns


def positions_of(view: View, rollout: int) -> range:
    """The measured positions of a response in the view. Raises InputError for an unknown rollout."""
    ids = store.of_rollout(view.source, "rollouts", rollout, ["response_ids"])["response_ids"][0]
    measured = positions.of_record(store.record(view.source)).of(len(ids))
    return positions.within(measured, view.first, view.last)


def words(view: View) -> str:
    """The filter in words; empty if everything is included."""
    said = [] if view.outcome == "all" else [f"{view.outcome} rollouts"]
    said += [f"rollouts with {condition}" for condition in view.where]
    if view.last is not None:
        said.append(f"positions {view.first} to {view.last}")
    elif view.first:
        said.append(f"positions from {view.first}")
    return ", ".join(said)


def about(view: View) -> About:
    """Facts about the numbers in this view, for captions."""
    record, found = check(view), rollouts(view)
    return About(
        record["model"],
        view.readout,
        len(found),
        int(found["tokens"].sum()),
        record["n_layers"],
        record["d_vocab"],
        ", ".join(filter(None, [words(view), str(positions.of_record(record))])),
        modules(record),
    )


def lacking(record: Mapping[str, Any], site: str) -> list[int]:
    """The measured layers that have no `site`; none if no layer was measured there."""
    return record.get("lacking", {}).get(site, [])


def modules(record: Mapping[str, Any]) -> str:
    """How many layers have attention and an FFN, such as `attention in 3 of 6 layers`; empty if all have both."""
    measured, said = record["selection"]["layers"], []
    for name, sites in MODULES.items():
        if without := {layer for site in sites for layer in lacking(record, site)}:
            said.append(f"{name} in {len(measured) - len(without)} of {counted(len(measured), 'layer')}")
    return ", ".join(said)


def labelled(view: View, label: str) -> About:
    """The same, with what a comparison calls the scan."""
    return replace(about(view), label=label)


def layers(view: View, measure: str | None = None) -> pd.DataFrame:
    """The table `layers` of the view, one row per rollout x layer x site: means over the tokens in the window.

    With a `measure` other columns may be missing: a window is computed from the tokens of all responses, and each
    column takes time. The last few tables are cached, because most figures use them.
    """
    check(view)
    plain = View(view.source, view.readout, view.outcome, view.first, view.last, view.where)
    of = WITH_CHANGES if measure in WITH_CHANGES else (MADE_OF.get(measure, measure),) if measure else AVERAGED
    return _layers(plain, of if _is_window(view) else (), _written(view.source)).copy(deep=False)


def _is_window(view: View) -> bool:
    return view.first > 0 or view.last is not None


@lru_cache(maxsize=8)
def _layers(view: View, of: tuple[str, ...], written: int) -> pd.DataFrame:  # noqa: ARG001
    """The table `layers`, of a window with the measures `of`, cached until the scan's record is written again."""
    kept = rollouts(view)["rollout"]
    if not _is_window(view):
        found = schema.whole("layers", store.read(view.source, "layers", where=_of_readout(view)), view.source)
        return found[found["rollout"].isin(kept)].reset_index(drop=True)
    record, names = store.record(view.source), store.columns(view.source, "policies")
    names = [name for name in names if name.rpartition(".")[2] in of]
    pieces = store.pieces(view.source, "policies", ["rollout", "layer", *names], within(view))
    windows = [averaged(record, piece, kept.to_numpy()) for piece in pieces if len(piece)]
    return pd.concat(windows, ignore_index=True).assign(readout=view.readout)


def within(view: View) -> ds.Expression:
    """The rows of the table `policies` with the view's readout and positions."""
    first, last = ds.field("position") >= view.first, ds.field("position") <= view.last
    conditions = [_of_readout(view), first if view.first else None, None if view.last is None else last]
    return reduce(and_, [condition for condition in conditions if condition is not None], ds.scalar(True))


def _of_readout(view: View) -> ds.Expression | None:
    """The rows with the view's readout; None if all have it, because comparing millions of texts takes a second."""
    only = store.record(view.source)["selection"]["readouts"] == [view.readout]
    return None if only else ds.field("readout") == view.readout


def averaged(record: Mapping[str, Any], rows: pa.Table, kept: np.ndarray) -> pd.DataFrame:
    """The table `layers` from the tokens of one part, whose rows are adjacent."""
    layer = rows["layer"].to_numpy()
    n = len(np.unique(layer))
    rollout = rows["rollout"].to_numpy()[::n]
    chosen = np.isin(rollout, kept)
    rollout, layer = rollout[chosen], layer[:n]
    starts = np.flatnonzero(np.r_[True, rollout[1:] != rollout[:-1]])[: len(rollout)]
    tokens = np.diff(np.r_[starts, len(rollout)])
    means: dict[str, dict[str, np.ndarray]] = {}
    for name in [name for name in rows.column_names if "." in name]:
        site, _, measure = name.partition(".")
        values = rows[name].to_numpy().reshape(-1, n)[chosen].astype(float)  # NaN where null
        found = {measure: values}
        if measure == "rank":
            found["top1"] = np.where(np.isnan(values), np.nan, values == 1)
        for measure, values in found.items():
            means.setdefault(site, {})[measure] = np.add.reduceat(values, starts, axis=0) / tokens[:, None]
    by_site = []
    for site, found in means.items():
        final = layer == record["n_layers"]
        here = final if site == "final" else ~final & ~np.isin(layer, lacking(record, site))
        keys = {"rollout": np.repeat(rollout[starts], here.sum()), "layer": np.tile(layer[here], len(starts))}
        columns = {measure: values[:, here].ravel() for measure, values in found.items()}
        by_site.append(pd.DataFrame({**keys, **columns, "site": site, "tokens": np.repeat(tokens, here.sum())}))
    return pd.concat(by_site, ignore_index=True)


def absent(view: View, measure: str, site: str | None = None) -> InputError:
    """Why a scan lacks a measure (at a site), and what to do; `change` is the entropy change."""
    record = check(view)
    chosen = record["selection"]
    recorded = MADE_OF.get(measure, measure)
    name = "top-k tokens" if recorded == "topk" else measure.replace("change", "entropy change")
    where = f" at {site}" if site else ""
    if site and site not in WITH_FINAL:
        return InputError(f"There is no site '{site}'. Choose one of {', '.join(WITH_FINAL)}.")
    if site and site not in (known := SHOWN_AT.get(measure, WITH_FINAL)):
        return InputError(f"There is no {name} at {site}. Choose one of {', '.join(known)}.")
    if recorded not in chosen["measures"] or (recorded == "topk" and not chosen["top_k"]):
        controls = "--controls" if isinstance(view.source, Path) else "controls=True"
        remedy = controls if recorded in CONTROLS else every(view, "measures")
        return InputError(f"{view.source} has no {name}. Scan again with {remedy}.")
    needed = [site, INPUT_OF[site]] if site and measure == "change" else [site]
    if site and (missing := [one for one in needed if one not in (*chosen["sites"], "final")]):
        return InputError(
            f"{view.source} has no {name}{where}: {missing[0]} was not measured. Choose another site, or scan again "
            f"with {every(view, 'sites')}."
        )
    if site and {*lacking(record, site)} == {*chosen["layers"]}:
        return InputError(f"{view.source} has no {name}{where}, because none of its layers has it. Choose other sites.")
    if measure == "entropy_at_input_norm" and view.readout != "raw":
        return InputError(f"{name} is only measured with the raw readout, not with {view.readout}. Use --readout raw.")
    return InputError(f"{view.source} has only NaN as {name}{where}: {statistics.overflow(record['dtype'])}")


def every(view: View, *options: str) -> str:
    """How to scan all layers, sites or measures, as options of the command line or as words for Python."""
    return " and ".join(f"--{name} all" if isinstance(view.source, Path) else f"all {name}" for name in options)


def means(view: View, measure: str = "entropy", average: Average = "tokens") -> pd.DataFrame:
    """`statistics.means` of a view. Raises InputError if the scan lacks the measure."""
    check_measure(measure, AVERAGED)
    rows = layers(view, measure)
    found = statistics.means(rows[rows["site"].isin(SHOWN_AT.get(measure, WITH_FINAL))], measure, average)
    if not len(found):
        raise absent(view, measure)
    return found


def check_measure(measure: str, measures: Sequence[str]) -> None:
    """Raise InputError for a measure that is not one of `measures`."""
    if measure not in measures:
        raise InputError(f"There is no measure {measure!r:.60} here. Choose one of {', '.join(measures)}.")


def changes(view: View, average: Average = "tokens") -> pd.DataFrame:
    """`statistics.changes` of a view. Raises InputError if the scan lacks the sites or the entropy."""
    found = statistics.changes(layers(view, "entropy"), average)
    if len(found):
        return found
    chosen = check(view)["selection"]
    if "entropy" in chosen["measures"] and any({*pair} <= {*chosen["sites"]} for pair in CHANGES.values()):
        raise absent(view, "change")
    raise InputError(
        f"{view.source} has no entropy before and after a layer, attention or FFN. Scan again with "
        f"{every(view, 'sites', 'measures')}."
    )


def first_rollout(view: View) -> int:
    """The number of the first rollout of a view."""
    return int(rollouts(view)["rollout"].iloc[0])


def check_rollout(view: View, rollout: int) -> None:
    """Raise InputError for a rollout that the scan doesn't have, or the view leaves out."""
    store.of_rollout(view.source, "rollouts", rollout, ["rollout"])
    if rollout not in set(rollouts(view)["rollout"]):
        raise InputError(f"Rollout {rollout} isn't among the {words(view)}. Choose another, or widen the filter.")
