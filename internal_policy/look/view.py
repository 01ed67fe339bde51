"""A view of a scan: one readout, all or some rollouts, all positions or a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from internal_policy.errors import InputError, counted
from internal_policy.look import statistics
from internal_policy.look.statistics import Average
from internal_policy.measure.sites import CHANGES, INPUT_OF, ONLY_AT, SITES, WITH_FINAL
from internal_policy.scans import repeat, store
from internal_policy.scans.store import Tables
from internal_policy.tasks import pass_at_k

Outcome = Literal["all", "correct", "incorrect"]
"""Which rollouts to look at. An unmarked one is neither correct nor incorrect."""
WORDS = {"raw": "raw hidden states", "norm": "through the final norm"}
"""Readout -> its name on screen."""
LENS = "tuned"
"""The readout of a lens."""
MODULES = {"attention": ("attn_in", "attn_out"), "FFN": ("mlp_in", "mlp_out")}
"""What some layers of a model may lack -> its sites."""
NOT_MEASURES = ("topk_ids", "topk_probs")
AVERAGED = ("entropy", "logprob", "rank", "top1", "kl", "norm", "cosine", "entropy_at_input_norm")
"""Measures with means in the table `layers`."""
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
    return WORDS.get(readout, f"through the {readout} lens")


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
        if view.readout not in (*WORDS, LENS):
            raise InputError(f"There is no readout '{view.readout}'. Choose from {', '.join(readouts)}.")
        option = "--readout both" if view.readout in WORDS else "--lens FILE"
        remedy = option if isinstance(view.source, Path) else "that readout"
        raise InputError(
            f"{view.source} was not measured with the readout '{view.readout}', only with {' and '.join(readouts)}. "
            f"Scan again with {remedy}."
        )
    if view.outcome not in get_args(Outcome):
        raise InputError(f"There is no outcome '{view.outcome}'. Choose one of {', '.join(get_args(Outcome))}.")
    for name, position in (("first", view.first), ("last", 0 if view.last is None else view.last)):
        if not isinstance(position, Integral) or isinstance(position, bool) or position < 0:
            raise InputError(f"{name} is {position!r:.60}. Give a position of a response, a whole number from 0.")
    if isinstance(view.source, Path) and (short := store.cut_short(view.source)):
        raise InputError(f"{view.source / short[0]} is missing or cut short. {repeat.remeasuring(view.source)}")
    return record


def rollouts(view: View, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The rollouts in the view: rollout, reward, tokens (how many are in the window), and more `columns`.

    Rollouts without tokens in the window are left out. Raises InputError if none are left.
    """
    columns = list(dict.fromkeys(["rollout", "reward", *columns]))
    found = store.read(view.source, "rollouts", [*dict.fromkeys([*columns, "response_ids"])])
    length = found["response_ids"].map(len)
    stop = length if view.last is None else np.minimum(length, view.last + 1)
    found["tokens"] = np.maximum(stop - view.first, 0).astype(int)
    if view.outcome != "all":
        correct = pass_at_k.correct(found["reward"])
        found = found[correct if view.outcome == "correct" else ~correct & found["reward"].notna()]
    found = found[found["tokens"] > 0]
    if not len(found):
        raise InputError(
            f"{view.source} has no response tokens among {words(view) or 'its rollouts'}. Widen the filter."
        )
    return found[[*columns, "tokens"]].reset_index(drop=True)


def words(view: View) -> str:
    """The filter in words; empty if everything is included."""
    said = [] if view.outcome == "all" else [f"{view.outcome} rollouts"]
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
        words(view),
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


def layers(view: View) -> pd.DataFrame:
    """The table `layers` of the view, one row per rollout x layer x site: means over the tokens in the window.

    The tables of the last few views are cached, because most figures of a view use them.
    """
    check(view)
    written = 0 if isinstance(view.source, Tables) else (view.source / store.RECORD).stat().st_mtime_ns
    plain = View(view.source, view.readout, view.outcome, view.first, view.last)
    return _layers(plain, written).copy(deep=False)


@lru_cache(maxsize=4)
def _layers(view: View, written: int) -> pd.DataFrame:  # noqa: ARG001
    """The table `layers`, cached until the scan's record is written again."""
    kept = rollouts(view)["rollout"]
    if view.first == 0 and view.last is None:
        found = store.read(view.source, "layers", where=ds.field("readout") == view.readout)
        return found[found["rollout"].isin(kept)].reset_index(drop=True)
    names = [name for name in store.columns(view.source, "policies") if "." in name]
    names = [name for name in names if not name.endswith(NOT_MEASURES)]
    pieces = store.pieces(view.source, "policies", ["rollout", "layer", *names], within(view))
    windows = [_window(view, piece.to_pandas(), kept) for piece in pieces]
    return pd.concat(windows, ignore_index=True).assign(readout=view.readout)


def within(view: View) -> ds.Expression:
    """The rows of the table `policies` with the view's readout and positions."""
    where = (ds.field("readout") == view.readout) & (ds.field("position") >= view.first)
    return where if view.last is None else where & (ds.field("position") <= view.last)


def _window(view: View, rows: pd.DataFrame, kept: pd.Series) -> pd.DataFrame:
    """Compute the same from the tokens of one part, for a window of positions."""
    rows = rows[rows["rollout"].isin(kept)]
    names = [name for name in map(str, rows) if "." in name]
    for name in [name for name in names if name.endswith(".rank")]:
        rows[f"{name.removesuffix('.rank')}.top1"] = (rows[name] == 1).where(rows[name].notna()).astype(float)
    groups = rows.groupby(["rollout", "layer"])
    wide, tokens = groups.mean(), groups.size()
    counts = groups.count()
    wide = wide.where(counts.eq(tokens, axis=0))  # a NaN propagates to the mean
    by_site = []
    for site in dict.fromkeys(name.partition(".")[0] for name in names):
        mine = [name for name in map(str, wide) if name.partition(".")[0] == site]
        final = wide.index.get_level_values("layer") == store.record(view.source)["n_layers"]
        without = wide.index.get_level_values("layer").isin(lacking(store.record(view.source), site))
        chosen = wide.loc[final if site == "final" else ~final & ~without, mine]
        chosen = chosen.rename(columns=lambda name: name.partition(".")[2])
        by_site.append(chosen.assign(site=site, tokens=tokens[chosen.index]).reset_index())
    return pd.concat(by_site, ignore_index=True)


def absent(view: View, measure: str, site: str | None = None) -> InputError:
    """Why a scan lacks a measure (at a site), and what to do; `change` is the entropy change."""
    record = check(view)
    chosen = record["selection"]
    made_of = {"change": "entropy", "top1": "rank", "settled": "topk", "topk_ids": "topk", "topk_probs": "topk"}
    recorded = made_of.get(measure, measure)
    name = "top-k tokens" if recorded == "topk" else measure.replace("change", "entropy change")
    where = f" at {site}" if site else ""
    if site and site not in WITH_FINAL:
        return InputError(f"There is no site '{site}'. Choose one of {', '.join(WITH_FINAL)}.")
    if site and site not in (known := SHOWN_AT.get(measure, WITH_FINAL)):
        return InputError(f"There is no {name} at {site}. Choose one of {', '.join(known)}.")
    if recorded not in chosen["measures"] or (recorded == "topk" and not chosen["top_k"]):
        return InputError(f"{view.source} has no {name}. Scan again with {every(view, 'measures')}.")
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
    rows = layers(view)
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
    found = statistics.changes(layers(view), average)
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
