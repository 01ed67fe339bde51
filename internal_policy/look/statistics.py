"""The paper's quantities of a scan, as small frames."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from internal_policy.errors import InputError
from internal_policy.measure.sites import CHANGES, ONLY_AT, WITH_FINAL

STAGES = ("exploration", "integration", "convergence")
"""What the interval of the FFN's entropy change is called above, around and below 0."""
RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0
"""Of the bootstrap: what is drawn anew, with replacement, is the rollouts, whose tokens depend on one another."""
FEWEST = 4
"""Rollouts that intervals for all layers at once need: 1 of 9 draws of three rollouts is one rollout three times."""

Average = Literal["tokens", "rollouts"]
"""Every token counts the same (the paper's micro average), or every rollout does."""
Part = Literal["total", "direction", "norm"]
"""Of an entropy change: all of it, or what comes from the direction, or from the norm, of the hidden state."""


def by_layer(layers: pd.DataFrame, readout: str, average: Average = "tokens") -> pd.DataFrame:
    """Mean entropies of a scan's table `layers`, in nats: one row a layer, `final` in the last.

    Columns are the sites that were measured and `change_layer`, `change_attn`, `change_mlp` where both sites were.
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
    """The mean of `measure` at every layer and site, with its 95 % interval: layer, site, mean, low, high.

    `layers` is a scan's table of one readout. The unit is the measure's own (nats for entropy, kl and logprob).
    """
    values = _wide(layers, measure)
    found = _summed(values, layers, average)
    order = {site: number for number, site in enumerate(WITH_FINAL)}
    return found.sort_values(
        ["layer", "site"], key=lambda c: c.map(order) if c.name == "site" else c, ignore_index=True
    )


def changes(layers: pd.DataFrame, average: Average = "tokens") -> pd.DataFrame:
    """Entropy changes in nats: layer, change, part, mean, and the ends of two 95 % intervals.

    `low` and `high` are those of the layer by itself; `low_all` and `high_all` hold for all layers of a change and part
    at once (`simultaneous`), which a choice among layers needs.

    The total is after minus before (Eqs. 11 to 13). Where the norm control was measured it is split, with
    h* = h_out |h_in| / |h_out|, into direction, H(h*) - H(h_in), and norm, H(h_out) - H(h*).
    """
    entropy = _wide(layers, "entropy")
    controlled = _wide(layers, "entropy_at_input_norm") if "entropy_at_input_norm" in layers else None
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
    weights = _weights(wide, layers, average)
    for _, rows in found.groupby(["change", "part"]):
        ends = simultaneous(wide.iloc[:, rows.index].to_numpy(dtype=float), weights)
        found.loc[rows.index, "low_all"], found.loc[rows.index, "high_all"] = ends
    return found.sort_values(names, ignore_index=True)


def _wide(layers: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A row a rollout, a column a layer and site; what no rollout has (a null column) is left out."""
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
    weights = _weights(values, layers, average)
    found["mean"], found["low"], found["high"] = interval(values.to_numpy(dtype=float), weights)
    return found


def _weights(values: pd.DataFrame, layers: pd.DataFrame, average: Average) -> np.ndarray:
    """The weight of each rollout, a row of `values`."""
    if average not in get_args(Average):
        raise InputError(f"There is no average over '{average}'. Choose tokens or rollouts.")
    tokens = layers.groupby("rollout")["tokens"].first().reindex(values.index).to_numpy(dtype=float)
    return tokens if average == "tokens" else np.ones_like(tokens)


def interval(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean over the rows of `values` (n, columns), and the ends of its 95 % bootstrap percentile interval.

    Rows are drawn anew with their weights (n,), so that a token average keeps the tokens of a rollout together. The
    ends are NaN where there is one row alone, and everything is where a value is.
    """
    from scipy.stats import bootstrap  # a third of a second, which the command line does not wait for

    n = len(values)
    totals = values * weights[:, None]
    mean = totals.sum(0) / weights.sum()
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    known = np.isfinite(mean)
    if n < 2 or not known.any():
        return mean, low, high

    def resampled(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        """The mean of each draw of rows (draws, n) -> (columns, draws): one product with how often each row came."""
        draws = np.moveaxis(rows, axis, -1).reshape(-1, n)
        counts = np.zeros((len(draws), n))
        np.add.at(counts, (np.arange(len(draws))[:, None], draws), 1)
        return ((counts @ totals[:, known]) / (counts @ weights)[:, None]).T

    ends = bootstrap(
        (np.arange(n),),
        resampled,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    low[known], high[known] = ends
    return mean, low, high


def simultaneous(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of 95 % intervals of the weighted means of all columns of `values` (n, columns) at once.

    In 95 % of samples every interval contains its true mean, and in 97.5 % none lies wholly above it. This is the
    bootstrap-t (Efron and Tibshirani 1993, ch. 12) of the largest of the columns' t (Romano and Wolf 2005), where
    t = (mean of a draw - mean) / the draw's own standard error. The ends are NaN with fewer than 4 rows, and in a
    column that has a NaN.
    """
    n, total = len(values), weights.sum()
    low, high = np.full((2, values.shape[1]), np.nan)
    mean = (values * weights[:, None]).sum(0) / total
    known = np.isfinite(mean)
    if n < FEWEST or not known.any():
        return low, high
    mean, off = mean[known], (values - mean)[:, known]
    off[np.abs(off) < 1e-12 * np.abs(mean)] = 0  # the same number in every row, apart from rounding
    errors = np.sqrt((weights[:, None] ** 2 * off**2).sum(0)) / total  # times the same sqrt(n / (n - 1)) as the draws'
    draws = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    counts = np.zeros((RESAMPLES, n))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], draws), 1)
    weighted, squares = counts * weights, counts * weights**2
    drawn = weighted.sum(1, keepdims=True)
    moved = weighted @ off / drawn
    variance = squares @ off**2 - 2 * moved * (squares @ off) + moved**2 * squares.sum(1, keepdims=True)
    floor = np.finfo(float).eps * (squares @ off**2)  # a draw that repeats one row has no spread
    spread = np.sqrt(np.maximum(variance, floor))
    t = np.divide(moved * drawn, spread, out=np.zeros_like(moved), where=spread > 0)
    outside = (1 - CONFIDENCE) / 2
    low[known] = mean - np.quantile(t.max(1), 1 - outside) * errors
    high[known] = mean - np.quantile(t.min(1), outside) * errors
    return low, high


def not_finite(layers: pd.DataFrame, dtype: str) -> str | None:
    """A warning that names the first NaN or infinity in a scan's table `layers`, with a remedy; None if all are finite.

    Cosines aren't checked, because they are undefined for a hidden state of 0.
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
        f"Warning: in {broken['rollout'].nunique()} of {layers['rollout'].nunique()} rollouts some numbers are NaN or "
        f"infinite, the first {first['measure']} at {where}: {overflow(dtype)}"
    )


def overflow(dtype: str) -> str:
    """Why numbers of a scan in this precision aren't finite, and what to do."""
    if dtype == "float16":  # its largest number is 65,504
        return "hidden states overflowed float16. Scan again with --dtype bfloat16 or --dtype float32."
    if dtype == "bfloat16":
        return "hidden states aren't finite in bfloat16. Scan again with --dtype float32."
    return f"hidden states aren't finite even in {dtype}. Check the model's configuration and weights."


def stages(changes: pd.DataFrame, part: Part = "total") -> pd.DataFrame:
    """The stage of each layer, by the FFN's entropy change: layer, stage.

    Exploration where its interval is above 0, convergence where it is below, integration where it contains 0; these are
    the 95 % intervals that hold for all layers at once, because with an interval for each layer alone about one of 36
    flat layers would seem to rise. The paper gives no threshold for "about 0". With fewer than 4 rollouts there are no
    such intervals, and no stages.
    """
    mlp = _ffn(changes, part).dropna(subset=["low_all", "high_all"])
    stage = np.where(mlp["low_all"] > 0, STAGES[0], np.where(mlp["high_all"] < 0, STAGES[2], STAGES[1]))
    return pd.DataFrame({"layer": mlp["layer"].to_numpy(), "stage": stage}).sort_values("layer", ignore_index=True)


def _ffn(changes: pd.DataFrame, part: Part) -> pd.DataFrame:
    if part not in get_args(Part):
        raise InputError(f"There is no part '{part}' of an entropy change. Choose one of {', '.join(get_args(Part))}.")
    return changes[(changes["change"] == "mlp") & (changes["part"] == part)]


def target(stages: pd.DataFrame) -> int | None:
    """The layer that BuPO would train, from 0: the last one of exploration. None if there is none."""
    explored = stages.loc[stages["stage"] == STAGES[0], "layer"]
    return int(explored.max()) if len(explored) else None


def runner_up(changes: pd.DataFrame, part: Part = "total") -> int | None:
    """The layer to consider beside the target: the last other one whose interval by itself is above 0, or None.

    It is a later layer than the target if one seems to rise, but not significantly among so many; else an earlier one.
    """
    mlp, chosen = _ffn(changes, part), target(stages(changes, part))
    rising = mlp.loc[(mlp["low"] > 0) & (mlp["layer"] != chosen), "layer"]
    return int(rising.max()) if len(rising) else None


def spans(stages: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Runs of layers of one stage: its name, its first and its last layer, from 0."""
    found: list[tuple[str, int, int]] = []
    for layer, stage in stages.itertuples(index=False):
        if found and found[-1][0] == stage and found[-1][2] == layer - 1:
            found[-1] = (stage, found[-1][1], int(layer))
        else:
            found.append((stage, int(layer), int(layer)))
    return found


def targets(changes: pd.DataFrame) -> pd.DataFrame:
    """Stages and target layer under the change as it is and under each part of it, a row a part.

    Columns: part, target, runner_up (layers from 0), spans, and of the target's change mean, low and high (nats; the
    interval holds for all layers at once).
    """
    parts: list[Part] = [part for part in get_args(Part) if (changes["part"] == part).any()]
    found = [stages(changes, part) for part in parts]
    frame = pd.DataFrame(
        {
            "part": parts,
            "target": [target(s) for s in found],
            "runner_up": [runner_up(changes, part) for part in parts],
            "spans": [spans(s) for s in found],
        }
    ).astype({"target": "Int64", "runner_up": "Int64"})
    ends = changes[changes["change"] == "mlp"].set_index(["part", "layer"])[["mean", "low_all", "high_all"]]
    ends.columns = ["mean", "low", "high"]
    return frame.join(ends, on=["part", "target"])


def suggestion(changes: pd.DataFrame) -> dict[str, Any]:
    """The row of `targets` for the change as it is, in plain values that JSON can hold; None for what is missing."""
    (row,) = targets(changes).query("part == 'total'").to_dict("records")
    return {str(name): value if isinstance(value, list) or pd.notna(value) else None for name, value in row.items()}


def target_in_words(found: Mapping[str, Any]) -> str:
    """A `suggestion` as a sentence: which layer BuPO trains first, by which rule, and the runner-up."""
    if not found["spans"]:
        return (
            f"No target layer: choosing one needs at least {FEWEST} responses, and the entropy before and after the "
            "FFN."
        )
    if found["target"] is None:
        other = "" if found["runner_up"] is None else f"; layer {found['runner_up']} comes closest"
        return f"No layer's FFN raises entropy significantly, so there is no target layer{other}."
    interval = f"{found['mean']:+.3g} nats, {found['low']:.3g} to {found['high']:.3g}"
    other = "there is no runner-up" if found["runner_up"] is None else f"the runner-up is layer {found['runner_up']}"
    return (
        f"Target layer: {found['target']}, the last whose FFN raises entropy significantly ({interval}, with 95 % "
        f"confidence for all layers at once); {other}."
    )


def settling(settled: pd.DataFrame) -> int | None:
    """The depth by which half of the tokens have settled on the model's choice: a layer from 0; None if none has.

    `settled` is `means` of the measure `settled`.
    """
    reached = settled.loc[settled["mean"] >= 0.5, "layer"]
    return int(reached.min()) if len(reached) else None


def relative(frame: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    """The frame with `depth`, the share of the model's layers that has been passed after a layer: 1 is all of them.

    A layer's input is drawn where the layer before ended; `final` stands at 1.
    """
    passed = frame["layer"] + (frame["site"] != "resid_pre" if "site" in frame else 1)
    return frame.assign(depth=np.minimum(passed / n_layers, 1.0))


def _problems(asked: dict[str, Any]) -> Any:
    """What identifies the problems: the contents of their files, without the lens, which every model has its own of.

    A hub data set is identified by its name and commit, as text.
    """
    held = {path: found for path, found in (asked.get("content") or {}).items() if path != asked.get("lens")}
    found = [content if "sha256" in (content or {}) else named(path, content) for path, content in held.items()]
    return (found[0] if len(found) == 1 else sorted(found, key=str)) or asked.get("problems")


def named(path: str, content: dict[str, Any] | None) -> str:
    """A source of problems in words: its path, or the name and commit of a hub data set."""
    revision = (content or {}).get("revision")
    return f"{path} (commit {revision[:12]})" if revision else path


def differences(records: Sequence[dict[str, Any]]) -> list[str]:
    """What else than the model differs between scans that are compared, in sentences: caveats of the comparison."""
    questions = {
        "the problems": lambda r: _problems(r["asked"]),
        "how many rollouts": lambda r: r["rollouts"],
        "the temperature": lambda r: r["asked"].get("temperature"),
        "the length limit of a response": lambda r: r["asked"].get("max_new_tokens"),
        "the size of the vocabulary, and so the largest possible entropy": lambda r: r["d_vocab"],
        "the weights' precision": lambda r: r["dtype"],
    }
    found = []
    for what, ask in questions.items():
        answers = [ask(record) for record in records]
        if any(answer != answers[0] for answer in answers):
            plain = all(isinstance(answer, int | float | str) for answer in answers)
            found.append(f"The scans differ in {what}{': ' + ', '.join(map(str, answers)) if plain else ''}.")
    return found
