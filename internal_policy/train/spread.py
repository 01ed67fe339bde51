"""Leave out of the passes of an update the responses that its gradient doesn't depend on."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Rows = Mapping[str, Any]
"""Tensors of some responses, a row each, as TRL's trainer names them; one without dimensions is shared by all."""


def _responses(rows: Rows) -> Tensor:
    return torch.tensor(len(rows["advantages"]))


def _tokens(rows: Rows) -> Tensor:
    return rows["completion_mask"].sum().clamp(min=1)


def _constant(_: Rows) -> Tensor:
    return torch.tensor(1)


BY_SEQUENCE = "sequence"
"""Name of the loss of TRL's RLOOTrainer, which isn't one of GRPOTrainer's."""
DIVISORS: Mapping[str, Callable[[Rows], Tensor]] = {
    **dict.fromkeys(("grpo", "sapo", "dr_grpo", "luspo", BY_SEQUENCE), _responses),
    "bnpo": _tokens,
    **dict.fromkeys(("dapo", "cispo", "vespo"), _constant),
}
"""Loss -> what it divides the terms of a pass by, up to a factor that doesn't depend on the responses in it."""
SHARED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
PER_TOKEN = ("old_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio")
KNOWN = frozenset((*SHARED, *PER_TOKEN))
"""Names of tensors that can be left out by rows: no images, no tools, no reference policy."""


def without_spread(rewards: Float[Tensor, "rows functions"], group: int) -> Bool[Tensor, " groups"]:
    """Which groups of `group` rows in succession have the same rewards in all rows; NaN (no reward) equals NaN."""
    grouped = rewards.view(-1, group, rewards.shape[1])
    first = grouped[:, :1]
    return ((grouped == first) | (grouped.isnan() & first.isnan())).all(2).all(1)


def matters(rows: Rows) -> Bool[Tensor, " rows"]:
    """Which responses the gradient depends on: the advantage isn't 0, and not every token is masked."""
    return (rows["advantages"] != 0) & rows["completion_mask"].any(1)


def packed(passes: Sequence[Rows], loss: str, number: int) -> list[dict[str, Any]]:
    """The passes of an update, with the same gradient from only `number` of their responses, at least all that matter.

    These fill as few passes as possible, evenly. If fewer matter than `number`, because another process has more of
    them, the others are masked. The passes left over have a single masked token, so that every pass reaches every
    parameter. All losses are proportional to positive factors of the advantage; it is multiplied by the divisor of the
    new pass over that of the old one, so that each response keeps its weight.
    """
    size, divisor = len(passes[0]["advantages"]), DIVISORS[loss]
    together = {name: _joined([rows[name] for rows in passes]) for name in passes[0]}
    weights = torch.cat([divisor(rows).to(rows["advantages"]).expand(size) for rows in passes])
    kept = matters(together).int().argsort(descending=True, stable=True)[:number].sort().values
    made = [_scaled(_select(together, part), divisor, weights[part]) for part in _evenly(kept, size)]
    return made + [_single(together)] * (len(passes) - len(made))


def _evenly(kept: Tensor, size: int) -> Sequence[Tensor]:
    """As few parts of up to `size` rows as possible, of about the same number of rows."""
    return kept.tensor_split(ceil(len(kept) / size)) if len(kept) else ()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts[0].ndim else parts[0]


def _select(rows: Rows, which: Tensor) -> dict[str, Any]:
    return {name: tensor[which] if tensor.ndim else tensor for name, tensor in rows.items()}


def _scaled(rows: dict[str, Any], divisor: Callable[[Rows], Tensor], weights: Tensor) -> dict[str, Any]:
    """The rows with every token masked of those that don't matter, and each divided by its weight of before."""
    rows["completion_mask"] = rows["completion_mask"] * matters(rows).unsqueeze(1)
    rows["advantages"] = rows["advantages"] * (divisor(rows) / weights)
    return rows


def _single(rows: Rows) -> dict[str, Any]:
    """A masked response of one token to the last token of a prompt."""
    row = _select(rows, torch.tensor([0]))
    row["advantages"], row["completion_mask"] = row["advantages"] * 0, row["completion_mask"] * 0
    return {
        name: tensor[:, -1:] if name.startswith("prompt_") else tensor[:, :1] if tensor.ndim == 2 else tensor
        for name, tensor in row.items()
    }
