"""Results of training runs in exams, with intervals over seeds."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from internal_policy.look import theme
from internal_policy.look.theme import Style

GROUP = ["model", "method", "layer", "internal_steps"]
"""Runs that only differ in their seed. The layer of `grpo` and `rloo` is unused."""
METHODS = {
    "grpo": "GRPO",
    "bupo": "BuPO",
    "bupo-norm": "BuPO through the norm",
    "rloo": "RLOO",
    "frozen": "GRPO, lower layers frozen",
    "single": "GRPO, one layer only",
    "grpo-matched": "GRPO at BuPO's rate",
}
"""Method -> its name. `frozen` trains the layers above its own, `single` only its own."""
BASELINE, MATCHED, UNTRAINED = "grpo", "grpo-matched", "untrained"
INTERNAL = ("bupo", "bupo-norm")
CHOOSING = 100
"""First seed of the runs that chose the learning rates. They aren't reported."""
CONFIDENCE = 0.95
DIFFERENCES = {
    "difference": "at equal steps",
    "equal": "at equal operations",
    "delayed": "at equal steps of the whole policy",
}
"""Column of `pairs` -> at which points the two runs are compared."""


def reported(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `evaluations.parquet` or `steps.parquet` that results are made of."""
    return runs[(runs["method"] != UNTRAINED) & (runs["seed"] < CHOOSING)].astype(
        dict.fromkeys(("layer", "internal_steps", "seed"), "int64")
    )


def ends(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The last exam of every reported run."""
    last = reported(evaluations).sort_values("step").groupby([*GROUP, "seed"], sort=False).tail(1)
    return _sorted(last, "seed")


def _sorted(frame: pd.DataFrame, last: str) -> pd.DataFrame:
    """Sorted by group, with the methods in the order of METHODS, and then by a last column."""
    order = {method: number for number, method in enumerate(METHODS)}
    by = [*GROUP, last]
    return frame.sort_values(by, key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True)


def untrained(evaluations: pd.DataFrame) -> Mapping[str, float]:
    """Model -> Avg@K before training."""
    rows = evaluations[evaluations["method"] == UNTRAINED]
    return dict(zip(rows["model"], rows["avg"], strict=True))


def interval(values: np.ndarray, comparisons: int = 1) -> tuple[float, float, float]:
    """Mean of a few independent values, with its 95% interval by Student's t. A single value has NaN for its ends.

    With several comparisons the interval is wide enough to hold for all of them at once (Bonferroni).
    """
    from scipy.stats import t  # takes a third of a second to import

    n = len(values)
    mean = float(np.mean(values)) if n else float("nan")
    if n < 2:
        return mean, float("nan"), float("nan")
    level = (1 - CONFIDENCE) / 2 / comparisons
    half = float(t.ppf(1 - level, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def _exams(evaluations: pd.DataFrame, run: Mapping[str, Any]) -> pd.DataFrame:
    """The exams of a run in their order, with the untrained model as the first."""
    mine = evaluations["method"] == run["method"]
    for name in ("model", "layer", "internal_steps", "seed"):
        mine &= evaluations[name] == run[name]
    first = pd.DataFrame([{"step": 0, "flops": 0.0, "avg": untrained(evaluations)[run["model"]]}])
    return pd.concat([first, evaluations.loc[mine, ["step", "flops", "avg"]].sort_values("step")], ignore_index=True)


def at(evaluations: pd.DataFrame, run: Mapping[str, Any], where: str, value: float) -> float:
    """Avg@K of a run at a value of `step` or `flops`, interpolated between its exams; NaN after the last one."""
    exams = _exams(evaluations, run)
    return float(np.interp(value, exams[where], exams["avg"], right=float("nan")))


def pairs(evaluations: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Each run minus the baseline run of the same model and seed: GROUP, seed and the columns of DIFFERENCES.

    `difference` compares Avg@K at the end of training. `equal` compares it at equal operations, where the cheaper of
    the two runs ended. `delayed` compares the end of the run with the baseline as many steps earlier as the run had
    internal steps, when the whole policy had been trained as often; NaN without internal steps.
    """
    last = ends(evaluations)
    others = last[last["method"] != baseline]
    both = others.merge(last[last["method"] == baseline], on=["model", "seed"], suffixes=("", "_baseline"))
    rows = []
    for pair in both.to_dict("records"):
        run: dict[str, Any] = {str(name): value for name, value in pair.items()}
        other = {name: run.get(f"{name}_baseline", run[name]) for name in [*GROUP, "seed"]}
        flops = min(run["flops"], run["flops_baseline"])
        earlier = at(evaluations, other, "step", run["step"] - run["internal_steps"])
        rows.append(
            {
                **{name: run[name] for name in [*GROUP, "seed"]},
                "difference": run["avg"] - run["avg_baseline"],
                "equal": at(evaluations, run, "flops", flops) - at(evaluations, other, "flops", flops),
                "delayed": run["avg"] - earlier if run["internal_steps"] else float("nan"),
            }
        )
    return pd.DataFrame(rows, columns=[*GROUP, "seed", *DIFFERENCES])


def table(evaluations: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """One row per group: GROUP, learning_rate, seeds, flops, and Avg@K at the end with its interval over seeds.

    `avg` and the columns of DIFFERENCES (means of `pairs`) each have `_low` and `_high`. The intervals of differences
    hold for all groups of a model at once. Avg@K is a share, and flops a mean.
    """
    last, paired = ends(evaluations), pairs(evaluations, baseline)
    comparisons = paired.groupby("model")[GROUP].apply(lambda rows: len(rows.drop_duplicates()))
    rows = []
    for key, runs in last.groupby(GROUP, sort=False):
        names = key if isinstance(key, tuple) else (key,)
        mine = paired[(paired[GROUP] == list(names)).all(axis=1)]
        row: dict[str, Any] = dict(zip(GROUP, names, strict=True))
        row |= {"learning_rate": runs["learning_rate"].iloc[0], "seeds": len(runs)}
        row |= {"flops": runs["flops"].mean(), "pairs": len(mine)}
        row["avg"], row["avg_low"], row["avg_high"] = interval(runs["avg"].to_numpy(dtype=float))
        for name in DIFFERENCES:
            values = mine[name].dropna().to_numpy(dtype=float)
            among = int(comparisons.get(row["model"], 1))
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interval(values, among)
        rows.append(row)
    return pd.DataFrame(rows)


def bupo(groups: pd.DataFrame, *, long: bool) -> pd.DataFrame:
    """The BuPO groups of each model with the longest first phase, or those with the shortest."""
    found = groups[groups["method"].isin(INTERNAL)]
    lengths = found.groupby("model")["internal_steps"].transform("max" if long else "min")
    return found[found["internal_steps"] == lengths]


def grid(groups: pd.DataFrame) -> pd.DataFrame:
    """The groups of BuPO with the raw readout, of every trained layer and length."""
    return groups[groups["method"] == "bupo"]


def curves(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Mean Avg@K over seeds at each exam with its interval: GROUP, step, flops, mean, low, high, seeds.

    Step 0 is the untrained model, which has no interval over seeds.
    """
    rows = []
    for key, runs in reported(evaluations).groupby([*GROUP, "step"]):
        names = key if isinstance(key, tuple) else (key,)
        rows.append((*names, runs["flops"].mean(), *interval(runs["avg"].to_numpy(dtype=float)), len(runs)))
    found = pd.DataFrame(rows, columns=[*GROUP, "step", "flops", "mean", "low", "high", "seeds"])
    first = found.groupby(GROUP, as_index=False)["seeds"].max().assign(step=0, flops=0.0)
    first["mean"] = first["low"] = first["high"] = first["model"].map(untrained(evaluations))
    return _sorted(pd.concat([first, found], ignore_index=True), "step")


def predicted(evaluations: pd.DataFrame, alignment: pd.DataFrame) -> pd.DataFrame:
    """How much of GRPO's gain each first phase made, and how much the alignment of its layer predicts.

    One row per BuPO group: GROUP, readout, seeds, `gain` (a share of GRPO's gain over the same steps at the same rate,
    means over seeds) and `predicted`, each with `_low` and `_high`. The interval of `gain` is a jackknife over seeds.
    `alignment` has the rows of `internal-policy align` with a column `model`. Groups without GRPO at their rate are
    left out.
    """
    rows = []
    runs = reported(evaluations)
    for key, mine in runs[runs["method"].isin(INTERNAL)].groupby(GROUP):
        model, method, layer, length = cast(tuple[str, str, int, int], key)
        then = runs[(runs["model"] == model) & (runs["step"] == length) & runs["method"].isin((BASELINE, MATCHED))]
        both = mine[mine["step"] == length].merge(then, on=["seed", "learning_rate"], suffixes=("", "_grpo"))
        if both.empty:
            continue
        gained = both[["avg", "avg_grpo"]].to_numpy(dtype=float) - untrained(evaluations)[model]
        readout = "norm" if method == "bupo-norm" else "raw"
        here = (alignment["measure"] == "gain") & (alignment["readout"] == readout)
        (said,) = alignment[here & (alignment["model"] == model) & (alignment["layer"] == layer)].to_dict("records")
        share, low, high = _share(gained)
        rows.append(
            (
                model,
                method,
                layer,
                length,
                readout,
                len(both),
                share,
                low,
                high,
                said["mean"],
                said["low"],
                said["high"],
            )
        )
    ends = ("", "_low", "_high")
    columns = [*GROUP, "readout", "seeds", *(f"gain{end}" for end in ends), *(f"predicted{end}" for end in ends)]
    return pd.DataFrame(rows, columns=columns)


def _share(gained: np.ndarray) -> tuple[float, float, float]:
    """Ratio of the means of two columns, with its 95% interval by a jackknife over rows."""
    from scipy.stats import t

    n, total = len(gained), gained.sum(axis=0)
    share = float(total[0] / total[1])
    if n < 2:
        return share, float("nan"), float("nan")
    without = total - gained
    left = without[:, 0] / without[:, 1]
    error = float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return share, share - half, share + half


def label(group: Mapping[str, Any], style: Style = "screen") -> str:
    """A group in words, with its layer counted as figures in this style count."""
    name = METHODS[group["method"]]
    if group["layer"] < 0:
        return name
    first = theme.first_layer(style)
    layer = f"layer {group['layer'] + first}{f' (from {first})' if first else ''}"
    if group["method"] == "frozen":
        return f"{name} up to {layer}"
    return f"{name}, {layer}" + (f", {group['internal_steps']} steps" if group["method"] in INTERNAL else "")


def sentences(groups: pd.DataFrame, baseline: str = BASELINE) -> list[str]:
    """Each group of `table` compared with `baseline` in words, which claim no more than the intervals show."""
    said = []
    name = METHODS[baseline]
    for row in groups[(groups["method"] != baseline) & (groups["pairs"] > 0)].to_dict("records"):
        group = {str(name): value for name, value in row.items()}
        compared = [name for name in DIFFERENCES if not np.isnan(group[name])]
        parts = [f"{points(group, column, name)} {DIFFERENCES[column]}" for column in compared]
        n = f"{group['pairs']} seed{'' if group['pairs'] == 1 else 's'}"
        said.append(f"{group['model']}, {label(group)} vs. {name} over {n}: {'; '.join(parts)}.")
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
            "TFLOPs": [f"{row['flops'] / 1e12:.1f}" for row in rows],
            "Avg@K (%)": [_between(row, "avg", ".1f") for row in rows],
            **{f"vs. GRPO {what}": [_between(row, name, "+.1f") for row in rows] for name, what in DIFFERENCES.items()},
        }
    )


def _between(group: Mapping[str, Any], name: str, form: str) -> str:
    mean, low, high = (100 * group[f"{name}{end}"] for end in ("", "_low", "_high"))
    if np.isnan(mean):
        return ""
    return f"{mean:{form}}" + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")


def points(group: Mapping[str, Any], column: str, baseline: str) -> str:
    """A difference of `table` in points with its interval, and what it shows."""
    low, high = group[f"{column}_low"], group[f"{column}_high"]
    said = _between(group, column, "+.1f").removesuffix(")")
    if np.isnan(low):
        return f"{said} points (one seed: no interval)"
    verdict = f"above {baseline}" if low > 0 else f"below {baseline}" if high < 0 else "no difference shown"
    return f"{said.replace(' (', ' points (')}: {verdict})"
