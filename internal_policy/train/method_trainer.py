"""A GRPO trainer with the advantages and the loss of a training method."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from trl.trainer.rloo_trainer import RLOOTrainer

from internal_policy.errors import InputError
from internal_policy.train import finite, methods
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.saving import SavingTrainer


def texts(rows: Mapping[str, Any]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Token ids and mask of prompts with their responses, by TRL's names for each of them."""
    ids, mask = (torch.cat([rows[f"prompt_{kind}"], rows[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    return ids, mask


class MethodTrainer(SavingTrainer):
    """TRL's GRPOTrainer, whose rewards become advantages, and advantages a loss, as its configuration's method says."""

    args: BuPOConfig
    model: Any
    rewards: Tensor
    """The reward of each response of the batch, of all processes; NaN if no function gave one."""

    def __init__(self, model: Any, reward_funcs: Any, args: BuPOConfig, **more: Any) -> None:
        """Take the arguments of GRPOTrainer. Raises InputError for tools with a method that can't use them."""
        self.method = methods.method(args.method)
        super().__init__(model, reward_funcs, args, **more)
        if self.method.by_sequence and self.tools:
            raise InputError(f"method {args.method} can't train with tools. Remove them.")

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """The rewards by each function, whose weighted sums are kept."""
        by_function = super()._calculate_rewards(*args, **kwargs)
        rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)
        self.rewards = rewards.masked_fill(by_function.isnan().all(1), torch.nan)
        return by_function

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Sample a batch, and compute the method's advantages."""
        batch = super()._generate_and_score_completions(inputs)
        if self.method.advantages is None or not self.model.training:
            return batch
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        lengths = cast(Tensor, self.accelerator.gather(mask.sum(1).to(self.rewards.dtype)))
        advantages = self.method.advantages(self.rewards, lengths, cast(int, self.num_generations))
        batch["advantages"] = advantages[len(mask) * self.accelerator.process_index :][: len(mask)]
        self._logs["advantages"].extend(advantages.tolist())  # in place of TRL's; the queue has this length
        return batch

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        """The loss of TRL's trainer for the method, divided by the passes of an update."""
        if not (self.method.by_sequence and self.model.training):
            return super()._compute_loss(model, inputs)
        old = inputs.get("old_per_token_logps")
        if old is None:  # as long as no update comes between sampling and this pass
            old = self._score(inputs)[0]
        summed = (old * inputs["completion_mask"]).sum(1)
        loss = cast(Any, RLOOTrainer)._compute_loss(self, model, {**inputs, "old_logps": summed})
        return loss / self.current_gradient_accumulation_steps

    @torch.no_grad()
    def _score(self, rows: Mapping[str, Any], entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies (nats) of some responses by the current policy."""
        ids, mask = texts(rows)
        keep, size = rows["completion_ids"].shape[1], self.args.per_device_train_batch_size
        scored = self._get_per_token_logps_and_entropies(
            self.model, ids, mask, keep, batch_size=size, compute_entropy=entropy
        )
        return scored[0], scored[1]

    def _bounded(self, logps: Tensor, old: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities no further from the old ones than the ratios of the method can bear."""
        logps = finite.bounded(logps, old)
        return finite.bounded_responses(logps, old, mask) if self.method.by_sequence else logps
