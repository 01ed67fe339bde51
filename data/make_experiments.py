"""Train the demo models with BuPO, GRPO and related methods under equal conditions: `python data/make_experiments.py`.

The task is sums and differences of three numbers that a model sometimes gets right. Three stages follow each other:
drawing problems, choosing the learning rates, and the runs that are compared. Each run has its own folder in `--work`,
and an interrupted command continues after the last finished run. Runs of another machine can be copied into that
folder. At the end, or with `--combine`, the finished runs are combined in `--output`: `evaluations.parquet`, a row per
run and exam; `steps.parquet`, a row per run and step; `plan.json`, what was decided before the comparison;
`alignment.parquet`, what was measured before it; and the metrics and dynamics of one GRPO and one BuPO run.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch

import tyro
from experiment import aligning, plan, problems, rates, results, training
from experiment.plan import METHODS, MODELS, Run, Sizes
from tqdm import tqdm

from internal_policy.scans import store


@dataclass(frozen=True)
class Arguments:
    """What to run, and where."""

    work: Path = store.root() / "experiments"
    """Folder for the runs. Finished ones are not run again."""
    output: Path = plan.DATA / "experiments"
    """Folder for the result."""
    workers: int = 2
    """Runs at a time, one thread each."""
    only: str | None = None
    """Model to run: demo-qwen3, demo-llama, or `large`, which `make_large.py` makes; the first two if not given."""
    seeds: int | None = None
    """Seeds of every method, counted from 0; all if not given."""
    choosing_seeds: int = 2
    """Seeds of the runs that choose the learning rates."""
    rates: tuple[float, ...] = plan.RATES
    """Learning rates to choose from."""
    minutes: float | None = None
    """Time after which no further run starts. The finished ones are combined."""
    combine: bool = False
    """Only combine the finished runs."""
    sizes: Sizes = field(default_factory=Sizes)
    """How much is trained and evaluated."""


def do(pool: ProcessPoolExecutor, runs: Sequence[Run], arguments: Arguments, end: float | None, what: str) -> bool:
    """Do the missing runs in their order, and return whether all are done."""
    done = results.finished(runs, arguments.work)
    missing = [run for run in runs if run not in set(done)]
    futures = [pool.submit(one, run, arguments, end) for run in missing]
    try:
        for future in tqdm(futures, what, len(runs), initial=len(done), unit="run"):
            future.result()
    except BaseException:  # also Ctrl-C
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return len(results.finished(runs, arguments.work)) == len(runs)


def one(run: Run, arguments: Arguments, end: float | None) -> None:
    """Do one run, unless the time is up."""
    if end is None or time.time() < end:
        training.train(run, arguments.sizes, arguments.work)


def experiment(arguments: Arguments, models: Sequence[str]) -> None:
    """Draw problems, choose learning rates, and do the runs."""
    end = None if arguments.minutes is None else time.time() + 60 * arguments.minutes
    sizes, work = arguments.sizes, arguments.work
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:

        def mapped(function: Callable[..., Any], calls: Sequence[Sequence[Any]]) -> Iterable[Any]:
            return pool.map(function, *zip(*calls, strict=True))

        for model in models:
            (work / model).mkdir(parents=True, exist_ok=True)
            problems.prepare(work / model, model, sizes, mapped)
        for measure in (training.untrained, aligning.measure):
            list(mapped(measure, [(model, sizes, work) for model in models]))
        if do(pool, choosing(arguments, models), arguments, end, "Choosing learning rates"):
            for model in models:
                rates.plan(model, work, choosing(arguments, [model]))
            do(pool, compared(arguments, models), arguments, end, "Comparing")


def choosing(arguments: Arguments, models: Sequence[str]) -> list[Run]:
    """The runs that choose the learning rates of some models."""
    return [run for model in models for run in plan.choosing(model, arguments.rates, arguments.choosing_seeds)]


def compared(arguments: Arguments, models: Sequence[str]) -> list[Run]:
    """The runs to report of some models."""
    chosen = {model: results.read_plan(arguments.work, model)["rates"] for model in models}
    return list(plan.compared(chosen, arguments.seeds))


def main(arguments: Arguments) -> None:
    """Do the runs, and combine the finished ones."""
    if not arguments.combine:
        experiment(arguments, MODELS if arguments.only is None else [arguments.only])
    models = [model for model in METHODS if (arguments.work / model / rates.PLAN).exists()]
    if not models:
        raise SystemExit("Not all learning rates are chosen yet. Run the same command again to continue.")
    runs = [*choosing(arguments, models), *compared(arguments, models)]
    plans = [results.read_plan(arguments.work, model) for model in models]
    results.combine(runs, plans, arguments.work, arguments.output)
    print(f"{len(results.finished(runs, arguments.work))} of {len(runs)} runs are in {arguments.output}.")
    for plan_ in plans:
        print(
            f"{plan_['model']}: {plan_['seeds']} seeds detect a difference of {100 * plan_['detectable']:.1f} points, "
            f"or {100 * plan_['detectable_corrected']:.1f} among {plan_['comparisons']} comparisons."
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
