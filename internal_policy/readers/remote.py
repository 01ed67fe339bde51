"""Measure hidden states where the model is: this text is sent to a server that has torch, and nothing of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from internal_policy.measure.metrics import numbers
from internal_policy.measure.transform import Head


@torch.no_grad()
def measured(
    states: Sequence[Tensor],
    normed: Sequence[Tensor],
    weight: Tensor,
    targets: Tensor,
    *,
    shape: tuple[int, int],
    readouts: Sequence[str],
    unembedded: int,
    inputs: Sequence[int],
    streams: Sequence[tuple[int, int]],
    head: Mapping[str, Any],
    measures: Sequence[str],
    top_k: int,
    together: int,
) -> dict[str, dict[str, Tensor]]:
    """Readout -> name -> numbers (points, pos), small and on the CPU.

    `states` is one (pos, d_model) a hook point, the first read at FINAL; of them so many are `unembedded`, and for
    "norm" as they are in `normed`. `weight` has to be of `shape`. `together` positions are measured at once.
    """
    if weight.shape != shape:
        raise RuntimeError(f"the unembedding is {tuple(weight.shape)}, expected {tuple(shape)}")
    hidden = torch.stack([state.to(weight) for state in states])
    seen = {"raw": hidden[:unembedded]}
    if "norm" in readouts:
        seen["norm"] = torch.stack([state.to(weight) for state in normed])
    found: dict[str, dict[str, list[Tensor]]] = {readout: {} for readout in readouts}
    with torch.autocast(weight.device.type, enabled=False):  # a server may compute everything in half precision
        for start in range(0, len(targets), together):
            at = slice(start, start + together)
            for readout in readouts:
                measured_here = numbers(
                    hidden[:, at],
                    seen[readout][:, at],
                    weight,
                    targets[at].to(weight.device),
                    inputs=inputs if readout == "raw" else (),
                    streams=streams,
                    head=Head(**head),
                    measures=measures,
                    top_k=top_k,
                )
                for name, values in measured_here.items():
                    small = values.to(torch.int32 if name == "topk_ids" else torch.float32).cpu()
                    found[readout].setdefault(name, []).append(small)
    return {readout: {name: torch.cat(parts, 1) for name, parts in one.items()} for readout, one in found.items()}
