"""Keep the numbers of a training run as Parquet while it runs."""

import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internal_policy.look.runs import DYNAMICS, METRICS, REWARD
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train import dynamics, tables, throughput
from internal_policy.train.schedule import Phase, phase_at
from internal_policy.train.switching import ended

NAMES = {
    "reward": "reward",
    "entropy": "entropy",
    "internal/entropy": "internal_entropy",
    "internal/alignment": "alignment",
    "groups_without_spread": "groups_without_spread",
    "rows_trained": "rows_trained",
    "resampled": "resampled",
    "draws": "draws",
    "skipped": "skipped",
    "kl": "kl",
    "completions/clipped_ratio": "cut",
    "completions/mean_length": "length",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    **{name: name for name in throughput.LOGGED},
}
"""What the trainer logs -> its column. The loss is left out, because GRPO's is always about 0."""
FROM_LAST_UPDATE = ("learning_rate", "grad_norm")
"""Columns taken from the last update of a step; the others are means over its updates."""
TOGETHER = 2.0
"""Seconds within which signals are one: Ctrl-C reaches the workers of torchrun, which also passes it on to them."""


@dataclass(frozen=True)
class ScanSchedule:
    """What to scan during training, and how often."""

    rollouts: Sequence[Rollout]
    """Rollouts to scan, the same each time."""
    point: HookPoint | None
    """Hook point to compare later layers with."""
    every: int
    """Steps between two scans; 0 turns them off."""
    readout: Literal["raw", "norm"] = "raw"
    """How to unembed hidden states."""


class RunLogger(TrainerCallback):
    """Writes metrics.parquet, a row per step, and dynamics.parquet, a row per scan, layer and site.

    A resumed run continues after the rows of its checkpoint. The trainer logs at the end of every step, even if it is
    set to log less often; if it logs more often, a row is the mean.
    """

    def __init__(
        self,
        folder: Path,
        updates_per_step: int,
        phases: Sequence[Phase],
        scans: ScanSchedule,
        report: Callable[[Mapping[str, Any]], None] = lambda _: None,
        method: str = "bupo",
    ) -> None:
        """`report` is called with each row of metrics, in which `method` is the name of the training method."""
        self.folder, self.updates, self.phases, self.scans, self.report = (
            folder,
            updates_per_step,
            phases,
            scans,
            report,
        )
        self.method = method
        self.metrics, self.dynamics = pd.DataFrame(), pd.DataFrame()
        self.logs: list[tuple[int, Mapping[str, Any]]] = []
        self.clocks = self.times = 0.0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Read the rows written before the checkpoint, or scan the untrained model."""
        step, self.logs = state.global_step // self.updates, []
        self.metrics, self.dynamics = (tables.until(self.folder / name, step) for name in (METRICS, DYNAMICS))
        if not step:
            self._scan(0, state, more["model"])

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clocks of a step."""
        if state.global_step % self.updates == 0:
            self.clocks = time.monotonic(), time.process_time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clocks, and ask for a log, at the end of each step."""
        if state.global_step % self.updates == 0:
            self.times = time.monotonic() - self.clocks[0], time.process_time() - self.clocks[1]
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Write the row of a step that has ended."""
        if logs is None or "learning_rate" not in logs:  # an evaluation, or the end
            return
        self.logs.append((state.global_step, dict(logs)))
        if state.global_step % self.updates:
            return
        step = state.global_step // self.updates
        phase, _ = phase_at(self.phases, step - 1, ended(state))
        point = phase.point
        clipped = "clip_ratio/region_mean" if point == FINAL else "internal/clip_ratio/region_mean"
        columns = {**NAMES, clipped: "clip_fraction", **_rewards(logs)}
        row: dict[str, Any] = _mean(self.logs, columns, state.global_step - self.updates)
        self.logs = []
        row |= {
            "step": step,
            "phase": "final" if point == FINAL else "internal",
            "target": phase.name,
            "method": self.method,
            "seconds": self.times[0],
            "cpu_seconds": self.times[1],
        }
        if self.scans.every and (step % self.scans.every == 0 or state.global_step == state.max_steps):
            begun = time.monotonic()
            row["perplexity"] = self._scan(step, state, more["model"])
            row["scan_seconds"] = time.monotonic() - begun
        self.metrics = tables.appended(self.metrics, pd.DataFrame([row]))
        tables.write(self.folder / METRICS, self.metrics, state)
        self.report(row)

    def _scan(self, step: int, state: TrainerState, model: Any) -> float:
        """Measure the layers and append them; return the perplexity."""
        if not self.scans.every:
            return float("nan")
        layers = dynamics.measure(model, self.scans.rollouts, self.scans.point, self.scans.readout)
        self.dynamics = tables.appended(self.dynamics, layers.assign(step=step))
        tables.write(self.folder / DYNAMICS, self.dynamics, state)
        return dynamics.perplexity(layers)


def _rewards(logs: Mapping[str, Any]) -> dict[str, str]:
    """What the trainer logs of each reward -> its column, if there are several."""
    found = {name: REWARD + match[1] for name in logs if (match := re.fullmatch(r"rewards/(.+)/mean", name))}
    return found if len(found) > 1 else {}


def _mean(logs: Sequence[tuple[int, Mapping[str, Any]]], columns: Mapping[str, str], before: int) -> dict[str, float]:
    """The columns of one step from its logs, each paired with the update after which it was written.

    A log covers the updates since the previous one, or since update `before`, and is weighted by their number.
    """
    spans = [update - start for start, update in pairwise([before, *(update for update, _ in logs)])]
    row: dict[str, float] = {}
    for name, column in columns.items():
        logged = [(float(log[name]), n) for n, (_, log) in zip(spans, logs, strict=True) if log.get(name) is not None]
        if logged:
            values, weights = zip(*logged, strict=True)
            row[column] = values[-1] if column in FROM_LAST_UPDATE else float(np.average(values, weights=weights))
    return row


class Interrupt(TrainerCallback):
    """Ends training with a checkpoint after Ctrl-C or SIGTERM, on every process at the same update."""

    def __init__(self) -> None:
        """Start without an interruption."""
        self.pressed, self.at = False, 0.0

    @contextmanager
    def listening(self, report: Callable[[str], None]) -> Iterator[None]:
        """Inside, the first signal asks for a checkpoint; one that comes more than TOGETHER later stops at once."""

        def press(*_: Any) -> None:
            if not self.pressed:
                self.pressed, self.at = True, time.monotonic()
                report("Interrupted. A checkpoint will be written after this step. Press Ctrl-C again to stop at once.")
            elif time.monotonic() - self.at > TOGETHER:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for the checkpoint."""
        pressed = torch.tensor(float(self.pressed), device=args.device)
        self.pressed = bool(reduce(pressed, reduction="sum"))
        if self.pressed:
            control.should_save = control.should_training_stop = True
