"""Combine finished runs in the folder of the results."""

import json
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from experiment.aligning import ALIGNMENT
from experiment.plan import SHOWN, Run
from experiment.rates import PLAN
from experiment.training import EVALUATIONS, write
from internal_policy import files
from internal_policy.look.runs import DYNAMICS, METRICS
from internal_policy.scans import digests, store

STEPS = "steps.parquet"
KEPT = (
    *("step", "phase", "reward", "entropy", "internal_entropy", "clip_fraction", "groups_without_spread"),
    *("rows_trained", "cut", "length", "cpu_seconds", "flops"),
)
"""Columns of the metrics that are kept of every run."""


def finished(runs: Sequence[Run], work: Path) -> list[Run]:
    """The runs that are done."""
    return [run for run in runs if (work / run.name / EVALUATIONS).exists()]


def combine(runs: Sequence[Run], plans: Sequence[dict[str, Any]], work: Path, output: Path) -> None:
    """Write `evaluations.parquet`, `steps.parquet`, `plan.json`, and the two runs that are shown, if they are done."""
    done = finished(runs, work)
    models = [plan["model"] for plan in plans]
    evaluations = [store.read_part(work / name / EVALUATIONS).to_pandas() for name in [*models, *names(done)]]
    output.mkdir(parents=True, exist_ok=True)
    write(output / EVALUATIONS, pd.concat(evaluations, ignore_index=True))
    write(output / STEPS, pd.concat([steps(run, work) for run in done if not run.chooses], ignore_index=True))
    aligned = [work / name / ALIGNMENT for name in models if (work / name / ALIGNMENT).exists()]
    if aligned:
        write(output / ALIGNMENT, pd.concat([store.read_part(path).to_pandas() for path in aligned], ignore_index=True))
    files.write_json(output / PLAN, {plan["model"]: plan for plan in plans})
    shown = [run for run in done if run.is_shown]
    for run, (folder, method) in product(shown, SHOWN.items()):
        if run.method == method:
            (output / folder).mkdir(exist_ok=True)
            metrics = store.read_part(work / run.name / METRICS).to_pandas()
            write(output / folder / METRICS, metrics.drop(columns="flops"))
            shutil.copy(work / run.name / DYNAMICS, output / folder / DYNAMICS)
            digests.record(output / folder, (METRICS, DYNAMICS))


def names(runs: Sequence[Run]) -> list[str]:
    """Names of folders."""
    return [run.name for run in runs]


def steps(run: Run, work: Path) -> pd.DataFrame:
    """The main columns of a run's metrics, in float32 because there are many runs."""
    metrics = store.read_part(work / run.name / METRICS).to_pandas()
    numbers = {name: "float32" for name in metrics if metrics[name].dtype == "float64"}
    internal = int((metrics["phase"] == "internal").sum())
    about = {"model": run.model, "method": run.method.name, "layer": run.method.layer, "internal_steps": internal}
    kept = [name for name in KEPT if name in metrics]
    return metrics.astype(numbers)[kept].assign(**about, learning_rate=run.learning_rate, seed=run.seed)


def read_plan(work: Path, model: str) -> dict[str, Any]:
    """What was decided for a model."""
    return json.loads((work / model / PLAN).read_text())
