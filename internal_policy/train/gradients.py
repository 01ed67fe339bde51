"""Gradients of GRPO's objective with the policy at any hook point, from given responses and advantages."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from internal_policy.models.adapters import inside
from internal_policy.models.head import to_logits
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.modules import backbone, final_norm
from internal_policy.models.passes import device_of, evaluating
from internal_policy.models.policy import Readout, as_policy, unembed
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train.methods import SMALL

LOGITS = 2**25
"""Logits that are computed at a time."""


@dataclass(frozen=True)
class Weighted:
    """A response with its weight in the objective."""

    rollout: Rollout
    """The response."""
    advantage: float
    """Its reward less the mean of its group, in standard deviations of the group."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of responses, which the states at a hook point predict."""

    ids: Int[Tensor, " tokens"]
    """Token ids."""
    weights: Float[Tensor, " tokens"]
    """The weight of each in the objective."""
    temperature: float
    """The temperature at which they were sampled."""


def advantages(rewards: Float[Tensor, "groups group"]) -> Float[Tensor, "groups group"]:
    """Rewards less the mean of their group, divided by its standard deviation (Eq. 3 of arXiv 2512.19673, as in TRL).

    0 in a group without spread.
    """
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + SMALL)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; a tied one is there once."""
    return {name: weight for name, weight in inside(model).named_parameters() if weight.requires_grad}


def gradients(
    model: nn.Module,
    batch: Sequence[Weighted],
    points: Sequence[tuple[HookPoint, Readout]],
    temperature: float = 1.0,
) -> list[dict[str, Tensor]]:
    """The gradient of GRPO's objective with the policy at each of `points`, summed over the responses of a batch.

    The objective of a response is its advantage times the mean log-probability of its tokens. Before the first update
    its gradient is that of the clipped ratio (Eqs. 3 and 9 of arXiv 2512.19673). Each gradient has the trainable
    parameters that it reaches, by name. One forward pass up to the highest point serves all of them. Dropout is off.
    """
    ids, weights = _padded(batch, device_of(model))
    predicts = weights[:, 1:] != 0  # token t is predicted at position t - 1
    tokens = Tokens(ids[:, 1:][predicts], weights[:, 1:][predicts], temperature)
    wanted = {point for point, _ in points}
    top = FINAL if FINAL in wanted else max(wanted, key=lambda point: point.layer)
    states: dict[HookPoint, Tensor] = {}

    def keep(point: HookPoint, hidden: Tensor) -> None:
        states[point] = hidden[:, :-1][predicts]

    with torch.enable_grad(), evaluating(model):
        with nullcontext() if top == FINAL else as_policy(model, top), hooked(model, wanted, keep):
            # no token sees the padding after it, and a mask would leave nothing to see for padding beyond a window
            backbone(model)(input_ids=ids, use_cache=False)
        return [_gradient(model, states[point], tokens, point, readout) for point, readout in points]


def _padded(
    batch: Sequence[Weighted], device: torch.device
) -> tuple[Int[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Token ids, padded on the right, and the weight of each in the objective."""
    shape = len(batch), max(len(one.rollout.ids) for one in batch)
    ids = torch.zeros(shape, dtype=torch.long)
    weights = torch.zeros(shape, dtype=torch.float32 if device.type == "mps" else torch.float64)
    for row, one in enumerate(batch):
        prompt, length = len(one.rollout.prompt_ids), len(one.rollout.ids)
        ids[row, :length] = torch.tensor(one.rollout.ids)
        weights[row, prompt:length] = one.advantage / (length - prompt)
    return ids.to(device), weights.to(device)


def _gradient(
    model: nn.Module, state: Float[Tensor, "tokens d_model"], tokens: Tokens, point: HookPoint, readout: Readout
) -> dict[str, Tensor]:
    """The gradient of one policy: first through the unembedding, a few tokens at a time, then through the layers."""
    known, leaf = trainable(model), state.detach().requires_grad_()
    modules = [to_logits(model), *([final_norm(model)] if readout == "norm" and point != FINAL else [])]
    used = {id(weight) for module in modules for weight in module.parameters()}
    head = {name: weight for name, weight in known.items() if id(weight) in used}
    found: dict[str, Tensor] = {}
    back = torch.zeros_like(leaf)
    size = max(1, LOGITS // inside(model).config.get_text_config().vocab_size)
    for start in range(0, len(leaf), size):
        some = slice(start, start + size)
        logits = unembed(model, leaf[some], readout, point)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / tokens.temperature
        logprobs = logits.log_softmax(-1).gather(1, tokens.ids[some, None])[:, 0]
        objective = (tokens.weights[some].to(logprobs) * logprobs).sum()
        to_state, *to_head = torch.autograd.grad(objective, [leaf, *head.values()], allow_unused=True)
        back += to_state
        _add(found, zip(head, to_head, strict=True))
    if state.requires_grad:  # not if all that is below is frozen
        grads = torch.autograd.grad(state, [*known.values()], back, retain_graph=True, allow_unused=True)
        _add(found, zip(known, grads, strict=True))
    return found


def _add(found: dict[str, Tensor], grads: Iterable[tuple[str, Tensor | None]]) -> None:
    """Add to sums of gradients; None is 0."""
    for name, grad in grads:
        if grad is not None:
            found[name] = found[name] + grad if name in found else grad
