"""A GRPO trainer that ends an internal phase when its gradient stops pointing the whole policy's way."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainerState

from internal_policy.errors import InputError
from internal_policy.train import alignment
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.method_trainer import texts
from internal_policy.train.mixing import MixedTrainer
from internal_policy.train.schedule import first_internal

KEY = "ended_phases"
"""Key in the trainer's state, which checkpoints keep, for the steps before which a phase ended early."""


def ended(state: TrainerState) -> list[int]:
    """The steps, counted from 0 and in order, before which a phase ended early."""
    return list(cast(Any, state.stateful_callbacks or {}).get(KEY, ()))


class SwitchingTrainer(MixedTrainer):
    """TRL's GRPOTrainer; with `switch_below` it measures the alignment of an internal phase, and may end it."""

    def __init__(self, model: Any, reward_funcs: Any, args: BuPOConfig, **more: Any) -> None:
        """Take the arguments of GRPOTrainer. Raises InputError if there is nothing to end, or gradients are sharded."""
        super().__init__(model, reward_funcs, args, **more)
        if args.switch_below is None:
            return
        if first_internal(args.phases) is None:
            raise InputError("switch_below ends an internal phase, but the schedule has none. Remove it.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InputError("switch_below needs whole gradients, which FSDP and DeepSpeed shard. Remove it.")

    def _measure_alignment(self, batch: Mapping[str, Any], number: int) -> None:
        """Log the alignment in every few steps of a phase; if it is too small, end the phase after this step.

        `number` is the step's in the phase, from 0. A batch without advantages says nothing.
        """
        if self.args.switch_below is None or number % self.args.switch_every:
            return
        timed = cast(Any, self)
        before = timed.trained, [*timed.passes]
        own = self._gradient(batch)
        with self.as_whole():
            whole = self._gradient(batch)
        timed.trained, timed.passes[:] = before  # what is measured isn't trained on
        if not any(each.any() for each in whole.values()):  # no response has an advantage
            return
        found = alignment.cosine(own, whole)
        self._metrics["train"]["internal/alignment"].append(found)
        if found < self.args.switch_below:
            step = self.state.global_step // self.args.updates_per_step
            cast(Any, self.state.stateful_callbacks)[KEY] = [*ended(self.state), step + 1]

    def _gradient(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, "..."]]:
        """The policy gradient over the sampled responses of all processes: advantage x mean log-probability.

        That of a policy before its first update, whose ratios are 1. Parameters that it doesn't reach are left out.
        """
        ids, mask = texts(batch)
        keep, size = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        named = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        total: dict[str, Tensor] = {}
        for start in range(0, len(ids), size):
            rows = slice(start, start + size)
            logps = self._get_per_token_logps_and_entropies(self.model, ids[rows], mask[rows], keep)[0]
            answer = batch["completion_mask"][rows]
            means = (logps * answer).sum(1) / answer.sum(1).clamp(min=1)
            value = (means * batch["advantages"][rows]).sum()
            for name, each in zip(named, torch.autograd.grad(value, [*named.values()], allow_unused=True), strict=True):
                if each is not None:
                    total[name] = total[name] + each if name in total else each
        return {name: cast(Tensor, self.accelerator.reduce(each, "sum")) for name, each in total.items()}
