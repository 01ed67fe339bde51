"""The paper's quantities of a scan, as small frames."""

from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from internal_policy.errors import InputError, counted
from internal_policy.look import bootstrap
from internal_policy.measure.sites import CHANGES, ONLY_AT, WITH_FINAL

Average = Literal["tokens", "rollouts"]
"""Every token counts the same (the paper's micro average), or every rollout does."""
Part = Literal["total", "direction", "norm"]
"""Parts of an entropy change: the total, or what the direction or norm of the hidden state contributes."""


def by_layer(layers: pd.DataFrame, readout: str, average: Average = "tokens") -> pd.DataFrame:
    """Mean entropies of a scan's table `layers`, in nats: one row per layer, with `final` in the last.

    Columns are the measured sites, and `change_layer`, `change_attn` and `change_mlp` where both sites were measured.
    """
    chosen = layers[layers["readout"] == readout]
    weights = chosen["tokens"] if average == "tokens" else 1
    weighted = chosen.assign(total=chosen["entropy"] * weights, weight=weights)
    sums = weighted.groupby(["layer", "site"])[["total", "weight"]].sum(skipna=False)
    means = (sums["total"] / sums["weight"]).unstack("site")
    for name, (before, after) in CHANGES.items():
        if before in means and after in means:
            means[f"change_{name}"] = means[after] - means[before]
    return means


def means(layers: pd.DataFrame, measure: str = "entropy", average: Average = "tokens") -> pd.DataFrame:
    """The mean of `measure` at each layer and site, with its 95% interval: layer, site, mean, low, high.

    `layers` is a scan's table of one readout. Values are in the measure's unit (nats for entropy, kl and logprob).
    """
    values = by_rollout(layers, measure)
    found = _summed(values, layers, average)
    order = {site: number for number, site in enumerate(WITH_FINAL)}
    return found.sort_values(
        ["layer", "site"], key=lambda c: c.map(order) if c.name == "site" else c, ignore_index=True
    )


def changes(layers: pd.DataFrame, average: Average = "tokens") -> pd.DataFrame:
    """Entropy changes in nats: layer, change, part, mean, and the ends of two 95% intervals.

    `low` and `high` belong to the layer alone. `low_all` and `high_all` hold for all layers of a change and part at
    once (`bootstrap.simultaneous`), as choosing among layers requires.

    The total is after minus before (Eqs. 11 to 13). If the norm control was measured, it is split with
    h* = h_out |h_in| / |h_out| into direction, H(h*) - H(h_in), and norm, H(h_out) - H(h*).
    """
    entropy = by_rollout(layers, "entropy")
    controlled = by_rollout(layers, "entropy_at_input_norm") if "entropy_at_input_norm" in layers else None
    columns: dict[tuple[Any, ...], pd.Series] = {}
    for layer, site in entropy.columns:
        for change, (before, after) in CHANGES.items():
            if site != after or (layer, before) not in entropy:
                continue
            output, source = entropy[layer, after], entropy[layer, before]
            columns[layer, change, "total"] = output - source
            if controlled is not None and (layer, after) in controlled:
                columns[layer, change, "direction"] = controlled[layer, after] - source
                columns[layer, change, "norm"] = output - controlled[layer, after]
    names = ["layer", "change", "part"]
    if not columns:
        return pd.DataFrame(columns=[*names, "mean", "low", "high", "low_all", "high_all"])
    wide = pd.DataFrame(columns)
    wide.columns.names = names
    found = _summed(wide, layers, average)
    weights = weights_of(wide, layers, average)
    for _, rows in found.groupby(["change", "part"]):
        ends = bootstrap.simultaneous(wide.iloc[:, rows.index].to_numpy(dtype=float), weights)
        found.loc[rows.index, "low_all"], found.loc[rows.index, "high_all"] = ends
    return found.sort_values(names, ignore_index=True)


def by_rollout(layers: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One row per rollout, one column per layer and site. Columns without any value are left out."""
    if measure not in layers:
        return pd.DataFrame(
            index=pd.Index([], name="rollout"), columns=pd.MultiIndex.from_arrays([[], []], names=["layer", "site"])
        )
    measured = layers.groupby("site")[measure].transform("count") > 0
    return layers[measured].pivot(index="rollout", columns=["layer", "site"], values=measure)


def _summed(values: pd.DataFrame, layers: pd.DataFrame, average: Average) -> pd.DataFrame:
    """Mean, low and high of each column of `values`, whose rows are rollouts."""
    found = values.columns.to_frame(index=False)
    if not len(found):
        return found.assign(mean=[], low=[], high=[])
    weights = weights_of(values, layers, average)
    found["mean"], found["low"], found["high"] = bootstrap.interval(values.to_numpy(dtype=float), weights)
    return found


def weights_of(values: pd.DataFrame, layers: pd.DataFrame, average: Average) -> np.ndarray:
    """The weight of each rollout, a row of `values`."""
    if average not in get_args(Average):
        raise InputError(f"There is no average over '{average}'. Choose tokens or rollouts.")
    tokens = layers.groupby("rollout")["tokens"].first().reindex(values.index).to_numpy(dtype=float)
    return tokens if average == "tokens" else np.ones_like(tokens)


def not_finite(layers: pd.DataFrame, dtype: str) -> str | None:
    """A warning that names the first NaN or infinity in a scan's table `layers`, with a remedy; None if all are finite.

    Cosines aren't checked, because a hidden state of 0 has none.
    """
    found = pd.Series("", layers.index)
    for measure in [name for name in layers if name in ("entropy", "logprob", "kl", "norm", "entropy_at_input_norm")]:
        exists = layers["site"].isin(ONLY_AT.get(str(measure), WITH_FINAL))
        if measure == "entropy_at_input_norm":
            exists &= layers["readout"] == "raw"
        found[exists & ~np.isfinite(layers[measure]) & (found == "")] = str(measure)
    broken = layers.assign(measure=found)[found != ""]
    if not len(broken):
        return None
    first = broken.sort_values("layer", kind="stable").iloc[0]
    where = "final" if first["site"] == "final" else f"{first['layer']}.{first['site']}"
    return (
        f"Warning: in {broken['rollout'].nunique()} of {counted(layers['rollout'].nunique(), 'rollout')} some numbers "
        f"are NaN or infinite, the first {first['measure']} at {where}: {overflow(dtype)}"
    )


def overflow(dtype: str) -> str:
    """Why numbers in this precision aren't finite, and what to do."""
    if dtype == "float16":  # its largest number is 65,504
        return "hidden states overflowed float16. Scan again with --dtype bfloat16 or --dtype float32."
    if dtype == "bfloat16":
        return "hidden states aren't finite in bfloat16. Scan again with --dtype float32."
    return f"hidden states aren't finite even in {dtype}. Check the model's configuration and weights."


def settling(settled: pd.DataFrame) -> int | None:
    """The first layer, from 0, by which half of the tokens have settled on the model's top token; None if none.

    `settled` is `means` of the measure `settled`.
    """
    reached = settled.loc[settled["mean"] >= 0.5, "layer"]
    return int(reached.min()) if len(reached) else None
