"""Checkpoints, and the end of training, only where a generation batch ends."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internal_policy.errors import InputError
from internal_policy.train.configuration import BuPOConfig, check_length


class StepBoundary(TrainerCallback):
    """Delays checkpoints and the end of training until a generation batch is used up."""

    def __init__(self) -> None:
        """Start with nothing delayed."""
        self.save = self.stop = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Reject a schedule longer than training, and training that ends or resumes within a generation batch."""
        assert isinstance(args, BuPOConfig)
        self.save = self.stop = False
        updates = args.updates_per_step
        check_length(args, state.max_steps)
        if state.global_step % updates:
            raise InputError(
                f"The checkpoint is from update {state.global_step}, within a generation batch of {updates} updates. "
                "Resume from one that this trainer wrote."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Delay checkpoints and the end of training until the batch is used up."""
        assert isinstance(args, BuPOConfig)
        self.save |= control.should_save
        self.stop |= control.should_training_stop
        whole = state.global_step % args.updates_per_step == 0
        control.should_save, control.should_training_stop = whole and self.save, whole and self.stop
        if whole:
            self.save = False
