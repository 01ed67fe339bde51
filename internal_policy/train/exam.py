"""Have the model in training solve held-out problems every few steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internal_policy.errors import InputError
from internal_policy.look.runs import EXAMS, best, overall
from internal_policy.models.passes import positions
from internal_policy.tasks import paired, pass_at_k
from internal_policy.tasks.generate import check_prompts, generate
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat, encode_problem
from internal_policy.train import tables

ALL = "all"
"""Name of all sets of problems together."""
BEST = "best"
"""Folder in a run with the model of the best exam."""
Marks = tuple[list[int], list[int]]
"""For each problem, how many of its responses are correct, and how many were cut at the length limit."""


@dataclass(frozen=True)
class Exam:
    """Held-out problems to solve during training, and what to do with the result."""

    sets: Mapping[str, Sequence[Problem]] = field(default_factory=dict)
    """Name of a set -> its problems, with answers. If there are none, no exams are held."""
    every: int = 20
    """Steps between two exams. There is one before the first step and one after the last, too."""
    samples: int = 8
    """Responses to each problem (K)."""
    keep_best: bool = False
    """Whether to keep the model of the exam with the highest Avg@K over all problems."""
    stop_below: float | None = None
    """Share of the first exam's Avg@K below which training stops; None to never stop."""

    @property
    def problems(self) -> list[Problem]:
        """The problems of all sets."""
        return [problem for problems in self.sets.values() for problem in problems]


NO_EXAM = Exam()


def check(exam: Exam, tokenizer: PreTrainedTokenizerBase, chat: Chat, text: Any, max_new_tokens: int) -> None:
    """Raise InputError for a problem that doesn't fit a model with the text configuration `text`; it names the set."""
    for name, problems in exam.sets.items():
        prompts = {n: encode_problem(tokenizer, problem, chat) for n, problem in enumerate(problems)}
        try:
            check_prompts(prompts, max_new_tokens, positions(text), text.vocab_size)
        except InputError as error:
            raise InputError(f"--eval-problems, {name}: {error}") from error


def solve(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    samples: int,
    *,
    batch_size: int,
    **options: Any,
) -> Marks:
    """Sample `samples` responses to each problem with the `options` of `generate`, and mark them.

    Several processes divide the batches among themselves, and all return the same numbers, which don't depend on how
    many there are. The random state of training isn't used, and the model keeps its mode.
    """
    state = PartialState()
    starts = range(0, len(problems) * samples, batch_size)[state.process_index :: state.num_processes]
    mine = [
        ((first + n) // samples, (rollout.reward or 0) >= 1, not rollout.finished)
        for first in starts
        for batch in generate(
            model,
            tokenizer,
            problems,
            samples=samples,
            batch_size=batch_size,
            first=first,
            stop=first + batch_size,
            **options,
        )
        for n, rollout in enumerate(batch)
    ]
    correct, cut = [0] * len(problems), [0] * len(problems)
    for number, is_correct, is_cut in gather_object(mine):
        correct[number] += is_correct
        cut[number] += is_cut
    return correct, cut


def results(exam: Exam, step: int, marks: Marks, first: pd.DataFrame) -> pd.DataFrame:
    """A row for each set of problems, and one for all of them if there are several; docs/columns.md has the columns.

    `first` has the rows of the first exam, or none.
    """
    begin, parts = 0, {}
    for name, problems in exam.sets.items():
        parts[name] = slice(begin, begin := begin + len(problems))
    if len(parts) > 1:
        parts[ALL] = slice(None)
    before = {row["problems"]: list(map(int, row["correct"])) for row in first.to_dict("records")}
    rows = [
        {"step": step, "problems": name, **_result(exam.samples, marks[0][part], marks[1][part], before.get(name))}
        for name, part in parts.items()
    ]
    return pd.DataFrame(rows)


def _result(samples: int, correct: list[int], cut: list[int], before: Sequence[int] | None) -> dict[str, Any]:
    """Avg@K and Pass@K with their intervals, and the difference of Avg@K from the first exam."""
    curve = pass_at_k.curves(correct, samples)
    row: dict[str, Any] = {"number": len(correct), "samples": samples}
    for name, place in (("avg_at_k", 0), ("pass_at_k", -1)):  # k = 1, k = K
        ends = (("", "mean"), ("_low", "low"), ("_high", "high"))
        row |= {f"{name}{end}": float(curve[column].iloc[place]) for end, column in ends}
    changes = None if before is None else paired.differences(before, correct, samples)
    for name, column in (("change", "difference"), ("change_low", "low"), ("change_high", "high")):
        row[name] = float("nan") if changes is None else float(changes[column].iloc[0])
    return {**row, "cut": sum(cut) / (samples * len(cut)), "correct": correct}


def kept(folder: Path, table: pd.DataFrame) -> str:
    """A sentence about the model of the best exam, which is in a folder."""
    row, size = best(table), sum(path.stat().st_size for path in folder.iterdir())
    score = f"Avg@{row['samples']} {row['avg_at_k']:.1%}"
    return f"Step {row['step']} is the best so far ({score}). Its model is {folder} ({size / 1e6:.1f} MB)."


class Examiner(TrainerCallback):
    """Examines the model before the first step, every few steps and after the last; writes evaluations.parquet.

    A resumed run continues after the exams of its checkpoint. An exam is over before the checkpoint of its step is
    written, so that none is lost or repeated.
    """

    def __init__(
        self,
        folder: Path,
        exam: Exam,
        updates_per_step: int,
        solve: Callable[[nn.Module], Marks],
        save: Callable[[pd.DataFrame], None],
    ) -> None:
        """`solve` marks a model's responses to the exam's problems; `save` keeps the model if that was its best exam.

        `save` is called with the table so far.
        """
        self.folder, self.exam, self.updates, self.solve, self.save = folder, exam, updates_per_step, solve, save
        self.table, self.improved, self.stopped = pd.DataFrame(), False, ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Read the exams up to the checkpoint, or examine the untrained model."""
        step, self.improved, self.stopped = state.global_step // self.updates, False, ""
        self.table = tables.until(self.folder / EXAMS, step)
        if self.exam.sets and (self.table.empty or (self._is_due(state) and self.table["step"].max() < step)):
            self._examine(step, state, more["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Examine the model if an exam is due, and stop training if it has lost too much."""
        if state.global_step % self.updates or not self._is_due(state):
            return
        before = best(self.table)
        self._examine(state.global_step // self.updates, state, more["model"])
        self.improved = best(self.table)["step"] > before["step"]
        first, last = (overall(self.table)["avg_at_k"].iloc[row] for row in (0, -1))
        least = self.exam.stop_below
        if least is not None and last < least * first and state.global_step < state.max_steps:
            self.stopped = (
                f"Training stopped after step {self.latest['exam_step']}: Avg@{self.exam.samples} fell from "
                f"{first:.1%} to {last:.1%}, which is below {least:g} times its value before training (--stop-below)."
            )
            control.should_save = control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the model of the best exam, once the numbers of its step are logged."""
        if self.improved and self.exam.keep_best:
            self.save(self.table)
        self.improved = False

    @property
    def latest(self) -> dict[str, Any]:
        """The last exam for a row of progress: `exam` is Avg@K over all problems, `exam_step` its step."""
        if self.table.empty:
            return {}
        row = overall(self.table).iloc[-1]
        return {"exam": float(row["avg_at_k"]), "exam_step": int(row["step"])}

    def _is_due(self, state: TrainerState) -> bool:
        step, ends = state.global_step // self.updates, state.global_step == state.max_steps
        return bool(self.exam.sets) and (step % self.exam.every == 0 or ends)

    def _examine(self, step: int, state: TrainerState, model: nn.Module) -> None:
        """Append the rows of an exam."""
        first = self.table if self.table.empty else self.table[self.table["step"] == self.table["step"].min()]
        begun = time.monotonic()
        rows = results(self.exam, step, self.solve(model), first).assign(seconds=time.monotonic() - begun)
        self.table = tables.appended(self.table, rows)
        tables.write(self.folder / EXAMS, self.table, state)
