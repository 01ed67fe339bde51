"""The layers of a model at several steps of its training, from a study or a training run on disk."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.look import bootstrap, differences, jackknife, runs, statistics, view
from internal_policy.look.statistics import Average
from internal_policy.measure.sites import WITH_FINAL
from internal_policy.scans import records, store, study

ALONE = {"rollout": 0, "tokens": 1}
"""Columns for the rollouts of a training run, which keeps only means over them: all count as one."""


def listed() -> dict[str, Path]:
    """Studies by name: those of the cache, newest first."""
    found = {path.parent for path in store.root().glob(f"{study.FOLDER}/*/{study.RECORD}")}
    newest = sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)
    return {folder.relative_to(store.root()).as_posix(): folder for folder in newest}


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study, finished or not."""
    try:
        return (folder / study.RECORD).is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def has_steps(folder: Path) -> bool:
    """Whether a folder holds the layers at several steps: a study, or a training run that was scanned."""
    return is_study(folder) or (files.is_folder(folder) and (folder / runs.DYNAMICS).is_file())


def readouts(folder: Path) -> list[str]:
    """The readouts that were measured."""
    return [str(name) for name in about(folder)["selection"]["readouts"]]


def about(folder: Path) -> dict[str, Any]:
    """What the record of a study says, and as much of it as is known of a training run. Raises InputError."""
    if is_study(folder):
        return study.record(folder)
    asked: dict[str, Any] = {}
    if (folder / runs.RECORD).is_file():
        try:
            asked = records.read(folder / runs.RECORD)
        except records.DAMAGE as error:
            raise InputError(f"{folder / runs.RECORD} is damaged ({error}).") from error
    found = runs.read(folder, runs.DYNAMICS)
    readout = asked.get("readout")
    return {
        "model": str(asked.get("model") or folder.name),
        "n_layers": int(found["layer"].max()),
        "rollouts": None,
        "tokens": None,
        "selection": {"readouts": [readout if readout in view.WORDS else "raw"]},
        "steps": [
            {"step": step, "name": f"step {step}", "scan": None} for step in sorted({int(n) for n in found["step"]})
        ],
    }


def layers(folder: Path, readout: str | None = None) -> pd.DataFrame:
    """One row per step x rollout x layer x site of a readout, by default the first.

    Columns: step, rollout, readout, layer, site, tokens, and means over the tokens. A training run has means over all
    rollouts together, as rollout 0. Raises InputError for a readout that wasn't measured, and for a damaged table.
    """
    known = readouts(folder)
    chosen = readout or known[0]
    if chosen not in known:
        raise InputError(f"{folder} was not measured with the readout '{chosen:.60}', only with {', '.join(known)}.")
    if is_study(folder):
        return study.layers(folder, chosen)
    kept = runs.read(folder, runs.DYNAMICS).drop(columns=["cosine", "kl"], errors="ignore")  # with the trained layer
    return kept.assign(readout=chosen, **ALONE)


def measures(frame: pd.DataFrame) -> list[str]:
    """The measures of `layers` that a scan has too; `change` is the entropy change."""
    known = [name for name in differences.MEASURES if name in frame and frame[name].notna().any()]
    return [each for name in known for each in (["entropy", "change"] if name == "entropy" else [name])]


def means(frame: pd.DataFrame, measure: str = "entropy", average: Average = "tokens") -> pd.DataFrame:
    """The mean of a measure at each step, layer and site: step, layer, site, mean, low, high.

    `frame` is `layers`. Low and high are the ends of the 95% bootstrap interval over rollouts, NaN for a training run.
    Raises InputError for a measure that it lacks.
    """
    _check(frame, measure)
    return _by_step(
        ((step, differences.values(rows, measure), rows) for step, rows in frame.groupby("step")),
        average,
        bootstrap.interval,
    )


def changes_since(
    frame: pd.DataFrame, measure: str = "entropy", average: Average = "tokens", start: int | None = None
) -> pd.DataFrame:
    """How much a measure changed since the step `start`, by default the first.

    `frame` is `layers`. Columns: step, layer, site, mean, low and high (the 95% interval of this layer by itself),
    low_all and high_all (95% for all layers of a site at once). The same rollouts are compared in pairs, and the
    intervals over them are `jackknife`'s. Raises InputError for a measure or step that it lacks, and if there is no
    other step.
    """
    _check(frame, measure)
    steps = sorted(frame["step"].unique())
    first = steps[0] if start is None else start
    if first not in steps:
        raise InputError(f"There is no step {first}. Choose one of {_few(steps)}.")
    if len(steps) < 2:
        raise InputError(f"There is only step {first}, and a change needs two. Scan another checkpoint.")
    before = differences.values(frame[frame["step"] == first], measure)

    def changed() -> Iterator[tuple[Any, pd.DataFrame, pd.DataFrame]]:
        for step, rows in frame[frame["step"] != first].groupby("step"):
            now = differences.values(rows, measure)
            common = [column for column in before if column in now]
            same = before.index.intersection(now.index)
            yield step, now.loc[same, common] - before.loc[same, common], rows

    return _by_step(changed(), average, jackknife.interval, _at_once)


def _at_once(frame: pd.DataFrame, values: pd.DataFrame, weights: Any) -> pd.DataFrame:
    """Add the intervals that hold for all layers of a site at once."""
    for _, rows in frame.groupby("site"):
        columns = values.iloc[:, rows.index].to_numpy(dtype=float)
        _, low, high = jackknife.interval(columns, weights, of=len(rows))
        frame.loc[rows.index, "low_all"], frame.loc[rows.index, "high_all"] = low, high
    return frame


def _by_step(
    found: Iterator[tuple[Any, pd.DataFrame, pd.DataFrame]],
    average: Average,
    interval: Callable[..., Any],
    more: Callable[..., pd.DataFrame] = lambda frame, *_: frame,
) -> pd.DataFrame:
    """Mean, low and high of each column of values (rollouts x layer and site) of each step, and what `more` adds."""
    tables = []
    for step, values, rows in found:
        frame = values.columns.to_frame(index=False)
        weights = statistics.weights_of(values, rows, average)
        frame["mean"], frame["low"], frame["high"] = interval(values.to_numpy(dtype=float), weights)
        tables.append(more(frame, values, weights).assign(step=step))
    whole = pd.concat(tables, ignore_index=True)
    order = whole["site"].map([*WITH_FINAL].index)
    whole = whole.assign(order=order).sort_values(["step", "layer", "order"], ignore_index=True)
    return whole[["step", *whole.columns.drop(["step", "order"])]]


def by_step(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over all tokens of each step, layer and site, as a training run keeps them in dynamics.parquet."""
    named = [name for name in view.AVERAGED if name in frame]
    weighted = frame[["step", "layer", "site"]].assign(
        **{name: frame[name] * frame["tokens"] for name in named},
        **{f"{name} tokens": frame["tokens"].where(frame[name].notna()) for name in named},
    )
    sums = weighted.groupby(["step", "layer", "site"], sort=False).sum(min_count=1)
    return pd.DataFrame({name: sums[name] / sums[f"{name} tokens"] for name in named}).reset_index()


def _check(frame: pd.DataFrame, measure: str) -> None:
    if measure not in (known := measures(frame)):
        raise InputError(f"There is no measure '{measure:.60}' here. Choose one of {', '.join(known)}.")


def _few(steps: list[Any]) -> str:
    return ", ".join(map(str, steps[:10])) + (f" and {len(steps) - 10} more" if len(steps) > 10 else "")
