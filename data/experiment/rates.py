"""Choose the learning rates, and say beforehand which differences the experiment can detect."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from experiment.plan import METHODS, SEEDS, Run
from experiment.training import EVALUATIONS
from internal_policy import files
from internal_policy.scans import store

PLAN = "plan.json"
"""What was decided before the runs that are reported."""
LEVEL, POWER = 0.05, 0.8
"""Chance of finding any difference where there is none, and of detecting one of the smallest detectable size."""


def plan(model: str, work: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """The learning rates and the smallest detectable difference of a model, decided once and kept in a file."""
    path = work / model / PLAN
    if not path.exists():
        scores = table(runs, work)
        chosen = best(scores)
        spread = deviation(scores, chosen)
        comparisons = len(METHODS[model]) - 1
        files.write_json(
            path,
            {
                "model": model,
                "rates": chosen,
                "deviation": spread,
                "seeds": SEEDS[model],
                "comparisons": comparisons,
                "detectable": detectable(spread, SEEDS[model], 1),
                "detectable_corrected": detectable(spread, SEEDS[model], comparisons),
            },
        )
    return json.loads(path.read_text())


def table(runs: Sequence[Run], work: Path) -> pd.DataFrame:
    """The exam score of each choosing run: method, rate, seed, avg."""
    rows = [
        {
            "method": run.method.key,
            "rate": run.learning_rate,
            "seed": run.seed,
            "avg": store.read_part(work / run.name / EVALUATIONS).to_pandas()["avg"].iloc[-1],
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


def best(scores: pd.DataFrame) -> dict[str, float]:
    """The rate of each method with the highest mean score over the choosing seeds."""
    means = scores.groupby(["method", "rate"])["avg"].mean().unstack()
    return {str(method): float(rate) for method, rate in means.idxmax(axis=1).items()}


def deviation(scores: pd.DataFrame, chosen: dict[str, float]) -> float:
    """Standard deviation over seeds of the score at a chosen rate, pooled over methods."""
    mine = scores[scores["rate"] == scores["method"].map(chosen)]
    return float(np.sqrt(mine.groupby("method")["avg"].var(ddof=1).mean()))


def detectable(deviation: float, seeds: int, comparisons: int) -> float:
    """The smallest true difference of two methods that a paired t-test over `seeds` detects in 80 of 100 experiments.

    Scores of the same seed count as independent. The level is divided by the number of comparisons (Bonferroni).
    """
    quantiles = t.ppf(1 - LEVEL / 2 / comparisons, seeds - 1) + t.ppf(POWER, seeds - 1)
    return float(quantiles * deviation * np.sqrt(2 / seeds))
