"""Measure hidden states on a server: this file is sent there as text, and needs only torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from internal_policy.measure.kernel import Kernel
from internal_policy.measure.transform import LogitTransform


@torch.no_grad()
def measured(
    states: Sequence[Tensor],
    normed: Sequence[Tensor],
    weight: Tensor,
    targets: Tensor,
    *,
    shape: tuple[int, int],
    readouts: Sequence[str],
    transform: Mapping[str, Any],
    fields: Mapping[str, Any],
    together: int,
) -> dict[str, dict[str, Tensor]]:
    """Readout -> name -> numbers (points, pos), small and on the CPU.

    `states` has one (pos, d_model) per hook point, the first from FINAL; `normed` are the ones to unembed for
    "norm". `weight` must have `shape`. `transform` and `fields` are those of LogitTransform and Kernel. `together`
    positions are measured at once.
    """
    if weight.shape != shape:
        raise RuntimeError(f"the unembedding is {tuple(weight.shape)}, expected {tuple(shape)}")
    hidden = torch.stack([state.to(weight) for state in states])
    through_norm = torch.stack([state.to(weight) for state in normed]) if "norm" in readouts else None
    kernel = Kernel(weight, LogitTransform(**transform), **fields)
    parts: dict[str, dict[str, list[Tensor]]] = {readout: {} for readout in readouts}
    with torch.autocast(weight.device.type, enabled=False):  # a server may run everything in half precision
        for start in range(0, len(targets), together):
            at = slice(start, start + together)
            for readout in readouts:
                normed_here = through_norm[:, at] if readout == "norm" and through_norm is not None else None
                numbers = kernel.numbers(hidden[:, at], targets[at].to(weight.device), normed_here)
                for name, values in numbers.items():
                    small = values.to(torch.int32 if name == "topk_ids" else torch.float32).cpu()
                    parts[readout].setdefault(name, []).append(small)
    return {readout: {name: torch.cat(each, 1) for name, each in named.items()} for readout, named in parts.items()}
