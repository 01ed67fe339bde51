"""Keep a few responses of a training run, to read what the model writes while it is trained."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internal_policy.look.samples import SAMPLES
from internal_policy.train import tables

PROBLEMS, RESPONSES = 4, 2
"""Problems kept of a step, and responses to each."""


class SampleLogger(TrainerCallback):
    """Writes samples.parquet: the first responses to the first problems of every few steps, and of the first and last.

    A resumed run continues after the rows of its checkpoint.
    """

    def __init__(self, folder: Path, updates_per_step: int, every: int, trainer: Any) -> None:
        """`every` is the number of steps between samples; `trainer` keeps its last batch in `_logs`."""
        self.folder, self.updates, self.every, self.trainer = folder, updates_per_step, every, trainer
        self.rows = pd.DataFrame()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Read the rows written before the checkpoint."""
        self.rows = tables.until(self.folder / SAMPLES, state.global_step // self.updates)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the samples of a step that is due."""
        step, part = divmod(state.global_step, self.updates)
        if part or not (step == 1 or step % self.every == 0 or state.global_step == state.max_steps):
            return
        new = pd.DataFrame(list(_chosen(self.trainer._logs, self.trainer.reward_weights.tolist()))).assign(step=step)
        self.rows = tables.appended(self.rows, new[["step", *new.columns.drop("step")]])
        tables.write(self.folder / SAMPLES, self.rows, state)


def _chosen(logs: Mapping[str, Any], weights: Sequence[float]) -> Iterable[dict[str, Any]]:
    """The rows of the first responses to the first problems of a batch."""
    rewards = np.nansum(
        [weight * np.array(one) for weight, one in zip(weights, logs["rewards"].values(), strict=True)], 0
    )
    batch = zip(logs["prompt"], logs["completion"], rewards, logs["advantages"], strict=True)
    for _, group in islice(groupby(batch, key=itemgetter(0)), PROBLEMS):
        for prompt, completion, reward, advantage in islice(group, RESPONSES):
            yield {
                "problem": _text(prompt, "user"),
                "response": _text(completion, "assistant"),
                "reward": float(reward),
                "advantage": float(advantage),
            }


def _text(messages: str | Sequence[Mapping[str, Any]], role: str) -> str:
    """A text as it is, or the last message of a role."""
    if isinstance(messages, str):
        return messages
    return next((str(cast(Any, one)["content"]) for one in reversed(messages) if one["role"] == role), "")
