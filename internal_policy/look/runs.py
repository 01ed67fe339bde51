"""A training run on disk: its steps, and what training did to the layers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from internal_policy import bundle
from internal_policy.errors import InputError, counted, joined
from internal_policy.measure.sites import INPUT_OF
from internal_policy.models.naming import RUN
from internal_policy.scans import store

RECORD = RUN
"""File in the folder of a run that holds its settings."""
METRICS, DYNAMICS, PASS_AT_K = "metrics.parquet", "dynamics.parquet", "pass_at_k.parquet"
EXAMS = "evaluations.parquet"
"""File with the exams on held-out problems during training."""
SHARES = ("avg_at_k", "pass_at_k")
"""Columns of exams; each has the ends of its 95% interval beside it, with `_low` and `_high` at the end."""
NEEDED = {
    METRICS: {"step", "reward", "phase", "target"},
    DYNAMICS: {"step", "layer", "site"},
    PASS_AT_K: {"label", "k", "mean", "low", "high"},
    EXAMS: {"step", "problems", "samples", *(f"{name}{end}" for name in SHARES for end in ("", "_low", "_high"))},
}
"""File -> columns that it must have. All other columns are optional."""
REMEDIES = {
    PASS_AT_K: "Copy into it the one that `internal-policy evaluate` wrote",
    EXAMS: "Train with --eval-problems",
    DYNAMICS: "Choose a run that scanned its layers, which --scan-every 0 turns off",
}
"""File that not every run has -> what to do about it."""
NOT_MEASURES = ("step", "layer", "site")
KEYS = {DYNAMICS: [*NOT_MEASURES], EXAMS: ["step", "problems"]}
"""File -> columns that identify a row."""
COUNTS = {"step": 2**53, "layer": 10_000, "k": 2**53, "samples": 2**53}
"""Column of whole numbers from 0 -> its exclusive upper limit."""
WORDS = {"phase", "target", "method", "site", "label", "problems"}
"""Columns of text. All others are numbers."""
REWARD = "reward/"
"""How the columns of a run's rewards begin, if it has several; the name follows."""
LONGEST = 200
"""Longest text in characters."""


@dataclass(frozen=True)
class RunTables:
    """The tables of a training run on disk."""

    folder: Path
    """The folder of its tables."""
    name: str
    """Its name in figures."""

    def metrics(self) -> pd.DataFrame:
        """The numbers of each training step, one row per step.

        Columns: step (from 1), phase (internal or final), target (the hook point whose policy was trained), reward
        (mean over the step's responses), and what else was logged, such as entropy and internal_entropy (nats, over
        the sampled tokens), clip_fraction (0 to 1), length (tokens), perplexity, learning_rate, grad_norm, seconds.
        Raises InputError if the file is missing or damaged.
        """
        return read(self.folder, METRICS)

    def dynamics(self) -> pd.DataFrame:
        """The policies of all layers during training, one row per scanned step x layer x site.

        Columns: step (0 is before training), layer (from 0; one past the last is the model), site, and means over all
        tokens: entropy, entropy_at_input_norm, change, change_direction and change_norm (nats), cosine with and kl
        (nats) from the trained layer, norm, logprob (nats). Raises InputError if the run was not scanned.
        """
        return dynamics(self.folder)

    def pass_at_k(self) -> pd.DataFrame:
        """Pass@k of evaluated models: label, k, and mean, low and high (shares of problems, 0 to 1, 95% interval).

        Raises InputError if the run has no evaluation.
        """
        return read(self.folder, PASS_AT_K)

    def exams(self) -> pd.DataFrame:
        """The exams on held-out problems, one row per exam and set of problems (`all` for several sets together).

        Columns: step (0 is before training), problems (the set), samples (K), avg_at_k and pass_at_k (shares, 0 to 1)
        with their 95% intervals over problems (avg_at_k_low, avg_at_k_high, ...), change (of avg_at_k since step 0,
        with its paired interval), and reward (mean in training since the exam before; NaN at step 0). Raises InputError
        if the run had no exams.
        """
        return with_reward(read(self.folder, EXAMS), self.metrics())


def listed() -> dict[str, Path]:
    """Training runs by name: those of the cache, newest first, and the bundled ones."""
    root = store.root()
    found = {path.parent for depth in ("*", "*/*") for path in root.glob(f"{depth}/{METRICS}")}
    newest = sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)
    return {folder.relative_to(root).as_posix(): folder for folder in newest} | {
        f"{folder.parent.name}/{folder.name}": folder for folder in bundle.runs()
    }


def find(name: str) -> Path:
    """The folder of a run by its name in the list, or its path. Raises InputError if that isn't a folder."""
    known = listed()
    try:
        return known[name] if name in known else Path(name).expanduser()
    except RuntimeError as error:  # ~ of an unknown user
        raise InputError(f"'{name[:80]}' isn't a folder ({error}). Choose a run from the list.") from error


def read(folder: Path, name: str) -> pd.DataFrame:
    """A table of a run. Raises InputError if it is missing, damaged or empty, or lacks a column."""
    path = folder / name
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        there = False
    if not there:
        remedy = REMEDIES.get(name, "Give the folder of a training run")
        raise InputError(f"{str(folder)[:200]} has no {name}. {remedy}.")
    try:
        return _checked(path, store.read_part(path).to_pandas())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged ({error}). Remove it and write it again.") from error


def _checked(path: Path, found: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table that can be drawn. Raises InputError if a required one can't be."""
    needed = NEEDED[path.name]
    if missing := needed - {*found.columns}:
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}. It wasn't written by a training run.")
    if not len(found):
        raise InputError(f"{path} has no rows yet. Look again after the first step.")
    for column in sorted(needed):
        if wrong := _wrong(found[column]):
            raise InputError(f"{path} has {wrong} in column {column}. It wasn't written by a training run.")
    if path.name in KEYS and found.duplicated(KEYS[path.name]).any():
        raise InputError(
            f"{path} has duplicate rows for a {joined(KEYS[path.name])}. It wasn't written by a training run."
        )
    return found[[column for column in found.columns if not _wrong(found[column])]]


def _wrong(values: pd.Series) -> str | None:
    """Why a column can't be drawn, in words; None if it can."""
    if values.name in WORDS:
        text = all(type(value) is str and len(value) <= LONGEST for value in values)
        return None if text else f"something other than texts of up to {LONGEST} characters"
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return "something other than numbers"
    if values.name in COUNTS and not (pd.api.types.is_integer_dtype(values) and _within(values)):
        return f"something other than whole numbers from 0 to {COUNTS[str(values.name)] - 1}"
    return None


def _within(values: pd.Series) -> bool:
    return bool(values.between(0, COUNTS[str(values.name)] - 1).all())


def dynamics(folder: Path) -> pd.DataFrame:
    """The table of scans, layers and sites, with entropy changes. Raises InputError like `read`."""
    return with_changes(read(folder, DYNAMICS))


def with_changes(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `change`, the entropy at a site minus that at its input (Eqs. 11 to 13 of arXiv 2512.19673).

    `change_direction` and `change_norm` are its two parts, if `entropy_at_input_norm` was measured. All are in nats.
    """
    if "entropy" not in frame:
        return frame
    at = frame.set_index(["step", "layer", "site"])["entropy"]
    inputs = frame["site"].map(INPUT_OF)
    before = at.reindex(pd.MultiIndex.from_arrays([frame["step"], frame["layer"], inputs])).to_numpy(dtype=float)
    changed = frame.assign(change=frame["entropy"] - before)
    if "entropy_at_input_norm" not in frame:
        return changed
    control = frame["entropy_at_input_norm"].where(changed["change"].notna())
    return changed.assign(change_direction=control - before, change_norm=frame["entropy"] - control)


def with_reward(exams: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Add `reward`, the mean over the training steps since the exam before; NaN for the first exam."""
    ends = pairwise(sorted({int(step) for step in exams["step"]}))
    means = {end: metrics.loc[metrics["step"].between(start + 1, end), "reward"].mean() for start, end in ends}
    return exams.assign(reward=exams["step"].map(means).astype(float))


def overall(exams: pd.DataFrame) -> pd.DataFrame:
    """The rows of all problems together, one an exam: the last row of each step."""
    return exams.groupby("step", as_index=False).tail(1)


def best(exams: pd.DataFrame) -> dict[str, Any]:
    """The row of the exam with the highest Avg@K over all problems, the first if there are several."""
    rows = overall(exams).to_dict("records")
    return {str(name): value for name, value in max(rows, key=lambda row: row["avg_at_k"]).items()}


def since_start(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of later scans, with the measure at the first scan of the same layer and site subtracted.

    Raises InputError if there is only one scan.
    """
    measured = frame[frame[measure].notna()]
    first = measured["step"].min()
    at = measured[measured["step"] == first].set_index(["layer", "site"])[measure]
    later = measured[measured["step"] > first]
    if not len(later):
        raise InputError(
            f"There is only one scan with {measure}, at step {first}, and a difference needs two. Train for longer, or "
            "scan more often with --scan-every."
        )
    before = at.reindex(pd.MultiIndex.from_frame(later[["layer", "site"]])).to_numpy(dtype=float)
    return later.assign(**{measure: later[measure] - before}).dropna(subset=measure)


def smoothed(frame: pd.DataFrame, name: str, window: int) -> pd.DataFrame:
    """The steps with a value, each with the mean over the last `window` steps: step and the column.

    The first steps average as many as there are.
    """
    known = frame.dropna(subset=name).sort_values("step")
    steps, sums = known["step"].to_numpy(), np.concatenate([[0.0], known[name].cumsum()])
    start, end = np.searchsorted(steps, steps - window, side="right"), np.arange(1, len(steps) + 1)
    return known.assign(**{name: (sums[end] - sums[start]) / (end - start)})[["step", name]]


def labels(runs: Sequence[RunTables]) -> list[str]:
    """A name for each run that tells it from the others: its own, or more of its path where two share one."""
    named = [run.name for run in runs]
    parts = [run.folder.resolve().parts for run in runs]
    return [
        name if named.count(name) == 1 else _shortest(part, [other for other in parts if other != part])
        for name, part in zip(named, parts, strict=True)
    ]


def _shortest(path: tuple[str, ...], others: list[tuple[str, ...]]) -> str:
    """The shortest end of a path that no other has."""
    sizes = range(1, len(path) + 1)
    size = next((size for size in sizes if all(other[-size:] != path[-size:] for other in others)), len(path))
    return "/".join(path[-size:])


def measures(frame: pd.DataFrame) -> list[str]:
    """The measures that have values at some layer."""
    return [name for name in frame.columns if name not in NOT_MEASURES and frame[name].notna().any()]


def rewards(metrics: pd.DataFrame) -> list[str]:
    """The columns with the mean of each reward, if the run has several."""
    return [name for name in metrics.columns if name.startswith(REWARD)]


def sites(frame: pd.DataFrame, measure: str) -> list[str]:
    """The sites where a measure has values, layer outputs first because they are shown with `final`."""
    found = sorted(frame.loc[frame[measure].notna(), "site"].unique(), key=lambda site: site != "resid_post")
    return [site for site in found if site != "final" or found == ["final"]]


def trained(metrics: pd.DataFrame, frame: pd.DataFrame) -> int | None:
    """The layer trained first, or the one that later layers were compared with; None if there is none."""
    targets = metrics.loc[metrics["phase"] == "internal", "target"]
    found = re.match(r"\d+(?=\.)", str(targets.iloc[0])) if len(targets) else None
    if found:
        return int(found[0])
    later = frame.loc[frame["kl"].notna(), "layer"] if "kl" in frame else frame["layer"][:0]
    return int(later.min()) - 1 if len(later) else None  # plain GRPO only watches a layer


def caption(name: str, metrics: pd.DataFrame, frame: pd.DataFrame | None = None) -> str:
    """The run, its phases and its number of scans on one plain line."""
    internal = metrics[metrics["phase"] == "internal"]
    first = f", {len(internal)} on {', '.join(dict.fromkeys(internal['target'].astype(str)))}"
    said = [name, f"{counted(int(metrics['step'].max()), 'step')}{first if len(internal) else ''}"]
    if frame is not None:
        said.append(f"{counted(frame['step'].nunique(), 'scan')} of the same responses")
    return " · ".join(said)
