"""Results of training runs on held-out problems, with intervals over seeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from internal_policy.look import theme
from internal_policy.look.theme import Style

GROUP = ["model", "method", "layer", "internal_steps"]
"""Runs that only differ in their seed. The layer of `grpo` and `rloo` is unused."""
METHODS = {
    "grpo": "GRPO",
    "bupo": "BuPO",
    "same": "GRPO at BuPO's rate",
    "frozen": "GRPO, lower layers frozen",
    "tenth": "GRPO, upper layers at 1/10",
    "rloo": "RLOO",
}
"""Method -> its name. `frozen` and `tenth` change the layers up to BuPO's, or above it."""
BASELINE, UNTRAINED = "grpo", "untrained"
CHOOSING = 100
"""Seed of the runs that chose the learning rates. They aren't reported."""
CONFIDENCE = 0.95


def reported(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `evaluations.parquet` or `steps.parquet` that results are made of."""
    return runs[(runs["method"] != UNTRAINED) & (runs["seed"] != CHOOSING)].astype(
        dict.fromkeys(("layer", "internal_steps", "seed"), "int64")
    )


def ends(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The last evaluation of every reported run."""
    last = reported(evaluations).sort_values("step").groupby([*GROUP, "seed"], sort=False).tail(1)
    order = {method: number for number, method in enumerate(METHODS)}
    by = [*GROUP, "seed"]
    return last.sort_values(by, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)


def untrained(evaluations: pd.DataFrame) -> Mapping[str, float]:
    """Model -> Avg@K before training."""
    rows = evaluations[evaluations["method"] == UNTRAINED]
    return dict(zip(rows["model"], rows["avg"], strict=True))


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of a few independent values, with its 95% interval by Student's t. A single value has NaN for its ends."""
    from scipy.stats import t  # takes a third of a second to import

    n = len(values)
    mean = float(np.mean(values)) if n else float("nan")
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def at(evaluations: pd.DataFrame, run: Mapping[str, Any], seconds: float) -> float:
    """Avg@K of a run after some CPU seconds of training, interpolated between its evaluations.

    The untrained model counts as an evaluation at 0 seconds. After the last evaluation the result is NaN.
    """
    mine = evaluations["method"] == run["method"]
    for name in ("model", "layer", "internal_steps", "seed"):
        mine &= evaluations[name] == run[name]
    rows = evaluations[mine].sort_values("cpu_seconds")
    times = np.array([0.0, *rows["cpu_seconds"]])
    marks = np.array([untrained(evaluations)[run["model"]], *rows["avg"]])
    return float(np.interp(seconds, times, marks, right=float("nan")))


def pairs(evaluations: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Each run minus the baseline run of the same model and seed: GROUP, seed, difference, equal, seconds.

    `difference` compares Avg@K at the end of training. `equal` compares it at equal compute: after `seconds`, when the
    faster of the two runs ended.
    """
    last = ends(evaluations)
    others = last[last["method"] != baseline]
    both = others.merge(last[last["method"] == baseline], on=["model", "seed"], suffixes=("", "_baseline"))
    rows = []
    for pair in both.to_dict("records"):
        run: dict[str, Any] = {str(name): value for name, value in pair.items()}
        other = {name: run.get(f"{name}_baseline", run[name]) for name in [*GROUP, "seed"]}
        seconds = min(run["cpu_seconds"], run["cpu_seconds_baseline"])
        rows.append(
            {
                **{name: run[name] for name in [*GROUP, "seed"]},
                "difference": run["avg"] - run["avg_baseline"],
                "equal": at(evaluations, run, seconds) - at(evaluations, other, seconds),
                "seconds": seconds,
            }
        )
    return pd.DataFrame(rows, columns=[*GROUP, "seed", "difference", "equal", "seconds"])


def table(evaluations: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """One row per group: GROUP, learning_rate, seeds, cpu_seconds, and Avg@K at the end with its interval over seeds.

    `avg`, `difference` (from `baseline` over the same seeds, `pairs` of them) and `equal` (the same at equal compute)
    each have `_low` and `_high`. Avg@K is a share, and cpu_seconds is a mean.
    """
    last, paired = ends(evaluations), pairs(evaluations, baseline)
    rows = []
    for key, runs in last.groupby(GROUP, sort=False):
        names = key if isinstance(key, tuple) else (key,)
        mine = paired[(paired[GROUP] == list(names)).all(axis=1)]
        row: dict[str, Any] = dict(zip(GROUP, names, strict=True))
        row |= {"learning_rate": runs["learning_rate"].iloc[0], "seeds": len(runs)}
        row |= {"cpu_seconds": runs["cpu_seconds"].mean(), "pairs": len(mine)}
        for name, values in (("avg", runs["avg"]), ("difference", mine["difference"]), ("equal", mine["equal"])):
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interval(values.to_numpy(dtype=float))
        rows.append(row)
    return pd.DataFrame(rows)


def main(groups: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main comparison: every method, with BuPO at GRPO's layer and its shortest internal phase."""
    layers = groups[groups["method"] == BASELINE].groupby("model")["layer"].first()
    here = groups[groups["layer"] == groups["model"].map(layers)]
    lengths = here[here["method"] == "bupo"].groupby("model")["internal_steps"].min()
    return here[(here["method"] != "bupo") | (here["internal_steps"] == here["model"].map(lengths))]


def grid(groups: pd.DataFrame) -> pd.DataFrame:
    """The BuPO rows of models with more than one trained layer."""
    bupo = groups[groups["method"] == "bupo"]
    return bupo[bupo.groupby("model")["layer"].transform("nunique") > 1]


def rewards(steps: pd.DataFrame, window: int) -> pd.DataFrame:
    """Mean training reward over seeds with its interval: GROUP, step, mean, low, high, seeds.

    Each seed is first averaged over the last `window` steps. The first steps, which have fewer before them, are left
    out.
    """
    runs = reported(steps).sort_values("step")
    smooth = runs.groupby([*GROUP, "seed"])["reward"].transform(lambda reward: reward.rolling(window).mean())
    found = runs.assign(smooth=smooth).dropna(subset="smooth")
    rows = [
        (*(key if isinstance(key, tuple) else (key,)), *interval(values.to_numpy(dtype=float)), len(values))
        for key, values in found.groupby([*GROUP, "step"])["smooth"]
    ]
    return pd.DataFrame(rows, columns=[*GROUP, "step", "mean", "low", "high", "seeds"])


def label(group: Mapping[str, Any], style: Style = "screen") -> str:
    """A group in words, with its layer counted as figures in this style count."""
    name = METHODS[group["method"]]
    if group["method"] != "bupo":
        return name
    first = theme.first_layer(style)
    layer = f"layer {group['layer'] + first}{f' (from {first})' if first else ''}"
    return f"{name}, {layer}, {group['internal_steps']} steps"


def sentences(groups: pd.DataFrame, baseline: str = BASELINE) -> list[str]:
    """Each group of `table` compared with `baseline` in words, which claim no more than the intervals show."""
    said = []
    name = METHODS[baseline]
    for row in groups[(groups["method"] != baseline) & (groups["pairs"] > 0)].to_dict("records"):
        group = {str(name): value for name, value in row.items()}
        ends = [
            f"{_points(group, column, name)} {what}"
            for column, what in (("difference", "at the end of training"), ("equal", "at equal CPU time"))
        ]
        n = f"{group['pairs']} seed{'' if group['pairs'] == 1 else 's'}"
        said.append(f"{group['model']}, {label(group)} vs. {name} over {n}: {', and '.join(ends)}.")
    return said


def shown(groups: pd.DataFrame) -> pd.DataFrame:
    """A readable `table`: one row per group, Avg@K in percent and differences in points, each with its interval."""
    rows = [{str(name): value for name, value in row.items()} for row in groups.to_dict("records")]
    return pd.DataFrame(
        {
            "model": groups["model"],
            "method": [label(row) for row in rows],
            "learning rate": [f"{row['learning_rate']:g}" for row in rows],
            "seeds": groups["seeds"],
            "CPU s": [f"{row['cpu_seconds']:,.0f}" for row in rows],
            "Avg@K (%)": [_between(row, "avg", ".1f") for row in rows],
            "vs. GRPO": [_between(row, "difference", "+.1f") for row in rows],
            "at equal CPU time": [_between(row, "equal", "+.1f") for row in rows],
        }
    )


def _between(group: Mapping[str, Any], name: str, form: str) -> str:
    mean, low, high = (100 * group[f"{name}{end}"] for end in ("", "_low", "_high"))
    if np.isnan(mean):
        return ""
    return f"{mean:{form}}" + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")


def _points(group: Mapping[str, Any], column: str, baseline: str) -> str:
    low, high = group[f"{column}_low"], group[f"{column}_high"]
    said = _between(group, column, "+.1f").removesuffix(")")
    if np.isnan(low):
        return f"{said} points (one seed: no interval)"
    verdict = f"above {baseline}" if low > 0 else f"below {baseline}" if high < 0 else "no difference shown"
    return f"{said.replace(' (', ' points (')}: {verdict})"
