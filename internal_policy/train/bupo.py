"""Train a model on one of its internal policies first: BuPO is GRPO with a schedule of hook points.

Equations 3, 9 and 10 of arXiv 2512.19673. Responses are sampled from the whole policy always; what the schedule decides
is whose log-probabilities stand in the ratio of GRPO's loss.
"""

import json
import os
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, cast, no_type_check

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SchedulerType, rotate_checkpoints
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from internal_policy.errors import InputError
from internal_policy.models.families import inside
from internal_policy.models.hooks import FINAL, HookPoint, locate
from internal_policy.models.policy import READOUTS, Readout, as_policy
from internal_policy.tasks.generate import end_ids, pad_id
from internal_policy.tasks.marking import reward
from internal_policy.tasks.problems import Problem, messages_of
from internal_policy.tasks.prompts import Chat, encode_problem, encode_text
from internal_policy.train import checkpoints

MEANS = re.compile(r"entropy|clip_ratio/.*|cispo_clip_ratio|vespo/phi_seq_mean|kl")
"""What TRL logs as means over the tokens of a pass."""
MANY = 1024
"""Largest size to suggest in an error message."""


@dataclass(frozen=True)
class Phase:
    """So many steps on the policy at one hook point; a step is a generation batch."""

    point: HookPoint
    steps: int

    @classmethod
    def parse(cls, text: str) -> "Phase":
        """Read `5.resid_post:30`. Raises InputError."""
        point, _, steps = text.partition(":")
        if not steps.strip().isdecimal() or not int(steps):
            raise InputError(f"'{text}' is no phase; write HOOK POINT:STEPS, such as 5.resid_post:30.")
        return cls(HookPoint.parse(point.strip()), int(steps))


def point_at(phases: Sequence[Phase], step: int) -> HookPoint:
    """The hook point whose policy is trained at `step`, counted from 0; FINAL after the last phase."""
    ends = accumulate(phase.steps for phase in phases)
    return next((phase.point for phase, end in zip(phases, ends, strict=True) if step < end), FINAL)


@no_type_check  # transformers assigns its fields values that don't match their annotations; the tests check the types
@dataclass
class BuPOConfig(GRPOConfig):
    """TRL's GRPOConfig with a schedule, and the paper's loss by default. Raises InputError for what cannot be right.

    A checkpoint asked for in the middle of a generation batch is written at the end of that batch: only there a
    resumed run goes on as if it had not stopped.
    """

    schedule: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Phases HOOK POINT:STEPS such as 5.resid_post:30, in order; after them, or without any, the whole "
            "policy is trained. A step is a generation batch."
        },
    )
    readout: str = field(
        default="raw",
        metadata={"help": "How hidden states are unembedded: raw (the paper) or norm (through the final norm)."},
    )
    num_generations: int | None = 8
    loss_type: str = "grpo"
    lr_scheduler_type: SchedulerType | str = "constant"
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Compute activations again when they are needed; by default not on a CPU."}
    )

    def __post_init__(self) -> None:
        """Check what can be checked without a model, and set what internal phases need."""
        self.phases: tuple[Phase, ...] = tuple(map(Phase.parse, self.schedule))
        if self.readout not in READOUTS:
            raise InputError(f"readout is '{self.readout}'; it must be one of {', '.join(READOUTS)}.")
        if self.phases and self.beta:
            raise InputError(f"beta is {self.beta}, but no KL term is defined for an internal policy; set it to 0.")
        if self.phases and self.use_liger_kernel:
            raise InputError("use_liger_kernel brings a head that passes internal policies by; set it to false.")
        if self.phases and self.use_vllm and self.off_policy_mask_threshold is not None:
            raise InputError(
                "off_policy_mask_threshold compares the policy that is trained with the one that vLLM samples from, "
                "which an internal policy is not; leave it out."
            )
        checkpointing: Any = self.gradient_checkpointing_kwargs or {}
        if isinstance(checkpointing, str):  # as HfArgumentParser reads it
            checkpointing = json.loads(checkpointing)
        if checkpointing.get("use_reentrant"):
            raise InputError("use_reentrant loses gradients of layers that end a policy; leave it out.")
        self._check_sizes(int(os.environ.get("WORLD_SIZE", 1)))
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.dataloader_pin_memory = self.dataloader_pin_memory and not on_cpu
        if self.bf16 is None and on_cpu:
            self.bf16 = False
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = not on_cpu  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.gradient_checkpointing:
            self.gradient_checkpointing_kwargs = {**checkpointing, "use_reentrant": False}
        if self.phases and self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # layers above the hook point get no gradient
        with warnings.catch_warnings():  # the names that TRL uses are those that transformers calls old
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled into training_args.bin beside the weights: everything but the hub token."""
        return {**vars(self), "hub_token": None}

    def _check_sizes(self, processes: int) -> None:
        """Refuse sizes that do not divide, with those that would."""
        at_once = self.per_device_train_batch_size * processes
        if self.generation_batch_size is not None and self.generation_batch_size % at_once:
            raise InputError(
                f"generation_batch_size is {self.generation_batch_size}, no multiple of per_device_train_batch_size x "
                f"processes, {at_once}; {_multiples(self.generation_batch_size, at_once)} would do."
            )
        slices = self.steps_per_generation or self.gradient_accumulation_steps
        if self.generation_batch_size is not None:
            slices = self.generation_batch_size // at_once
        size, group = at_once * slices, self.num_generations or 0
        if group < 2:
            raise InputError(f"num_generations is {group}; advantages compare 2 or more responses to a prompt.")
        if size % group:
            would = [n for n in range(2, min(size, MANY) + 1) if size % n == 0]
            raise InputError(
                f"A generation batch has {size} responses (per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x {processes} processes x {slices}), no multiple of "
                f"num_generations, {group}; num_generations {', '.join(map(str, would))}, or batches of "
                f"{_multiples(size, group)} responses would do."
            )
        passes = slices * self.num_iterations
        if passes % self.gradient_accumulation_steps:
            would = [n for n in range(1, min(passes, MANY) + 1) if passes % n == 0]
            raise InputError(
                f"A generation batch is read in {passes} passes (steps_per_generation x num_iterations), no multiple "
                f"of gradient_accumulation_steps, {self.gradient_accumulation_steps}, so an update would mix two "
                f"batches; gradient_accumulation_steps {', '.join(map(str, would))} would do."
            )

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates per generation batch."""
        return cast(int, self.steps_per_generation) * self.num_iterations // self.gradient_accumulation_steps


del BuPOConfig.__no_type_check__  # pyright: ignore[reportAttributeAccessIssue]  # HfArgumentParser needs the hints


def _multiples(size: int, of: int) -> str:
    """The multiples of `of` around `size`, as text."""
    below = size // of * of
    return f"{below} or {below + of}" if below else f"{of}"


def check_length(config: BuPOConfig, updates: int) -> None:
    """Refuse a training of so many updates that is no whole number of steps, or shorter than its schedule.

    Raises InputError.
    """
    each, scheduled = config.updates_per_step, sum(phase.steps for phase in config.phases)
    if updates % each:
        raise InputError(
            f"Training is {updates} updates long, but a generation batch takes {each}; max_steps "
            f"{_multiples(updates, each)} would do."
        )
    if scheduled > updates // each:
        raise InputError(
            f"The schedule is {scheduled} steps long, training only {updates // each} "
            f"(a step is a generation batch, {each} updates here); shorten it, or train longer."
        )


class EpochSampler(RepeatSampler):
    """TRL's sampler in an order that the epoch decides, so that a resumed run meets the same prompts."""

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class Boundaries(TrainerCallback):
    """Keeps checkpoints, and the end of training, at the end of a generation batch."""

    def __init__(self) -> None:
        """Nothing has been put off yet."""
        self.save = self.stop = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Refuse a schedule longer than training, and what is no whole number of generation batches."""
        assert isinstance(args, BuPOConfig)
        self.save = self.stop = False
        updates = args.updates_per_step
        check_length(args, state.max_steps)
        if state.global_step % updates:
            raise InputError(
                f"The checkpoint is from update {state.global_step}, within a generation batch of {updates} updates; "
                "go on from one that this trainer wrote."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put off until the batch is used up."""
        assert isinstance(args, BuPOConfig)
        self.save |= control.should_save
        self.stop |= control.should_training_stop
        whole = state.global_step % args.updates_per_step == 0
        control.should_save, control.should_training_stop = whole and self.save, whole and self.stop
        if whole:
            self.save = False


class BuPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer whose ratio is that of the policy at the hook point that the schedule names (Eqs. 9 and 10).

    While that is an internal policy its entropy and clip fractions are logged as `internal/entropy` and
    `internal/clip_ratio/*`, and `entropy` is the whole policy's, at one response to each prompt. Evaluation scores with
    the whole policy. Raises InputError for a hook point that the model does not have.
    """

    _tag_names: ClassVar = ["trl", "bupo"]
    _name = "BuPO"
    _paper: ClassVar = {"title": "Bottom-up Policy Optimization", "id": "2512.19673"}

    args: BuPOConfig
    model: Any

    def __init__(self, model: Any, reward_funcs: Any = None, args: BuPOConfig | None = None, **more: Any) -> None:
        """As GRPOTrainer."""
        args = args or BuPOConfig()
        self.point, self.whole, self.writing = FINAL, False, False
        super().__init__(model, reward_funcs, args, **more)
        causal = self._causal(self.model)
        # TRL would pad with a token that the model may not have
        pad = self._tokenizer.pad_token_id = pad_id(causal, self._tokenizer)
        causal.config.get_text_config().pad_token_id = causal.generation_config.pad_token_id = pad
        self.eos_token_ids = sorted(end_ids(causal, self._tokenizer))
        if not self.use_vllm:
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids
            self.generation_config.pad_token_id = self.generation_kwargs["pad_token_id"] = pad
        for phase in args.phases:
            locate(causal, phase.point)
        self.add_callback(Boundaries())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As GRPOTrainer, and usable again after a training run that stopped within a generation batch."""
        self._step, self._buffered_inputs = 0, None
        self._metrics["train"].clear()
        return super().train(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As GRPOTrainer, but resuming a finished run trains no further."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        """The folder for checkpoints; a temporary one while a checkpoint is being written."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / checkpoints.PARTIAL) if self.writing else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As GRPOTrainer, but a checkpoint gets its name only once all of it is on disk."""
        run, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        partial, writes = run / checkpoints.PARTIAL, self.accelerator.is_local_main_process
        named = self.args.push_to_hub or self.args.metric_for_best_model  # TRL keeps the name for later
        if writes:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self.writing = not named
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.writing = False
        self.accelerator.wait_for_everyone()
        if writes and named:
            checkpoints.seal(run / name)
        elif writes:
            with suppress(FileNotFoundError):  # another node sharing this disk was faster
                checkpoints.put(partial / name, run / name)
                partial.rmdir()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(run), self.args.save_total_limit, best, use_mtime=True)

    def _send_telemetry(self) -> None:
        """TRL would call home; this does not."""

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        """TRL's sampler, shuffled by epoch."""
        sampler = cast(RepeatSampler, super()._get_train_sampler(dataset))
        sampler.__class__ = EpochSampler
        return cast(EpochSampler, sampler)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Token ids as `generate` makes them: one BOS, no EOS, and every key of a message."""
        if self._is_vlm or self.tools or self.environment_factories is not None:
            return super()._tokenize_prompts(prompts)
        chat = dict(cast(Any, self.chat_template_kwargs))
        if self.chat_template:
            chat["chat_template"] = self.chat_template
        ids = [
            encode_text(self._tokenizer, prompt)
            if isinstance(prompt, str)
            else encode_problem(self._tokenizer, Problem(messages_of({"prompt": prompt}, "prompt"), None), chat)
            for prompt in prompts
        ]
        return list(map(list, ids)), None, {}

    def _causal(self, model: Any) -> PreTrainedModel:
        """The causal language model inside what DDP, FSDP, torch.compile and PEFT wrap around it."""
        return inside(self.accelerator.unwrap_model(model, keep_torch_compile=False))

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Log-probabilities and entropies of the policy that is trained; of the whole one where that is asked for."""
        internal = self.point != FINAL and not self.whole and self.model.training
        readout = cast(Readout, self.args.readout)
        with as_policy(self._causal(model), self.point, readout) if internal else nullcontext():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Sample a batch from the whole policy, and decide whose policy it trains until it is used up."""
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self.point = point_at(self.args.phases, self.state.global_step // self.args.updates_per_step)
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        self.whole = corrected  # vLLM samples from the whole policy, so its probabilities compare with no other
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.whole = False
        if self.point != FINAL:
            if corrected:
                batch["old_per_token_logps"] = self._score(batch, slice(None))[0]
            self._log_whole_entropy(batch)
        return batch

    @torch.no_grad()
    def _score(self, batch: dict[str, Any], rows: slice, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies of the responses in some rows of a batch."""
        ids, mask = (
            torch.cat([batch[f"prompt_{kind}"][rows], batch[f"completion_{kind}"][rows]], 1) for kind in ("ids", "mask")
        )
        keep, size = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        scored = self._get_per_token_logps_and_entropies(self.model, ids, mask, keep, size, compute_entropy=entropy)
        return scored[0], scored[1]

    def _log_whole_entropy(self, batch: dict[str, Any]) -> None:
        """Log the entropy of the whole policy, in nats, at one response to each prompt."""
        rows, self.whole = slice(None, None, self.num_generations), True
        try:
            entropy = self._score(batch, rows, entropy=True)[1]
        finally:
            self.whole = False
        assert entropy is not None
        mask = batch["completion_mask"][rows]
        sums = cast(Tensor, self.accelerator.reduce(torch.stack([(entropy * mask).sum(), mask.sum()]), "sum"))
        total, count = sums.tolist()
        if count:  # 0 if every response is masked
            self._metrics["train"]["entropy"].append(total / count)

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        """GRPO's loss. Logs of an internal policy are named `internal/...`; means over no tokens are dropped."""
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        logged, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        loss = super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        tokens = cast(Tensor, self.accelerator.reduce(mask.sum(), "sum")).item()
        for name, values in self._metrics["train"].items():
            if tokens or not MEANS.fullmatch(name):
                internal = self.point != FINAL and (name == "entropy" or name.startswith("clip_ratio/"))
                logged[f"internal/{name}" if internal else name] += values
        self._metrics["train"] = logged
        return loss


def dataset_of(problems: Sequence[Problem], chat: Chat) -> Dataset:
    """Problems as TRL wants them: it applies the chat template to messages, and none to text (`chat` None).

    Raises InputError for a problem without an answer.
    """
    rows = []
    for number, problem in enumerate(problems, 1):
        if problem.answer is None:
            raise InputError(f"Problem {number} has no answer to mark responses by; remove it, or give it one.")
        if problem.tools:
            raise InputError(f"Problem {number} has 'tools', which training doesn't support. Remove that column.")
        prompt = problem.text if chat is None else [dict(message) for message in problem.messages]
        rows.append({"prompt": prompt, "answer": problem.answer})
    return Dataset.from_list(rows)


def right(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """TRL's reward function: 1.0 for a response whose last box holds the answer, else 0.0."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [reward(text, expected) for text, expected in zip(texts, answer, strict=True)]
