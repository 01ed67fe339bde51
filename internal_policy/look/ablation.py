"""The effects of ablations by layer, and how they relate to the entropy changes of the layers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from internal_policy.errors import InputError, counted
from internal_policy.look import bootstrap, findings, statistics, view
from internal_policy.look.statistics import Average
from internal_policy.look.view import View
from internal_policy.measure.sites import CHANGES
from internal_policy.scans import effects
from internal_policy.scans.effects import INTACT, MEASURES

BY = ["layer", "module", "replacement"]
KEYS = ["module", "replacement", "measure"]
ENDS = ["mean", "low", "high", "low_all", "high_all"]
NAMES = {"layer": "a layer", "attn": "attention", "mlp": "an FFN"}
"""What is ablated, in words."""
ORDERS, CHANCE = 2000, 0.05
"""Random orders of layers with which a correlation is compared, and the share of them that may be as strong."""
FEWEST_LAYERS = 4
"""Fewest layers for a rank correlation: of three, one order in six is perfect."""


def newest(one: View) -> Path:
    """The folder of the newest ablation of a scan. Raises InputError if there is none."""
    found = effects.of_scan(one.source)
    if not found:
        if isinstance(one.source, Path):
            raise InputError(f"{one.source} has no ablation. Run `internal-policy ablate {findings.name(one.source)}`.")
        raise InputError("A scan in memory has no ablation. Scan and ablate on the command line instead.")
    return found[0]


def table(folder: Path, kept: "pd.Series | None" = None) -> pd.DataFrame:
    """The table `effects` of an ablation, of the rollouts `kept`. Raises InputError if none are left."""
    found = effects.read(folder, effects.EFFECTS)
    found = found if kept is None else found[found["rollout"].isin(kept)]
    if not len(found):
        raise InputError(f"{folder} has none of these rollouts. Widen the filter.")
    return found


def means(found: pd.DataFrame, average: Average = "tokens") -> pd.DataFrame:
    """The mean effect of each ablation: layer, module, replacement, measure, mean, and the ends of two 95% intervals.

    `found` is the table `effects`. `low` and `high` belong to the layer alone, `low_all` and `high_all` hold for all
    layers of a module, replacement and measure at once. kl, logprob_change and entropy_change are in nats.
    """
    wide = found.pivot(index="rollout", columns=BY, values=list(MEASURES))
    wide.columns.names = ["measure", *BY]
    weights = statistics.weights_of(wide, found, average)
    rows = wide.columns.to_frame(index=False)
    rows["mean"], rows["low"], rows["high"] = bootstrap.interval(wide.to_numpy(dtype=float), weights)
    return _with_all(rows, wide.to_numpy(dtype=float), weights, KEYS)[[*BY, "measure", *ENDS]]


def _with_all(rows: pd.DataFrame, values: np.ndarray, weights: np.ndarray, groups: list[str]) -> pd.DataFrame:
    """The rows, which are the columns of `values`, with the ends of intervals for all layers of a group at once."""
    for _, group in rows.groupby(groups):
        ends = bootstrap.simultaneous(values[:, group.index], weights)
        rows.loc[group.index, "low_all"], rows.loc[group.index, "high_all"] = ends
    return rows.sort_values([*groups, "layer"], ignore_index=True)


def rewards(folder: Path) -> pd.DataFrame:
    """The change of the mean reward by each ablation: layer, module, replacement, intact, mean and intervals as above.

    Problems are drawn in pairs: with the ablated model and with the model itself, whose mean reward is `intact`. No
    rows if rewards weren't asked for.
    """
    found = effects.read(folder, effects.REWARDS)
    if not len(found):
        return pd.DataFrame(columns=[*BY, "intact", *ENDS])
    own = found[found["layer"] == INTACT].set_index("problem")["reward"]
    wide = found[found["layer"] != INTACT].pivot(index="problem", columns=BY, values="reward")
    values = wide.to_numpy(dtype=float) - own.reindex(wide.index).to_numpy(dtype=float)[:, None]
    weights = np.ones(len(values))
    rows = wide.columns.to_frame(index=False)
    rows["intact"] = float(own.mean())
    rows["mean"], rows["low"], rows["high"] = bootstrap.interval(values, weights)
    return _with_all(rows, values, weights, ["module", "replacement"])


def correlations(one: View, found: pd.DataFrame, average: Average = "tokens") -> pd.DataFrame:
    """Whether layers with a higher entropy change matter more when they are ablated: Spearman's rank correlation.

    A row for each module and replacement: module, replacement, layers (how many), correlation, low, high and p. The
    correlation is that of the entropy change in the scan with the KL of the ablation, over layers. `low` and `high` are
    the ends of its 95% bootstrap interval over rollouts, which are drawn for both at once. `p` is the share of random
    orders of the layers with a correlation at least as strong: few layers are easily in such an order by chance.
    """
    layers = view.layers(one, "entropy")
    raised = layers.pivot(index="rollout", columns=["layer", "site"], values="entropy") if "entropy" in layers else None
    rows = []
    for (module, how), some in found.groupby(["module", "replacement"]):
        kl = some.pivot(index="rollout", columns="layer", values="kl")
        before, after = CHANGES[str(module)]
        known = set() if raised is None else {*raised.columns}
        both = [layer for layer in kl.columns if {(layer, before), (layer, after)} <= known]
        if raised is None or len(both) < FEWEST_LAYERS:
            continue
        shared = kl.index.intersection(raised.index)
        mine = raised.loc[shared]
        change = np.stack([(mine[layer, after] - mine[layer, before]).to_numpy(dtype=float) for layer in both], 1)
        effect = kl.loc[shared, both].to_numpy(dtype=float)
        weights = statistics.weights_of(mine, some, average)
        rows.append([module, how, len(both), *_correlation(change, effect, weights)])
    return pd.DataFrame(rows, columns=["module", "replacement", "layers", "correlation", "low", "high", "p"])


def _correlation(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> tuple[float, float, float, float]:
    """Spearman's correlation of the means of the columns of two arrays (rollouts, layers), its interval, and p."""
    a, b = weights[None] @ one, weights[None] @ other
    mean = float(_spearman(a, b)[0])
    orders = np.random.default_rng(bootstrap.SEED).permuted(np.repeat(b, ORDERS, 0), axis=1)
    chance = _spearman(np.repeat(a, ORDERS, 0), orders)
    p = float((1 + (np.abs(chance) >= abs(mean) - 1e-12).sum()) / (1 + ORDERS))
    if len(one) < 2 or np.isnan(mean):
        return mean, np.nan, np.nan, p
    drawn = bootstrap.counts(len(one)) * weights
    outside = (1 - bootstrap.CONFIDENCE) / 2
    low, high = np.nanquantile(_spearman(drawn @ one, drawn @ other), [outside, 1 - outside])
    return mean, float(low), float(high), p


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each row of two arrays; NaN where all values of a row are equal."""
    ranks = [pd.DataFrame(values).rank(axis=1).to_numpy() for values in (one, other)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), spread, out=np.full(len(a), np.nan), where=spread > 0)


def sentences(folder: Path, one: View | None, average: Average = "tokens") -> list[str]:
    """What an ablation shows: where it changes the policy most, and whether that goes with the entropy change.

    `one` is a view of its scan, which chooses rollouts and tells the entropies; None if there is none.
    """
    one = None if one is None else replace(one, first=0, last=None)  # effects are means over all positions
    found = table(folder, None if one is None else view.rollouts(one)["rollout"])
    effect = means(found, average)
    kl = effect[effect["measure"] == "kl"]
    if not for_all_layers(found):
        kl = kl.assign(low_all=np.nan, high_all=np.nan)
    said = [_largest(rows, str(module)) for module, rows in _first(kl).groupby("module", sort=False)]
    if one is not None:
        related = _first(correlations(one, found, average))
        said += [_related(row, view.how(one.readout)) for row in related.to_dict("records")]
    lost = rewards(folder)
    return said + [_lost(rows, str(module)) for module, rows in _first(lost).groupby("module", sort=False)]


def for_all_layers(found: pd.DataFrame) -> bool:
    """Whether the table `effects` has enough rollouts for intervals of all layers at once; else they are too wide."""
    return found["rollout"].nunique() >= findings.ENOUGH


def _first(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one replacement: zero if it was measured, otherwise mean."""
    known = {*rows["replacement"]}
    rows = rows[rows["replacement"] == ("zero" if "zero" in known else "mean")]
    return rows.sort_values("module", key=lambda names: names.map([*CHANGES].index), kind="stable")


def named(module: str, how: str) -> str:
    """An ablation in words, such as `skipping an FFN`."""
    return f"skipping {NAMES[module]}" if how == "zero" else f"replacing {NAMES[module]} by its mean"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _largest(rows: pd.DataFrame, module: str) -> str:
    order = rows.sort_values("mean", ascending=False)
    top, how = order.iloc[0], str(rows["replacement"].iloc[0])
    others = order["mean"].iloc[1:]
    sure = len(others) and top["low_all"] > order["high_all"].iloc[1:].max()
    said = f"{_upper(named(module, how))} changes the policy most in layer {top['layer']}: KL {_between(top)} nats"
    rest = f", against a median of {_nats(others.median())} in the others" if len(others) else ""
    return f"{said}{rest}.{'' if sure or not len(others) else ' Another layer may matter as much.'}"


def _related(row: Mapping[Any, Any], how: str) -> str:
    module, what = str(row["module"]), named(str(row["module"]), str(row["replacement"]))
    subject = {"layer": "layers", "attn": "attention blocks", "mlp": "FFNs"}[module]
    if row["p"] > CHANCE or not (row["low"] > 0 or row["high"] < 0):
        verdict = "no relation was found"
    elif row["low"] > 0:
        verdict = f"{subject} with a higher entropy change matter more"
    else:
        verdict = f"{subject} with a lower entropy change matter more"
    low, high = (f"{row[end]:+.2f}" for end in ("low", "high"))
    between = f"{low} to {high}, " if np.isfinite(row["low"]) else ""
    p = f"p = {row['p']:.2f}" if row["p"] >= 0.01 else "p < 0.01"
    return (
        f"Over {counted(int(row['layers']), 'layer')}, the rank correlation between the entropy change ({how}) and the "
        f"KL of {what} is {row['correlation']:+.2f} ({between}{p} among orders of layers): {verdict}."
    )


def _lost(rows: pd.DataFrame, module: str) -> str:
    worst = rows.sort_values("mean").iloc[0]
    clear = rows[(rows["high_all"] < 0)]["layer"].tolist()
    where = f"It falls significantly in {len(clear)} of {counted(len(rows), 'layer')}." if clear else ""
    return (
        f"{_upper(named(module, str(worst['replacement'])))} costs the most reward in layer {worst['layer']}: "
        f"{_between(worst, signed=True)}, from {worst['intact']:.2f}. {where}"
    ).rstrip()


def _between(row: "pd.Series[Any]", *, signed: bool = False) -> str:
    """A mean with its interval for all layers at once, or for the layer alone where there is none."""
    ends = ("low_all", "high_all") if np.isfinite(row["low_all"]) else ("low", "high")
    values = [row["mean"], *(row[end] for end in ends)]
    mean, low, high = (f"{value:+.2f}" if signed else _nats(value) for value in values)
    return f"{mean} ({low} to {high})" if np.isfinite(values[1]) else mean


def _nats(value: float) -> str:
    """A number of nats with about two digits after the point, more if it is small."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.1g}"
