"""TRL's GRPO configuration with a schedule of hook points."""

import json
import os
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, cast, no_type_check

import torch
from transformers.trainer_utils import SchedulerType
from trl.import_utils import is_vllm_available
from trl.trainer.grpo_config import GRPOConfig

from internal_policy.errors import InputError, counted
from internal_policy.models.policy import READOUTS
from internal_policy.secrecy import redacted
from internal_policy.train import methods, rewards, schedule
from internal_policy.train.freezing import Frozen
from internal_policy.train.limits import CHOICES, COUNT, RANGES
from internal_policy.train.schedule import Phase

MANY = 1024
"""Largest size to suggest in an error message."""
NEEDS = {"switch_every": "switch_below", **dict.fromkeys(("lora_rank", "lora_alpha", "lora_targets"), "lora")}
"""Field -> the field without which it has no effect."""


@no_type_check  # transformers assigns its fields values that don't match their annotations; the tests check the types
@dataclass
class BuPOConfig(GRPOConfig):
    """TRL's GRPOConfig with a schedule of hook points, and with the paper's loss by default.

        config = ip.BuPOConfig(schedule=["5.resid_post:30"], output_dir="run", max_steps=300)

    Takes every field of GRPOConfig. A checkpoint that is due within a generation batch is written at the end of that
    batch, because only then does a resumed run equal an uninterrupted one. On a CPU, bf16 and gradient checkpointing
    are off by default. Raises InputError for a schedule that can't be read, for a field that internal policies exclude
    (such as `use_liger_kernel`), and for sizes that don't divide, suggesting some that do.
    """

    schedule: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Phases HOOK POINT[@READOUT][*WEIGHT]:STEPS such as 5.resid_post:30, in order; final:10 trains the "
            "whole policy. After them, or without any, the whole policy is trained. A step is a generation batch."
        },
    )
    readout: str = field(
        default="raw",
        metadata={"help": "How hidden states are unembedded: raw (the paper) or norm (through the final norm)."},
    )
    rewards: list[str] = field(
        default_factory=lambda: [rewards.DEFAULT],
        metadata={
            "help": "Rewards of `internal-policy train`, whose weighted sum is trained: box, last-number, format, "
            "FILE.py:FUNCTION or MODULE:FUNCTION, each with =WEIGHT or without. In Python, BuPOTrainer takes functions."
        },
    )
    method: str = field(
        default="bupo",
        metadata={
            "help": "Training method: bupo (GRPO, with or without a schedule), grpo, dr-grpo, rloo or reinforce++. "
            "It sets the advantages and the loss."
        },
    )
    frozen_layers: str | None = field(
        default=None,
        metadata={
            "help": "Layers that don't change, counted from 0, such as 0-5 or 0-4,7; also embeddings, norm and head."
        },
    )
    only_layers: str | None = field(
        default=None, metadata={"help": "Layers that change while all else is frozen, written as in frozen_layers."}
    )
    layer_lr_scale: float = field(
        default=1.0,
        metadata={"help": "Learning rate of the layers above the first phase's, as a multiple of learning_rate."},
    )
    lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter (PEFT) in place of all weights."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "The adapter is scaled by this divided by its rank; by default twice the rank."}
    )
    lora_targets: list[str] = field(
        default_factory=list,
        metadata={"help": "Modules to adapt, such as q_proj; by default all linear ones of the decoder layers."},
    )
    switch_below: float | None = field(
        default=None,
        metadata={
            "help": "End an internal phase when the cosine of its gradient with the whole policy's is below this."
        },
    )
    switch_every: int = field(
        default=5, metadata={"help": "Steps of an internal phase between two measurements for switch_below."}
    )
    num_generations: int | None = 8
    resample: int = field(
        default=0,
        metadata={
            "help": "Most draws of more prompts in a step, for those whose responses all have the same reward; by "
            "default none."
        },
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "Turn off dropout and noise; with them, even an unchanged policy has ratios other than 1."},
    )
    loss_type: str = "grpo"
    lr_scheduler_type: SchedulerType | str = "constant"
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "Recompute activations in the backward pass to save memory. By default on, except on a CPU."},
    )

    def __post_init__(self) -> None:
        """Check everything that doesn't need a model, and set what internal policies need."""
        if isinstance(self.schedule, str):
            raise InputError(f"schedule is the text '{self.schedule}'. Give a list of phases: ['{self.schedule}'].")
        self.phases: tuple[Phase, ...] = schedule.parse(self.schedule)
        self.rewards, self.reward_weights = rewards.split(self.rewards, self.reward_weights)
        methods.apply(self.method, self)
        self.frozen = Frozen.of(self.frozen_layers, self.only_layers)
        self._check_values()
        if self.readout not in READOUTS:
            raise InputError(f"readout is '{self.readout}'; it must be {' or '.join(READOUTS)}.")
        if self.phases and self.use_liger_kernel:
            raise InputError("use_liger_kernel bypasses internal policies with a head of its own. Set it to false.")
        if self.phases and self.use_vllm and self.off_policy_mask_threshold is not None:
            raise InputError(
                "off_policy_mask_threshold compares the trained policy with the one that vLLM samples from, which is "
                "the whole policy. Remove it."
            )
        checkpointing: Any = self.gradient_checkpointing_kwargs or {}
        if isinstance(checkpointing, str):  # as HfArgumentParser reads it
            checkpointing = json.loads(checkpointing)
        if checkpointing.get("use_reentrant"):
            raise InputError("use_reentrant loses the gradients of the layer whose policy is trained. Remove it.")
        self._check_sizes(int(os.environ.get("WORLD_SIZE", 1)))
        # without it, transformers keeps the processes of a CPU apart
        on_cpu = self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.dataloader_pin_memory = self.dataloader_pin_memory and not on_cpu
        if self.bf16 is None and on_cpu:
            self.bf16 = False
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = not on_cpu  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.gradient_checkpointing:
            self.gradient_checkpointing_kwargs = {**checkpointing, "use_reentrant": False}
        if self.phases and self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # layers above the hook point get no gradient
        with warnings.catch_warnings():  # TRL uses names that transformers has deprecated
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """State for training_args.bin, which is saved beside the weights: everything but the hub token."""
        return {**vars(self), "hub_token": None}

    def to_dict(self) -> dict[str, Any]:
        """The fields without secrets, as TensorBoard, W&B and Trackio get them."""
        return redacted(super().to_dict())

    def __repr__(self) -> str:
        """The fields without secrets."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    __str__ = __repr__

    def _check_values(self) -> None:
        """Reject what TRL would only notice in training: unknown choices, counts below 1, and missing packages."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if isinstance(value, str) and value not in choices:
                raise InputError(f"{name} is {value}; it must be one of {', '.join(choices)}.")
        for name in [name for name, limits in RANGES.items() if limits == COUNT]:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"{name} is {value}. Use 1 or more.")
        for name, needed in NEEDS.items():
            if getattr(self, name) != getattr(BuPOConfig, name, []) and any(
                getattr(self, needed) is off for off in (None, False)
            ):
                raise InputError(f"{name} has no effect without {needed}. Set {needed}, or remove {name}.")
        if self.deepspeed and find_spec("deepspeed") is None:
            raise InputError("deepspeed isn't installed. Run `pip install deepspeed`, or remove the field.")

    def _check_sizes(self, processes: int) -> None:
        """Reject sizes that don't divide, suggesting some that do."""
        at_once = self.per_device_train_batch_size * processes
        if self.generation_batch_size is not None and self.generation_batch_size % at_once:
            raise InputError(
                f"generation_batch_size {self.generation_batch_size} isn't a multiple of per_device_train_batch_size x "
                f"processes ({at_once}). Try {_multiples(self.generation_batch_size, at_once)}."
            )
        slices = self.steps_per_generation or self.gradient_accumulation_steps
        if self.generation_batch_size is not None:
            slices = self.generation_batch_size // at_once
        size, group = at_once * slices, self.num_generations or 0
        if group < 2:
            raise InputError(f"num_generations is {group}, but GRPO compares responses to a prompt. Use 2 or more.")
        if size % group:
            would = [n for n in range(2, min(size, MANY) + 1) if size % n == 0]
            raise InputError(
                f"A generation batch has {size} responses (per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x {processes} processes x {slices}), which isn't a multiple of "
                f"num_generations, {group}. Try num_generations {', '.join(map(str, would))}, or batches of "
                f"{_multiples(size, group)} responses."
            )
        passes = slices * self.num_iterations
        if passes % self.gradient_accumulation_steps:
            would = [n for n in range(1, min(passes, MANY) + 1) if passes % n == 0]
            raise InputError(
                f"A generation batch takes {passes} passes (steps_per_generation x num_iterations). "
                f"With gradient_accumulation_steps {self.gradient_accumulation_steps} an update would mix two batches. "
                f"Try gradient_accumulation_steps {', '.join(map(str, would))}."
            )

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates per generation batch."""
        return cast(int, self.steps_per_generation) * self.num_iterations // self.gradient_accumulation_steps


del BuPOConfig.__no_type_check__  # pyright: ignore[reportAttributeAccessIssue]  # HfArgumentParser needs the hints


def check_vllm(config: BuPOConfig) -> None:
    """Raise InputError if the configuration needs vLLM and it isn't installed."""
    if config.use_vllm and not is_vllm_available():
        raise InputError("use_vllm needs vLLM, which isn't installed. Run `pip install 'trl[vllm]'`, or remove it.")


def _multiples(size: int, of: int) -> str:
    """The multiples of `of` just below and above `size`, as text."""
    below = size // of * of
    return f"{below} or {below + of}" if below else f"{of}"


def check_length(config: BuPOConfig, updates: int) -> None:
    """Raise InputError if training for `updates` updates ends within a step, or before the schedule does."""
    each, scheduled = config.updates_per_step, sum(phase.steps for phase in config.phases)
    if updates % each:
        raise InputError(
            f"Training is {updates} updates long, but a generation batch takes {each}. Try max_steps "
            f"{_multiples(updates, each)}."
        )
    if scheduled > updates // each:
        more = f" ({updates} updates, {each} per step)" if each > 1 else ""
        raise InputError(
            f"The schedule takes {counted(scheduled, 'step')}, but training stops after {updates // each}{more}. "
            "Shorten it, or train longer."
        )
