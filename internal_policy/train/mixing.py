"""A GRPO trainer whose loss can be the weighted sum of an internal policy's and the whole policy's."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from internal_policy.train import finite
from internal_policy.train.method_trainer import MethodTrainer

WHOLE_OLD = "whole_old_per_token_logps"
"""Key in a pass: the whole policy's log-probabilities before the first update, in nats."""


class MixedTrainer(MethodTrainer):
    """TRL's GRPOTrainer; with a weight below 1 its loss is weight x internal + (1 - weight) x whole."""

    weight = 1.0
    """Weight of the trained policy's loss."""
    whole = False
    """Whether responses are scored with the whole policy, whatever is trained."""
    old: Tensor | None = None
    """Log-probabilities that log-ratios of the current pass are bounded by."""

    @contextmanager
    def as_whole(self) -> Iterator[None]:
        """Inside, responses are scored with the whole policy, whatever is trained."""
        self.whole = True
        try:
            yield
        finally:
            self.whole = False

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        """The loss of the trained policy, or the sum. Metrics are those of the trained policy."""
        if self.weight == 1 or not self.model.training:
            return super()._compute_loss(model, inputs)
        loss = self.weight * super()._compute_loss(model, inputs)
        if WHOLE_OLD in inputs:
            inputs = {**inputs, "old_per_token_logps": inputs[WHOLE_OLD]}
        self.old = None if self.loss_type in finite.DETACHED else inputs.get("old_per_token_logps")
        logged, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        with self.as_whole():  # last, because DDP prepares for the layers of the last pass
            loss = loss + (1 - self.weight) * super()._compute_loss(model, inputs)
        self._metrics["train"] = logged
        return loss
