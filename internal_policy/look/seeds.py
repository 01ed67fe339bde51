"""Training runs that only differ in their seed: the mean reward of each method, and its difference from GRPO."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from internal_policy.errors import InputError, counted
from internal_policy.look import run_summary, runs
from internal_policy.look.bootstrap import CONFIDENCE
from internal_policy.look.runs import RunTables
from internal_policy.scans import records

STEPS = "steps.parquet"
"""File beside the folders of runs with the steps of many runs, as data/make_experiments.py writes it."""
GROUP = ["model", "method", "layer", "internal_steps"]
"""Columns of that file that runs with different seeds share."""
NEEDED = {*GROUP, "seed", "step", "reward"}
BASELINE = "grpo"
"""The method that others are compared with."""
TITLES = {
    **run_summary.METHODS,
    "bupo-norm": "BuPO through the final norm",
    "frozen": "GRPO with lower layers frozen",
    "single": "GRPO on one layer",
}
"""Method -> its title. The last ones are those of data/make_experiments.py."""
CHOOSING = 100
"""First seed of the bundled runs that chose the learning rates, which aren't results."""
LEAST = 2
"""Fewest seeds of each method."""
NOT_SETTINGS = (
    "seed",
    "output",
    "file",
    "config",
    "resume",
    "force",
    "save_every",
    "scan_every",
    "samples_every",
    "report_to",
    "answered",
)
"""Fields of run.json that may differ between runs of a group. `file` repeats what a configuration file set."""
SCHEDULE = (
    *("method", "layer", "target", "site", "readout", "internal_steps"),
    *("schedule", "switch_below", "switch_every"),
)
"""Fields of run.json that define a method. All others must be the same for a fair comparison."""


def read(chosen: Sequence[RunTables]) -> pd.DataFrame:
    """Rewards by group, method, seed and step: of several runs with a run.json, or of those recorded beside the first.

    `group` is what a method is called in words, with its layer. Raises InputError if no method has two seeds.
    """
    frame = _chosen(chosen) if seeds_known(chosen) else _beside(chosen[0])
    often = frame.groupby("group")["seed"].nunique()
    if not (often >= LEAST).any():
        raise InputError(
            f"No method has {LEAST} seeds here, and intervals need them. Train again with another --seed, and choose "
            "all the runs."
        )
    return frame[frame["group"].map(often) >= LEAST]


def seeds_known(chosen: Sequence[RunTables]) -> bool:
    """Whether these are several runs whose seeds are known."""
    return len(chosen) > 1 and all((run.folder / runs.RECORD).is_file() for run in chosen)


def available(chosen: Sequence[RunTables]) -> bool:
    """Whether there may be seeds to compare, in the runs or in those recorded beside the first."""
    return seeds_known(chosen) or (chosen[0].folder.parent / STEPS).is_file()


def _beside(run: RunTables) -> pd.DataFrame:
    """The runs of steps.parquet in the folder that holds the run's folder."""
    path = run.folder.parent / STEPS
    if not path.is_file():
        raise InputError(
            f"Intervals over seeds need several runs of `internal-policy train` with different --seed, and "
            f"{run.name} has no {STEPS} beside it."
        )
    try:
        found = pd.read_parquet(path)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise InputError(f"{path} is damaged ({type(error).__name__}). Remove it and write it again.") from error
    if missing := NEEDED - {*found.columns}:
        raise InputError(
            f"{path} has no column {', '.join(sorted(missing))}. It wasn't written by make_experiments.py."
        )
    found = found[found["seed"] < CHOOSING]
    called = _called(found[GROUP].drop_duplicates())
    keys = found[GROUP].itertuples(index=False, name=None)
    return found.assign(group=[called[key] for key in keys])[["group", "model", "method", "seed", "step", "reward"]]


def title(method: str) -> str:
    """What a method is called."""
    return TITLES.get(method, method)


def _called(groups: pd.DataFrame) -> dict[tuple[Any, ...], str]:
    """What each group is called in words; its layer is named where something was trained or frozen up to it."""
    called = {}
    several = groups.groupby(["model", "method"])["layer"].transform("nunique") > 1
    for key, more in zip(groups.itertuples(index=False, name=None), several, strict=True):
        model, method, layer, internal_steps = key
        at = f", layer {int(layer)}" if internal_steps or more else ""
        steps = f", {counted(int(internal_steps), 'internal step')}" if internal_steps else ""
        called[key] = f"{model!s:.40} · {title(method)}{at}{steps}"
    return called


def _chosen(chosen: Sequence[RunTables]) -> pd.DataFrame:
    """The metrics of runs with a run.json. Raises InputError if they differ in more than method and seed."""
    asked = [_settings(run) for run in chosen]
    common = [{name: value for name, value in one.items() if name not in (*NOT_SETTINGS, *SCHEDULE)} for one in asked]
    for other in common[1:]:
        if differ := [name for name in {*other, *common[0]} if other.get(name) != common[0].get(name)]:
            raise InputError(
                f"The runs differ in {', '.join(sorted(differ)[:3])}. Choose runs that share all but method and --seed."
            )
    frames = []
    for run, one in zip(chosen, asked, strict=True):
        metrics = run.metrics()
        method = run_summary.method(metrics)
        internal = metrics.loc[metrics["phase"] == "internal", "target"].astype(str)
        targets = ", ".join(dict.fromkeys(internal))
        steps = counted(len(internal), "internal step")
        name = f"{title(method)}, {targets}, {steps}" if len(internal) else title(method)
        model = str(one.get("model"))
        told = {"group": name, "model": model, "method": method, "seed": str(one.get("seed"))}
        frames.append(metrics[["step", "reward"]].assign(**told))
    frame = pd.concat(frames, ignore_index=True)
    if frame.duplicated(["group", "seed", "step"]).any():
        raise InputError("Two of the runs have the same method and seed. Choose one of them.")
    return frame


def _settings(run: RunTables) -> dict[str, Any]:
    try:
        return records.read(run.folder / runs.RECORD)
    except records.DAMAGE as error:
        raise InputError(
            f"{run.folder / runs.RECORD} is damaged ({error}). Train again with another --output."
        ) from error


def groups(frame: pd.DataFrame) -> list[str]:
    """The groups of other methods whose model was also trained with GRPO: BuPO's first, then those with most seeds."""
    baseline = set(frame.loc[frame["method"] == BASELINE, "model"])
    others = frame[(frame["method"] != BASELINE) & frame["model"].isin(baseline)]
    found = others.groupby("group", sort=False).agg(method=("method", "first"), often=("seed", "nunique"))
    found = found.assign(last=found["method"] != "bupo")
    ordered = found.sort_values(["last", "often"], ascending=[True, False], kind="stable")
    return [str(name) for name in ordered.index]


def compared(frame: pd.DataFrame, group: str | None, window: int) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """GRPO and a group of another method over the same seeds: their curves, the difference, and the group's name.

    Each seed's reward is averaged over the last `window` steps first. Curves have method, step, mean, low, high and
    seeds, those of GRPO last; the difference is the other method minus GRPO with the same seed. Raises InputError if
    there is nothing to compare.
    """
    known = groups(frame)
    if not known:
        raise InputError("These runs don't compare a method with GRPO. Choose at least two seeds of each.")
    if group is not None and group not in known:
        raise InputError(f"There is no group '{group:.80}'. Choose one of {json.dumps(known)[1:-1]}.")
    name = group or known[0]
    model, method = frame.loc[frame["group"] == name, ["model", "method"]].iloc[0]
    rewards = {
        method: _by_seed(frame[frame["group"] == name], window),
        BASELINE: _by_seed(frame[(frame["method"] == BASELINE) & (frame["model"] == model)], window),
    }
    seeds = rewards[method].columns.intersection(rewards[BASELINE].columns)
    if len(seeds) < LEAST:
        raise InputError(f"{title(method)} and GRPO share {len(seeds)} seeds here, and a comparison needs {LEAST}.")
    rewards = {method: table[seeds] for method, table in rewards.items()}
    curves = [interval(table).assign(method=method) for method, table in rewards.items()]
    return pd.concat(curves, ignore_index=True), interval(rewards[method] - rewards[BASELINE]), name


def _by_seed(frame: pd.DataFrame, window: int) -> pd.DataFrame:
    """Reward averaged over the last `window` steps, one row a step and one column a seed.

    The first steps, which have fewer before them, are left out. Raises InputError if that leaves none.
    """
    table = frame.pivot(index="step", columns="seed", values="reward").sort_index().dropna()
    if len(table) < window:
        raise InputError(
            f"Can't average over {window} steps, because the runs share only {counted(len(table), 'step')}. Choose "
            f"{max(len(table), 1)} or fewer."
        )
    return table.rolling(window).mean().dropna()


def interval(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over the columns with its 95% interval by Student's t: step, mean, low, high, seeds.

    Steps that a seed lacks are left out. With a handful of seeds a bootstrap interval would be too short.
    """
    from scipy.stats import t  # takes a third of a second to import

    whole = table.dropna().sort_index()
    n = whole.shape[1]
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * whole.std(axis=1, ddof=1) / np.sqrt(n)
    mean = whole.mean(axis=1)
    found = pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half, "seeds": n})
    return found.rename_axis("step").reset_index()


def verdict(curves: pd.DataFrame, difference: pd.DataFrame) -> str:
    """The difference of `compared` at the last step in a sentence that claims no more than its interval shows."""
    last, name = difference.iloc[-1], title(curves["method"].iloc[0])
    low, high = last["low"], last["high"]
    claim = "above GRPO" if low > 0 else "below GRPO" if high < 0 else "not shown to differ from GRPO"
    return (
        f"At step {int(last['step'])} the reward of {name} is {claim}: {last['mean']:+.3f} ({low:+.3f} to "
        f"{high:+.3f}) over {int(last['seeds'])} seeds."
    )
