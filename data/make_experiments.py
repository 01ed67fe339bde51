"""Train the demo models with BuPO, GRPO and related methods under equal conditions: `python data/make_experiments.py`.

The task is sums and differences of three numbers, at which both models are poor. Every run has its own folder
until all are finished, and an interrupted command continues where it stopped. Then they are combined in
experiments/: `evaluations.parquet`, a row per run and evaluation; `steps.parquet`, a row per run and step; and the
metrics and dynamics of one GRPO and one BuPO run.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Literal

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch

import pandas as pd
import pyarrow as pa
import torch
import tyro
from arithmetic import two_steps
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from internal_policy import files
from internal_policy.look import statistics, targets, view
from internal_policy.look.runs import DYNAMICS, METRICS
from internal_policy.models.hooks import HookPoint
from internal_policy.models.passes import evaluating
from internal_policy.scans import store
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import read_problems
from internal_policy.train.bupo import BuPOTrainer
from internal_policy.train.callbacks import RunLogger, ScanSchedule
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.dataset import box_reward, dataset_of

HERE = Path(__file__).parent
EVALUATIONS, HELDOUT = "evaluations.parquet", "heldout.jsonl"
Method = Literal["grpo", "bupo", "same", "frozen", "tenth", "rloo"]
CHOSEN: tuple[Method, ...] = ("grpo", "bupo", "frozen", "tenth", "rloo")
"""Methods that get a learning rate each; `same` is GRPO at BuPO's."""
MODELS = ("demo-qwen3", "demo-llama")
RATES = (1e-4, 2e-4, 4e-4)
"""Learning rates to choose from, the same for each method, on the first model."""
CHOOSING = 100
"""Seed of the runs that choose the rates; no reported run has it."""
DRAWING = 11
"""Seed of the problems."""
WATCHED_EVERY = 5
"""Steps between two scans of the layers, in the runs that have them."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiments; the defaults give the bundled results."""

    work: Path = store.root() / "experiments"
    """Folder for the runs; finished ones are not run again."""
    output: Path = HERE / "experiments"
    """Folder for the result."""
    steps: int = 50
    """Steps of a run; a step is a generation batch."""
    warmup: int = 5
    """Warm-up steps of the learning rate."""
    short: int = 8
    """Internal steps of BuPO in the main comparison."""
    long: int = 20
    """Internal steps in the comparison with a longer phase one."""
    prompts: int = 12
    """Prompts per step."""
    samples: int = 8
    """Responses per prompt."""
    updates: int = 1
    """Optimizer updates per step."""
    drawn: int = 1600
    """Problems to draw; the run trains on those that the untrained model sometimes answers correctly."""
    heldout: int = 200
    """Held-out problems for evaluation."""
    max_new_tokens: int = 64
    """Length limit of a response."""
    evaluated: int = 8
    """Responses to each held-out problem at the end; half of them at three quarters."""
    seeds: int = 5
    """Seeds of GRPO and BuPO on the Qwen3 model; everything else has at most 3."""
    workers: int = 2
    """Runs at a time, one thread each."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    model: str
    method: Method
    layer: int
    """Layer k, from 0, that BuPO trains first, or up to which a baseline differs; unused by grpo and rloo."""
    internal_steps: int
    """Internal steps of BuPO, else 0."""
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        k = "" if self.method in ("grpo", "same", "rloo") else f"-{self.layer}"
        length = f"-{self.internal_steps}" if self.method == "bupo" else ""
        return f"{self.model}-{self.method}{k}{length}-{self.learning_rate:g}-{self.seed}"


def draw(seed: int, number: int, without: Mapping[str, str]) -> dict[str, str]:
    """Distinct problems of two steps, none of those in `without`: problem -> answer."""
    random, problems = Random(seed), dict[str, str]()
    while len(problems) < number:
        exercise = two_steps(random)
        if exercise.problem not in without:
            problems[exercise.problem] = exercise.answer
    return problems


def prepare(model: str, sizes: Sizes) -> None:
    """Write the problems for training and evaluation, and evaluate the untrained model.

    It is trained on problems that it solves 1 to 7 times of 8, because at first the others give no signal.
    """
    heldout, training, folder = sizes.work / HELDOUT, sizes.work / f"{model}.jsonl", sizes.work / model
    problems = draw(DRAWING, sizes.heldout, {})
    write(heldout, problems)
    if not training.exists():
        drawn, everything = draw(DRAWING + 1, sizes.drawn, problems), sizes.work / "everything.jsonl"
        write(everything, drawn)
        counts = solved(*load(model), everything, 8, seed=1)
        write(training, {p: drawn[p] for p, c in zip(drawn, counts, strict=True) if 0 < c < 8})
    if not (folder / EVALUATIONS).exists():
        row = {"model": model, "method": "untrained", "step": 0, "cpu_seconds": 0.0}
        row |= marks(*load(model), heldout, sizes.evaluated)
        store.write_table(folder / EVALUATIONS, pa.Table.from_pylist([row]))


def write(path: Path, problems: Mapping[str, str]) -> None:
    """Write a problem file, whole or not at all."""
    with files.replacing(path) as temporary:
        lines = (json.dumps({"problem": problem, "answer": answer}) for problem, answer in problems.items())
        temporary.write_text("".join(f"{line}\n" for line in lines))


def load(model: str) -> tuple[Any, Any]:
    """A demo model in float32, and its tokenizer."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = HERE / "models" / model
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def solved(model: Any, tokenizer: Any, source: Path, samples: int, seed: int = 0) -> list[int]:
    """How many of `samples` responses to each problem are correct."""
    with evaluating(model):
        batches = generate(
            model, tokenizer, read_problems(str(source)), samples=samples, max_new_tokens=64, seed=seed, batch_size=128
        )
        rewards = [rollout.reward or 0.0 for batch in batches for rollout in batch]
    return [int(sum(rewards[i : i + samples])) for i in range(0, len(rewards), samples)]


def marks(model: Any, tokenizer: Any, source: Path, samples: int) -> dict[str, Any]:
    """Avg@K and Pass@K, K being `samples`."""
    counts = solved(model, tokenizer, source, samples)
    return {
        "problems": len(counts),
        "samples": samples,
        "avg": sum(counts) / len(counts) / samples,
        "passed": sum(map(bool, counts)) / len(counts),
    }


def suggested(model: str) -> int:
    """Last layer of exploration in the bundled scan of the model."""
    layer = targets.target(targets.stages(statistics.changes(view.layers(view.View(HERE / "scans" / model, "raw")))))
    assert layer is not None
    return layer


def train(run: Run, sizes: Sizes) -> None:
    """Do one run, and keep its evaluations, metrics and, for some runs, dynamics."""
    folder = sizes.work / run.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model, tokenizer = load(run.model)
    size = sizes.prompts * sizes.samples // sizes.updates
    common: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": size,
        "steps_per_generation": sizes.updates,
        "num_generations": sizes.samples,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": sizes.warmup * sizes.updates,
        "adam_beta2": 0.99,
        "max_steps": sizes.steps * sizes.updates,
        "max_completion_length": sizes.max_new_tokens,
        "logging_steps": sizes.updates,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": run.seed,
    }
    point = HookPoint(run.layer, "resid_post")
    config = BuPOConfig(**common, schedule=[f"{point}:{run.internal_steps}"] if run.internal_steps else [])
    watched = run.seed == 0 and run.method in ("grpo", "bupo")
    problems = read_problems(str(sizes.work / HELDOUT), limit=8)
    rollouts = [r for batch in generate(model, tokenizer, problems, max_new_tokens=64) for r in batch]
    logger = RunLogger(
        folder, sizes.updates, config.phases, ScanSchedule(rollouts, point, WATCHED_EVERY if watched else 0)
    )
    exam = Exam(sizes, logger, tokenizer)
    shared: dict[str, Any] = {
        "reward_funcs": box_reward,
        "train_dataset": dataset_of(read_problems(str(sizes.work / f"{run.model}.jsonl")), {}),
        "processing_class": tokenizer,
        "callbacks": [logger, exam],
    }
    if run.method == "rloo":
        arguments = RLOOConfig(**common, beta=0.0, bf16=False, gradient_checkpointing=False)
        RLOOTrainer(model, args=arguments, **shared).train()
    else:
        BuPOTrainer(model, args=config, optimizers=(layerwise(model, run), None), **shared).train()
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    rows = pd.DataFrame(exam.rows).assign(**asdict(run))
    store.write_table(folder / EVALUATIONS, pa.Table.from_pandas(rows, preserve_index=False))


class Exam(TrainerCallback):
    """Evaluates on held-out problems at three quarters of the training and at its end."""

    def __init__(self, sizes: Sizes, logger: RunLogger, tokenizer: Any) -> None:
        """`logger` must come earlier in the callbacks, because it knows the training time."""
        self.sizes, self.logger, self.tokenizer, self.rows = sizes, logger, tokenizer, []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        """Evaluate at three quarters and at the end, without touching the random numbers of training."""
        step = state.global_step // self.sizes.updates
        if "reward" not in logs or step not in (self.sizes.steps * 3 // 4, self.sizes.steps):
            return
        samples = self.sizes.evaluated if step == self.sizes.steps else self.sizes.evaluated // 2
        spent = float(self.logger.metrics["cpu_seconds"].sum())
        evaluation = marks(model, self.tokenizer, self.sizes.work / HELDOUT, samples)
        self.rows.append({"step": step, "cpu_seconds": spent, **evaluation})
        self.logger.clocks = time.monotonic(), time.process_time()


def layerwise(model: Any, run: Run) -> torch.optim.Optimizer | None:
    """Parameter groups that freeze the layers up to k or train those above more slowly; None for a single rate."""
    layers = model.model.layers
    if run.method == "frozen":
        layers[: run.layer + 1].requires_grad_(False)
    if run.method != "tenth":
        return None
    above = {id(parameter) for parameter in layers[run.layer + 1 :].parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in above]},
        {"params": [p for p in model.parameters() if id(p) in above], "lr": run.learning_rate / 10},
    ]
    return torch.optim.AdamW(groups, lr=run.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)


def choosing(sizes: Sizes) -> list[Run]:
    """The runs to choose learning rates by: each method at each rate, half as long."""
    model, k = MODELS[0], suggested(MODELS[0])
    return [
        Run(model, method, k, sizes.short if method == "bupo" else 0, rate, CHOOSING)
        for rate, method in product(RATES, CHOSEN)
    ]


def chosen(sizes: Sizes) -> dict[Method, float]:
    """The rate of each method with the highest training reward in the last third of its run."""
    best: dict[Method, tuple[float, float]] = {}
    for run in choosing(sizes):
        reward = store.read_part(sizes.work / run.name / METRICS).to_pandas()["reward"]
        score = float(reward.tail(len(reward) // 3).mean())
        best[run.method] = max(best.get(run.method, (-1.0, 0.0)), (score, run.learning_rate))
    return {method: rate for method, (_, rate) in best.items()}


def compared(sizes: Sizes) -> list[Run]:
    """The runs to report."""
    rates, runs = chosen(sizes), list[Run]()
    for model in MODELS:
        k = suggested(model)
        for seed in range(sizes.seeds if model == MODELS[0] else min(3, sizes.seeds)):
            runs.append(Run(model, "grpo", k, 0, rates["grpo"], seed))
            runs.append(Run(model, "bupo", k, sizes.short, rates["bupo"], seed))
    model, few = MODELS[0], range(min(3, sizes.seeds))
    k = suggested(model)
    layers, lengths = (1, 3, k), (sizes.short, sizes.long, sizes.steps)
    runs += [Run(model, "bupo", at, n, rates["bupo"], s) for s, at, n in product(few, layers, lengths)]
    others: list[Method] = ["frozen", "tenth", "rloo"]
    runs += [Run(model, method, k, 0, rates[method], s) for s, method in product(few, others)]
    if rates["grpo"] != rates["bupo"]:
        runs += [Run(model, "same", k, 0, rates["bupo"], seed) for seed in range(sizes.seeds)]
    return list(dict.fromkeys(runs))


def do(runs: Sequence[Run], sizes: Sizes, what: str) -> None:
    """Do the missing runs, several at a time."""
    missing = [run for run in runs if not (sizes.work / run.name / EVALUATIONS).exists()]
    with ProcessPoolExecutor(sizes.workers, get_context("spawn")) as pool:
        for _ in tqdm(pool.map(partial(train, sizes=sizes), missing), what, len(missing), unit="run"):
            pass


def collect(runs: Sequence[Run], sizes: Sizes) -> None:
    """Combine the runs in the output folder."""
    folders = {run: sizes.work / run.name for run in runs}
    evaluations = [store.read_part(folder / EVALUATIONS).to_pandas() for folder in folders.values()]
    evaluations += [store.read_part(sizes.work / model / EVALUATIONS).to_pandas() for model in MODELS]
    steps = [store.read_part(f / METRICS).to_pandas().assign(**asdict(run)) for run, f in folders.items()]
    for name, frames in ((EVALUATIONS, evaluations), ("steps.parquet", steps)):
        table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
        store.write_table(sizes.output / name, table)
    k, rates = suggested(MODELS[0]), chosen(sizes)
    shown = [Run(MODELS[0], m, k, n, rates[m], 0) for m, n in (("grpo", 0), ("bupo", sizes.short))]
    for run, name in product(shown, (METRICS, DYNAMICS)):
        (sizes.output / run.method).mkdir(exist_ok=True)
        shutil.copy(folders[run] / name, sizes.output / run.method / name)


def main(sizes: Sizes) -> None:
    """Choose learning rates, do the runs and combine them."""
    sizes.work.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        prepare(model, sizes)
    do(choosing(sizes), replace(sizes, steps=sizes.steps // 2), "Choosing learning rates")
    runs = compared(sizes)
    do(runs, sizes, "Comparing")
    collect([*choosing(sizes), *runs], sizes)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
