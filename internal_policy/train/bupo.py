"""Train a model on one of its internal policies first: BuPO is GRPO with a schedule of hook points.

Equations 3, 9 and 10 of arXiv 2512.19673. Responses are always sampled from the whole policy; the schedule decides
whose log-probabilities form the ratio in GRPO's loss.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.utils import RepeatSampler

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.hooks import FINAL, locate
from internal_policy.models.passes import check_padding
from internal_policy.models.policy import Readout, as_policy
from internal_policy.tasks.generate import end_ids, pad_id
from internal_policy.tasks.problems import Problem, messages_of
from internal_policy.tasks.prompts import encode_problem, encode_text
from internal_policy.train import checkpoints, dropout, finite, freezing, lora, padding, spread
from internal_policy.train.boundary import StepBoundary
from internal_policy.train.configuration import BuPOConfig, check_vllm
from internal_policy.train.mixing import WHOLE_OLD
from internal_policy.train.resampling import ResamplingTrainer
from internal_policy.train.sampler import EpochSampler
from internal_policy.train.schedule import REST, first_internal, phase_at
from internal_policy.train.switching import SwitchingTrainer, ended
from internal_policy.train.throughput import SCORING, TimedTrainer

MEANS = re.compile(r"entropy|clip_ratio/.*|cispo_clip_ratio|vespo/phi_seq_mean|kl")
"""Names that TRL logs as means over the tokens of a pass."""


class BuPOTrainer(SwitchingTrainer, ResamplingTrainer, TimedTrainer):
    """TRL's GRPOTrainer, with the ratio of the policy at the scheduled hook point (Eqs. 9 and 10).

        trainer = ip.BuPOTrainer(model, reward_funcs, config, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()

    Takes the arguments of GRPOTrainer. `model` is a folder, a hub id or a loaded model, also a PeftModel; its family
    must be in `internal-policy families`. `args` is a BuPOConfig; without it this is GRPO. `reward_funcs` map responses
    to rewards; `dataset.box_reward` marks them by the answer in their last box, and `dataset.dataset_of` turns problems
    into a `train_dataset`.

    Responses without an advantage are left out of the loss (see `spread`), unless another term acts on them: a KL or
    entropy term, an auxiliary loss, or `top_entropy_quantile`. `rows_trained` is the share that stayed. `clip_ratio/*`
    and `trained/entropy` (nats) are means over the tokens of these; while an internal policy is trained, they describe
    that policy, as `internal/clip_ratio/*` and `internal/entropy`. `entropy` is the whole policy's before the updates,
    at one sampled response per prompt. `resample` draws more prompts for those without spread (see `resampling`).
    Evaluation uses the whole policy, and its logs are TRL's.

    The KL term (`beta`) is 0 until the whole policy is trained. Log-ratios are clamped at +-20, as in the paper's code.
    An update whose gradient isn't finite is skipped, and logged as `skipped`. Raises InputError for a hook point that
    the model doesn't have, when training starts for a schedule that is longer than training, and after 10 skipped
    updates in a row.

    Overrides private names: `_generate_and_score_completions`, `_calculate_rewards`, `_prepare_inputs`, `_generate`,
    `_get_per_token_logps_and_entropies`, `_compute_loss`, `_tokenize_prompts`, `_get_train_sampler`,
    `_save_checkpoint`, `_tag_names`, `_name` and `_paper` of GRPOTrainer, `_run_epoch`, `_get_grad_norm`,
    `_get_output_dir` and, from TRL's base class, `_send_telemetry`. It also reads `_tokenizer`, `_is_vlm` and
    `_entropy_bonus_enabled`, sets `_metrics`, `_logs`, `_step` and `_buffered_inputs`, and uses `_compute_loss` of
    RLOOTrainer. That is why pyproject.toml pins TRL to the minor versions with which the tests pass.
    """

    _tag_names: ClassVar = ["trl", "bupo"]
    _name = "BuPO"
    _paper: ClassVar = {"title": "Bottom-up Policy Optimization", "id": "2512.19673"}

    args: BuPOConfig
    model: Any

    def __init__(self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, **more: Any) -> None:
        """Take the arguments of GRPOTrainer."""
        args = BuPOConfig() if args is None else args
        if not isinstance(args, BuPOConfig):
            raise InputError(f"args is a {type(args).__name__}. Give a BuPOConfig, which has the same fields and more.")
        if args.eval_strategy != "no" and more.get("eval_dataset") is None:
            raise InputError("eval_strategy needs an eval_dataset. Give one, or remove eval_strategy.")
        check_vllm(args)
        self.phase, self.point = REST, FINAL
        self.means: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.defers = self.deferred = False
        self.skipped = 0
        if args.lora and more.get("peft_config") is None:
            more["peft_config"] = lora.adapter(model, args.lora_rank, args.lora_alpha, args.lora_targets)
        super().__init__(model, reward_funcs, args, **more)
        if args.lora:
            lora.name_base(self.model)
        causal = self._causal(self.model)
        check_padding(causal.config)
        padding.check(causal.config)
        if args.disable_dropout:
            dropout.disable(self.accelerator.unwrap_model(self.model))
        # TRL would pad with a token that the model may not have
        pad = self._tokenizer.pad_token_id = pad_id(causal, self._tokenizer)
        causal.config.get_text_config().pad_token_id = causal.generation_config.pad_token_id = pad
        self.eos_token_ids = sorted(end_ids(causal, self._tokenizer))
        if self.use_vllm:  # which would read them from the model's folder, if it has any there
            self.vllm_generation.generation_kwargs.setdefault("stop_token_ids", self.eos_token_ids)
        else:
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids
            self.generation_config.pad_token_id = self.generation_kwargs["pad_token_id"] = pad
        for phase in args.phases:
            locate(causal, phase.point)
        freezing.check(causal.config, args.frozen, args.phases, args.layer_lr_scale)
        freezing.freeze(self.accelerator.unwrap_model(self.model), args.frozen)
        self.add_callback(StepBoundary())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as GRPOTrainer does, even after a run that stopped within a generation batch."""
        self._step, self._buffered_inputs = 0, None
        self._metrics["train"].clear()
        self.means.clear()
        return super().train(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer, with a learning rate of their own for the layers above the first phase's."""
        new, first = self.optimizer is None, first_internal(self.args.phases)
        optimizer = super().create_optimizer(*args, **kwargs)
        if new and first is not None and self.args.layer_lr_scale != 1:
            model = self.accelerator.unwrap_model(self.model)
            freezing.scale(optimizer, model, first.point.layer, self.args.layer_lr_scale)
        return optimizer

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch, or nothing when a finished run is resumed."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm; if it isn't finite, the gradient is dropped, so that no weight changes."""
        norm = super()._get_grad_norm(model, grad_norm)
        skips = norm is not None and not math.isfinite(norm)
        self._metrics["train"]["skipped"].append(float(skips))
        self.skipped = self.skipped + 1 if skips else 0
        if skips:
            model.zero_grad(set_to_none=True)
        if self.skipped == finite.PATIENCE:
            raise InputError(
                f"The gradient wasn't finite in {finite.PATIENCE} updates in a row (up to update "
                f"{self.state.global_step + 1}), so training stopped. {self._kept()} Start again with a lower "
                "learning rate."
            )
        return norm

    def _kept(self) -> str:
        """The newest checkpoint in words."""
        run = Path(self._get_output_dir(None))
        newest = next((path.name for path in checkpoints.found(run).values() if checkpoints.is_whole(path)), None)
        return f"The last checkpoint is {run / newest}." if newest else "There is no checkpoint yet."

    def _send_telemetry(self) -> None:
        """Send nothing. TRL would report its use to its authors."""

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        """TRL's sampler, shuffled by epoch."""
        sampler = cast(RepeatSampler, super()._get_train_sampler(dataset))
        sampler.__class__ = EpochSampler
        return cast(EpochSampler, sampler)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Token ids as in `generate`: with one BOS, without an EOS, and with every key of a message."""
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
        """The causal language model inside the wrappers of DDP, FSDP, torch.compile and PEFT."""
        return inside(self.accelerator.unwrap_model(model, keep_torch_compile=False))

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Log-probabilities and entropies of the policy in training, or of the whole policy if `whole` is set.

        While `defers` is set nothing is computed, because the old ones are only needed of some responses.
        """
        if self.defers:
            self.deferred = True
            return None, None, None
        internal = self.point != FINAL and not self.whole and self.model.training
        readout = cast(Readout, self.phase.readout or self.args.readout)
        causal = self._causal(model)
        with padding.counting(causal), as_policy(causal, self.point, readout) if internal else nullcontext():
            logps, *others = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self.old is not None:
            logps = self._bounded(logps, self.old, args[1][:, -logps.shape[1] :])
        return logps, *others

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Sample a batch from the whole policy, and choose the policy to train on it until it is used up."""
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        step = self.state.global_step // self.args.updates_per_step
        self.phase, number = phase_at(self.args.phases, step, ended(self.state))
        self.point, self.weight = self.phase.point, self.phase.weight(number)
        self.beta = self.args.beta if self.point == FINAL else 0.0  # an internal policy has no reference
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        self.whole = corrected  # vLLM samples from the whole policy, so only that can be compared with it
        self.deferred = corrected and self.point != FINAL
        self.defers = not (corrected or self.beta or self._is_vlm)
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.whole = self.defers = False
        if self.method.by_group:
            group, first = cast(int, self.num_generations), self.accelerator.process_index * len(inputs)
            same = spread.without_spread(self.by_function, group).repeat_interleave(group)[first : first + len(inputs)]
            batch["advantages"] = batch["advantages"].masked_fill(same, 0.0)  # they can differ from 0 by rounding
        self._log_whole_entropy(self.first)
        if self.point != FINAL:
            self._measure_alignment(batch, number)
        return batch

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """The responses of one pass. After sampling, those that don't matter are left out of all passes."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before:
            return inputs
        passes = self._packed(cast(list[dict[str, Any]], self._buffered_inputs))
        with self.stopwatch.timing(SCORING):
            for rows in passes if self.deferred else ():
                rows["old_per_token_logps"] = self._score(rows)[0]
                if self.weight < 1:
                    with self.as_whole():
                        rows[WHOLE_OLD] = self._score(rows)[0]
        self._buffered_inputs = passes
        return passes[self._step % len(passes)]

    def _packed(self, passes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The passes without the responses that don't matter, if the loss has no other terms that act on those."""
        others = self.beta or self.top_entropy_quantile < 1 or self._entropy_bonus_enabled or self.aux_loss_enabled
        loss = spread.BY_SEQUENCE if self.method.by_sequence else self.loss_type
        leaves_out = not others and passes[0].keys() <= spread.KNOWN and loss in spread.DIVISORS
        share = torch.ones(1)
        if leaves_out:
            together = math.gcd(len(passes), self.args.gradient_accumulation_steps)  # passes of one update
            updates = [passes[start : start + together] for start in range(0, len(passes), together)]
            own = torch.stack([torch.cat([spread.matters(rows) for rows in update]).sum() for update in updates])
            numbers = cast(Tensor, self.accelerator.gather(own)).view(-1, len(updates))
            most = numbers.amax(0).tolist()  # as many in each process, because TRL gathers a number for each
            share = numbers.sum() / (numbers.shape[0] * sum(len(rows["advantages"]) for rows in passes))
            packed = zip(updates, most, strict=True)
            passes = [rows for update, number in packed for rows in spread.packed(update, loss, number)]
        self._metrics["train"]["rows_trained"].append(share.item())
        return passes

    def _log_whole_entropy(self, batch: Mapping[str, Any]) -> None:
        """Log the entropy of the whole policy, in nats, at one response to each prompt."""
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        rows = {name: batch[name][:: self.num_generations] for name in names}
        with self.as_whole():
            entropy = self._score(rows, entropy=True)[1]
        assert entropy is not None
        mask = rows["completion_mask"]
        sums = cast(Tensor, self.accelerator.reduce(torch.stack([(entropy * mask).sum(), mask.sum()]), "sum"))
        total, count = sums.tolist()
        if count:  # 0 if every response is masked
            self._metrics["train"]["entropy"].append(total / count)

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        """GRPO's loss; means over tokens are logged once per update, by names that say which policy they describe."""
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        logged, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        self.old = None if self.loss_type in finite.DETACHED else inputs.get("old_per_token_logps")
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.old = None
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        tokens = cast(Tensor, self.accelerator.reduce(mask.sum(), "sum")).item()
        for name, values in self._metrics["train"].items():
            if not MEANS.fullmatch(name):
                logged[name] += values
            elif tokens:
                self.means[self._named(name)] += [(value, tokens) for value in values]
        if self.accelerator.sync_gradients:  # the last pass of an update
            for name, pairs in self.means.items():
                logged[name].append(sum(value * count for value, count in pairs) / sum(count for _, count in pairs))
            self.means.clear()
        self._metrics["train"] = logged
        return loss

    def _named(self, name: str) -> str:
        """The name of a metric of a pass, which says that it describes the policy in training."""
        if self.point != FINAL and (name == "entropy" or name.startswith("clip_ratio/")):
            return f"internal/{name}"
        return f"trained/{name}" if name == "entropy" else name
