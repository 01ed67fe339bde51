"""Training methods as rows of data: how rewards become advantages, and which of TRL's losses they weigh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from internal_policy.errors import InputError
from internal_policy.train.schedule import first_internal

Advantages = Callable[[Float[Tensor, " responses"], Float[Tensor, " responses"], int], Float[Tensor, " responses"]]
"""From rewards, the number of trained tokens of each response, and the size of a group."""
SCALES = {True: "group", False: "none"}
"""What TRL means by the truth values that it accepts for scale_rewards."""
SMALL = 1e-4
"""Added to standard deviations, as in TRL."""


def leave_one_out(
    rewards: Float[Tensor, " responses"], _lengths: Float[Tensor, " responses"], group: int
) -> Float[Tensor, " responses"]:
    """Each reward minus the mean of the others of its group (RLOO, arXiv 2402.14740).

    Responses without a reward (NaN) get 0 and are left out of the means.
    """
    grouped = rewards.view(-1, group)
    others = (~grouped.isnan()).sum(1, keepdim=True) - 1
    means = (grouped.nansum(1, keepdim=True) - grouped) / others
    return (grouped - means).flatten().nan_to_num(0.0)


def standardized(
    rewards: Float[Tensor, " responses"], lengths: Float[Tensor, " responses"], _group: int
) -> Float[Tensor, " responses"]:
    """Rewards less their mean over all tokens of the batch, by their standard deviation (REINFORCE++, 2501.03262).

    There is no baseline of the group. A long response counts as often as it has tokens, because each token has the
    reward of its response as its return. Responses without a reward (NaN) get 0 and are left out.
    """
    weights = torch.where(rewards.isnan(), 0.0, lengths.double())
    known = rewards.nan_to_num(0.0).double()
    total = weights.sum().clamp(min=1)
    centred = known - (known * weights).sum() / total
    deviation = ((centred.square() * weights).sum() / total).sqrt()
    return torch.where(rewards.isnan(), 0.0, centred / (deviation + SMALL)).to(rewards.dtype)


@dataclass(frozen=True)
class Method:
    """What sets a training method apart. All else is the same for all of them."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration that the method sets; it can't be used with other values."""
    advantages: Advantages | None = None
    """How rewards become advantages; None for TRL's, which compare the responses to one prompt."""
    by_sequence: bool = False
    """Whether the loss is that of TRL's RLOOTrainer, which clips one ratio for a whole response."""
    by_group: bool = True
    """Whether a response is only compared with others to the same prompt, so that it has no advantage if all have the
    same reward."""
    unused: tuple[str, ...] = ()
    """Fields that the method doesn't use, so that they must keep their defaults."""
    internal: bool = False
    """Whether the command trains an internal policy first, even if no schedule is given."""


_OWN_ADVANTAGES = ("scale_rewards", "multi_objective_aggregation")
METHODS = {
    "bupo": Method(internal=True),
    "grpo": Method(),
    "dr-grpo": Method({"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "rloo": Method(
        advantages=leave_one_out,
        by_sequence=True,
        unused=(
            *_OWN_ADVANTAGES,
            *("loss_type", "importance_sampling_level", "beta", "delta", "top_entropy_quantile", "entropy_coef"),
            *("use_adaptive_entropy", "off_policy_mask_threshold", "use_vllm", "use_liger_kernel"),
        ),
    ),
    "reinforce++": Method(
        {"loss_type": "dapo"}, advantages=standardized, by_group=False, unused=(*_OWN_ADVANTAGES, "resample")
    ),
}
"""Name -> how it trains. With a schedule each of them trains internal policies first; bupo is grpo with one."""
REFUSED = {
    "ppo": "PPO trains a value model too, and TRL 1.16 no longer has a trainer for it. Use reinforce++, which has "
    "PPO's loss without a value model."
}
"""Name -> why it can't be used, and what to use instead."""


def method(name: str) -> Method:
    """The method with a name. Raises InputError for one that is unknown, or that can't be used."""
    if name in REFUSED:
        raise InputError(f"There is no method {name}: {REFUSED[name]}")
    if name not in METHODS:
        raise InputError(f"There is no method '{name}'. Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def apply(name: str, config: Any) -> None:
    """Set the fields of a method in a configuration, a dataclass.

    Raises InputError for fields that it doesn't use, and for values that it excludes, unless they are the defaults.
    """
    chosen = method(name)
    defaults = {each.name: each.default for each in fields(config)}
    changed = {each: value for each, default in defaults.items() if (value := getattr(config, each)) != default}
    for field_name in chosen.unused:
        if field_name in changed:
            raise InputError(f"method {name} doesn't use {field_name}, which is {changed[field_name]}. Remove it.")
    check(name, changed)
    for field_name, value in chosen.fields.items():
        setattr(config, field_name, value)


def check(name: str, given: Mapping[str, Any]) -> None:
    """Raise InputError if given fields of a configuration contradict a method."""
    for field_name, value in method(name).fields.items():
        other = given.get(field_name, value)
        other = SCALES.get(other, other) if isinstance(other, bool) else other
        if other != value:
            raise InputError(
                f"method {name} sets {field_name} to {value}, not {other}. Remove {field_name}, or choose another "
                "method."
            )


def called(config: Any) -> str:
    """What a configuration trains with: its method, but bupo and grpo by whether there is a schedule."""
    return ("bupo" if first_internal(config.phases) else "grpo") if config.method in ("bupo", "grpo") else config.method
