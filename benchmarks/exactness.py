"""Compare numbers of hidden states with float64."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import StudentT

from internal_policy.measure.kernel import Kernel

POINTS = 64
"""Hook points of the hidden states: the first is final, and half have a norm control."""
HALF = POINTS // 2
SCALED, STREAMS = slice(1, 1 + HALF), [(row, row + 1) for row in range(1, POINTS - 1)]
Reader = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Hidden states (points, 1, d_model) and the token that came next (1,) -> numbers (points, 1)."""


def heavy(points: int, positions: int, d_model: int, device: torch.device) -> Tensor:
    """Hidden states of very different sizes with heavy tails, whose logits reach the thousands."""
    size = torch.logspace(-1, 2.5, points, device=device).view(-1, 1, 1)
    return StudentT(torch.tensor(3.0, device=device)).sample((points, positions, d_model)) * size / 1.7


def numbers(weight: Tensor, name: str, hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Every number, where each state of the first half is scaled to the norm of one of the second half."""
    inputs = range(POINTS - HALF, POINTS)
    return Kernel(weight, matmul=name, inputs=inputs, streams=STREAMS).numbers(hidden, targets)


def errors(weight: Tensor, readers: dict[str, Reader]) -> dict[str, dict[str, float]]:
    """The largest error of each number against float64: in nats, or as a share of numbers above 1.

    For `topk_ids` it is the share of tokens that differ.
    """
    hidden = heavy(POINTS, 1, weight.shape[1], weight.device).to(weight)
    targets = torch.tensor([7], device=weight.device)
    exact = true_numbers(weight, hidden.double().flatten(0, 1), 7)
    found = {name: reader(hidden, targets) for name, reader in readers.items()}
    return {
        name: {key: error(value.flatten(0, 1), exact[key]) for key, value in values.items()}
        for name, values in found.items()
    }


def true_numbers(weight: Tensor, hidden: Tensor, target: int) -> dict[str, Tensor]:
    """Every number of policies from all their logits in float64; NaN where there is none."""
    z = torch.cat([hidden @ part.double().T for part in weight.split(16384)], -1)
    policy, norms = z.log_softmax(-1), hidden.norm(dim=-1)
    scaled = (z[SCALED] * (norms[POINTS - HALF :] / norms[SCALED])[:, None]).log_softmax(-1)
    at_input_norm, cosines = torch.full_like(norms, torch.nan), torch.full_like(norms, torch.nan)
    at_input_norm[SCALED] = torch.special.entr(scaled.exp()).sum(-1)
    modules, streams = torch.tensor(STREAMS).T.to(hidden.device)
    cosines[modules] = torch.cosine_similarity(hidden[modules], hidden[streams], dim=-1)
    top = policy.topk(5)
    return {
        "entropy": -(policy.exp() * policy).sum(-1),
        "logprob": policy[:, target],
        "rank": (z > z[:, [target]]).sum(-1) + 1.0,
        "kl": (policy[0].exp() * (policy[0] - policy)).sum(-1),
        "entropy_at_input_norm": at_input_norm,
        "topk_probs": top.values.exp(),
        "topk_ids": top.indices,
        "norm": norms,
        "cosine": cosines,
    }


def error(found: Tensor, truth: Tensor) -> float:
    """The largest error, or the share of integers that differ; NaN if one of them is NaN where the other isn't."""
    if not truth.is_floating_point():
        return (found != truth).double().mean().item()
    differences = (found.double() - truth).abs() / truth.abs().clamp(min=1)
    return torch.where(found.isnan() & truth.isnan(), 0.0, differences).max().item()
