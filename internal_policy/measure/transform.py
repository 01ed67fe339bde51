"""The logit transform: some families multiply, divide or cap the logits after the unembedding."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """Turn the unembedding's logits into the policy's, in the same order. The default leaves them unchanged."""

    divisor: float = 1.0
    """Divides the logits (`logits_scaling` of Granite)."""
    cap: float | None = None
    """Then limits them smoothly to between -cap and cap (`final_logit_softcapping` of Gemma)."""
    factor: float = 1.0
    """Multiplies the logits, before anything else (`logit_scale` of Cohere)."""

    def __call__(self, logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
        """Apply the same operations as transformers, bit for bit and on the autograd graph."""
        if self.factor != 1:
            logits = logits * self.factor
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits

    def overwrite(self, logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
        """Do the same in place, off the autograd graph."""
        if self.factor != 1:
            logits.mul_(self.factor)
        if self.divisor != 1:
            logits.div_(self.divisor)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits
