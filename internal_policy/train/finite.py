"""Keep training finite: bounded ratios, and no update by a gradient that isn't finite."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

LARGEST = 20.0
"""Largest log-ratio, as in the paper's code; float32 has no exp(89), and its gradient would be 0 x inf."""
DETACHED = ("cispo", "vespo")
"""Losses whose ratios are weights without a gradient, so that none of them can overflow."""
PATIENCE = 10
"""Updates in a row that may be skipped before training stops."""


def bounded(logps: Float[Tensor, "batch seq"], old: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Log-probabilities (nats), but at most LARGEST from the old ones; there, without a gradient."""
    change = (logps - old).detach()
    return torch.where(change.abs() > LARGEST, old + change.clamp(-LARGEST, LARGEST), logps)


def bounded_responses(
    logps: Float[Tensor, "batch seq"], old: Float[Tensor, "batch seq"], mask: Shaped[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Log-probabilities (nats) whose sum over a response is at most LARGEST from the old sum; there, no gradient."""
    change = (logps - old).detach()
    total = (change * mask).sum(1, keepdim=True)
    return torch.where(total.abs() > LARGEST, old + change * (LARGEST / total.abs().clamp(min=LARGEST)), logps)
