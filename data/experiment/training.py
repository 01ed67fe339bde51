"""Do one training run, with an exam at regular steps."""

import shutil
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from transformers import PrinterCallback, TrainerCallback

from experiment import flops
from experiment.plan import ALIGNED, Run, Sizes
from experiment.problems import load, marks, read
from internal_policy.look.runs import METRICS
from internal_policy.models.hooks import HookPoint
from internal_policy.models.passes import evaluating
from internal_policy.scans import store
from internal_policy.tasks.generate import generate
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train.bupo import BuPOTrainer
from internal_policy.train.callbacks import RunLogger, ScanSchedule
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.dataset import box_reward, dataset_of

EVALUATIONS = "evaluations.parquet"
"""Written last, so that a run with this file is finished."""
WATCHED_EVERY = 4
"""Steps between two scans of the layers, in the runs that have them."""


def settings(run: Run, sizes: Sizes, folder: Path) -> BuPOConfig:
    """The configuration of a run: a constant rate without warm-up, so that no phase lies under one."""
    method, steps = run.method, sizes.choosing_steps if run.chooses else sizes.steps
    internal = sizes.internal_steps(run)
    return BuPOConfig(
        output_dir=str(folder / "trainer"),
        method="rloo" if method.name == "rloo" else "bupo",
        frozen_layers=f"0-{method.layer}" if method.name == "frozen" else None,
        only_layers=str(method.layer) if method.name == "single" else None,
        schedule=[f"{HookPoint(method.layer, 'resid_post')}:{internal}"] if internal else [],
        readout="norm" if method.name == "bupo-norm" else "raw",
        per_device_train_batch_size=sizes.prompts * sizes.samples // sizes.updates,
        steps_per_generation=sizes.updates,
        num_generations=sizes.samples,
        learning_rate=run.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        max_steps=steps * sizes.updates,
        max_completion_length=sizes.max_new_tokens,
        logging_steps=sizes.updates,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        seed=run.seed,
    )


def train(run: Run, sizes: Sizes, work: Path) -> None:
    """Do one run, and keep its evaluations, metrics and, for some runs, dynamics."""
    folder = work / run.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model, tokenizer = load(run.model)
    config = settings(run, sizes, folder)
    problems = read(work / run.model, "training")
    chosen = Random(run.seed).sample(problems, config.max_steps // sizes.updates * sizes.prompts)
    scans = watch(model, tokenizer, work / run.model, sizes) if run.is_shown else ScanSchedule([], None, 0)
    logger = RunLogger(folder, sizes.updates, config.phases, scans)
    exam = Exam(run, sizes, config, model, tokenizer, work)
    trainer = BuPOTrainer(
        model,
        box_reward,
        config,
        train_dataset=dataset_of(chosen, {}),
        processing_class=tokenizer,
        callbacks=[logger, exam],
    )
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL uses names that transformers has renamed
        trainer.train()
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    write(logger.folder / METRICS, logger.metrics.assign(flops=exam.spent))
    write(folder / EVALUATIONS, pd.DataFrame(exam.rows))


def write(path: Path, frame: pd.DataFrame) -> None:
    """Write a table."""
    store.write_table(path, pa.Table.from_pandas(frame, preserve_index=False))


def watch(model: Any, tokenizer: Any, folder: Path, sizes: Sizes) -> ScanSchedule:
    """Scans of 8 responses of the untrained model, compared with the layer that BuPO trains first."""
    problems = read(folder, "exam")[:8]
    batches = generate(model, tokenizer, problems, max_new_tokens=sizes.max_new_tokens)
    rollouts: list[Rollout] = [rollout for batch in batches for rollout in batch]
    return ScanSchedule(rollouts, HookPoint(ALIGNED, "resid_post"), WATCHED_EVERY)


class Exam(TrainerCallback):
    """Evaluates at regular steps and at the end of training, and counts the operations up to then."""

    def __init__(self, run: Run, sizes: Sizes, config: BuPOConfig, model: Any, tokenizer: Any, work: Path) -> None:
        """Read the problems: those for choosing in a run that chooses."""
        self.run, self.sizes, self.config, self.model, self.tokenizer = run, sizes, config, model, tokenizer
        self.problems = read(work / run.model, "choosing" if run.chooses else "exam")
        self.shape = flops.shape(model)
        self.rows: list[dict[str, Any]] = []
        self.spent: list[float] = []
        self.tokens = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Count the step, and evaluate after some, without touching the random numbers of training."""
        if "reward" not in logs:
            return
        step, responses = state.global_step // self.sizes.updates, self.sizes.prompts * self.sizes.samples
        self.spent.append(self.operations(step, responses, logs))
        last = state.global_step == state.max_steps
        if not last and (self.run.chooses or step % self.sizes.every):
            return
        samples = self.sizes.exam_samples if last else self.sizes.way_samples
        with evaluating(self.model):
            counts = marks(self.model, self.tokenizer, self.problems, samples, 1000 * self.run.seed + step, self.sizes)
        method = self.run.method
        self.rows.append(
            {
                "model": self.run.model,
                "method": method.name,
                "layer": method.layer,
                "internal_steps": sum(phase.steps for phase in self.config.phases),
                "learning_rate": self.run.learning_rate,
                "seed": self.run.seed,
                "step": step,
                "flops": sum(self.spent),
                **score(counts, samples),
            }
        )

    def operations(self, step: int, responses: int, logs: Any) -> float:
        """Operations of the step that is logged: sampling, scoring before the first update, and the updates."""
        tokens, self.tokens = float(logs["num_tokens"]) - self.tokens, float(logs["num_tokens"])
        response = float(logs["completions/mean_length"])
        internal = step <= sum(phase.steps for phase in self.config.phases)
        scored = self.run.method.layer + 1 if internal else self.shape.layers
        each = sum(
            flops.forward(self.shape, layers, tokens / responses - response, response)
            for layers in (self.shape.layers, scored)
        )
        return responses * each + float(logs.get("training_flops") or 0.0)


def score(counts: list[int], samples: int) -> dict[str, Any]:
    """Avg@K and Pass@K, K being `samples`."""
    return {
        "problems": len(counts),
        "samples": samples,
        "avg": sum(counts) / len(counts) / samples,
        "passed": sum(map(bool, counts)) / len(counts),
    }


def untrained(model: str, sizes: Sizes, work: Path) -> None:
    """Write the evaluation of the untrained model, with responses that chose no problems."""
    path = work / model / EVALUATIONS
    if path.exists():
        return
    counts = marks(*load(model), read(work / model, "exam"), sizes.untrained_samples, 1, sizes)
    row = {"model": model, "method": "untrained", "step": 0, "flops": 0.0, **score(counts, sizes.untrained_samples)}
    write(path, pd.DataFrame([row]))
