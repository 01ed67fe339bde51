"""The logit transform: some families divide or cap the logits after the unembedding."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """Logits of the unembedding -> logits of the policy, in the same order. The default leaves them as they are."""

    divisor: float = 1.0
    """What the logits are divided by (`logits_scaling` of Granite)."""
    cap: float | None = None
    """What they then approach on either side and never pass (`final_logit_softcapping` of Gemma)."""

    def __call__(self, logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
        """Bit for bit what the models of transformers do: the same operations, one after the other; on the graph."""
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits

    def overwrite(self, logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
        """The same, in place of `logits` and off the graph."""
        if self.divisor != 1:
            logits.div_(self.divisor)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits
