"""Measure where the time of a training step goes, how many tokens it takes, and how much memory."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import psutil
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments
from trl.trainer.grpo_trainer import GRPOTrainer

from internal_policy.train import flops

GENERATION, REWARDS, SCORING, TRAINING, OTHER = "generation", "rewards", "scoring", "training", "other"
"""What a process is doing. Scoring is the log-probabilities before the first update, training the loss, its backward
pass and the update."""
TIMED = (GENERATION, REWARDS, SCORING, TRAINING)
"""What has a column of seconds."""
LOGGED = (
    *("generation_tokens_per_second", "training_tokens_per_second", "training_flops", "mfu", "peak_memory"),
    *(f"{name}_seconds" for name in TIMED),
)
"""What is logged once per generation batch, and the names of its columns."""


class Stopwatch:
    """Seconds spent on each section of a step. Sections can be nested: time counts for the innermost."""

    def __init__(self) -> None:
        """Start outside of all sections."""
        self.section, self.at = OTHER, time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)

    def switch(self, section: str) -> str:
        """Begin a section, and return the one that ends. A GPU first finishes what it has been asked to do."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now, before = time.perf_counter(), self.section
        self.seconds[before] += now - self.at
        self.section, self.at = section, now
        return before

    @contextmanager
    def timing(self, section: str) -> Iterator[None]:
        """Time a section, then go on with the one around it."""
        before = self.switch(section)
        try:
            yield
        finally:
            self.switch(before)


class TimedTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, which logs its throughput once per generation batch.

    Logs `generation_tokens_per_second` (response tokens sampled), `training_tokens_per_second` (response tokens that
    losses were computed on), the seconds of each of TIMED, `peak_memory` (bytes, of the process that took most),
    `training_flops` (counted operations of the forward and backward passes of the losses; see `flops`) and, on a GPU in
    the table of peaks, `mfu` (their share of what the GPUs could have done in the time). Tokens and operations are
    summed over processes, and divided by the time of the slowest one.
    """

    args: Any
    model: Any

    def __init__(self, *args: Any, **more: Any) -> None:
        """Take the arguments of GRPOTrainer."""
        self.stopwatch = Stopwatch()
        self.sampled = self.trained = 0
        self.passes: list[flops.Count] = []
        super().__init__(*args, **more)
        self.add_callback(_Meter(self))

    def measured(self) -> dict[str, float]:
        """The throughput since the last call, over all processes, which must all call it."""
        here = {
            "sampled": self.sampled,
            "trained": self.trained,
            "operations": sum(count.operations for count in self.passes),
            "peak_memory": _peak_memory(),
            **{name: self.stopwatch.seconds[name] for name in TIMED},
        }
        self.restart()
        everywhere: list[dict[str, Any]] = gather_object([here])
        total, most = ({name: combined(each[name] for each in everywhere) for name in here} for combined in (sum, max))
        possible = most[TRAINING] * (self._peak() or 0) * len(everywhere)
        found = {
            "generation_tokens_per_second": _over(total["sampled"], most[GENERATION]),
            "training_tokens_per_second": _over(total["trained"], most[TRAINING]),
            "training_flops": total["operations"] or None,
            "mfu": _over(total["operations"], possible) or None,
            "peak_memory": float(most["peak_memory"]),
            **{f"{name}_seconds": most[name] for name in TIMED},
        }
        return {name: value for name, value in found.items() if value is not None}

    def restart(self) -> None:
        """Forget what was measured."""
        self.stopwatch.seconds.clear()
        self.sampled = self.trained = 0
        self.passes.clear()

    def _peak(self) -> float | None:
        """Dense peak of this process's GPU in FLOP/s, in the type that it multiplies in; None if it isn't known."""
        device = self.accelerator.device
        if device.type != "cuda":
            return None
        precision = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else str(self.model.dtype)[6:]
        if precision == "float32" and torch.backends.cuda.matmul.fp32_precision == "tf32":
            precision = "tf32"
        return flops.peak(torch.cuda.get_device_name(device), precision)

    def training_step(self, *args: Any, **more: Any) -> Any:
        """Train on a batch; the time until the end of the update counts as training."""
        self.stopwatch.switch(TRAINING)
        return super().training_step(*args, **more)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Sample a batch of responses if the last is used up."""
        with self.stopwatch.timing(SCORING) if self.model.training else nullcontext():
            return super()._prepare_inputs(generation_batch)

    def _generate(self, prompts: list[Any]) -> Any:
        """Sample responses, and count their tokens."""
        if not self.model.training:
            return super()._generate(prompts)
        with self.stopwatch.timing(GENERATION):
            made = super()._generate(prompts)
        self.sampled += sum(map(len, made[1])) if made[2] is None else sum(map(sum, made[2]))
        return made

    def _calculate_rewards(self, *args: Any, **more: Any) -> Any:
        """Call the reward functions."""
        with self.stopwatch.timing(REWARDS) if self.model.training else nullcontext():
            return super()._calculate_rewards(*args, **more)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **more: Any
    ) -> Any:
        """Log-probabilities and entropies; while losses are computed, the operations are counted."""
        if not (self.model.training and torch.is_grad_enabled()):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **more
            )
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        tokens = int(attention_mask[:, -logits_to_keep:].sum())
        with nullcontext() if self.args.torch_compile else flops.counting(unwrapped, attention_mask) as count:
            scored = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **more
            )
        if count is not None:
            count.add(flops.unembedding(unwrapped, tokens, trained=True))
            self.passes.append(count)
        self.trained += tokens
        return scored


class _Meter(TrainerCallback):
    """Logs the throughput of a trainer once per generation batch."""

    def __init__(self, trainer: TimedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.restart()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.stopwatch.switch(OTHER)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step % cast(Any, args).updates_per_step == 0:
            for name, value in self.trainer.measured().items():
                self.trainer._metrics["train"][name].append(value)


def _over(amount: int | float, unit: float) -> float | None:
    return amount / unit if unit else None


def _peak_memory() -> int:
    """Most bytes that PyTorch has had on the GPU or, without one, that the process has had in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return cast(Any, psutil.Process().memory_info()).peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
