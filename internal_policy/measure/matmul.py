"""Multiply hidden states by a slice of the unembedding matrix, as fast as this machine can without losing exactness."""

import time
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Multiply = Callable[[Tensor], Tensor]
"""(rows, d_model) -> (rows, vocabulary tile), in `precision(...)`, in new memory that the caller may overwrite."""

WORTH_MEASURING = 2**24
"""Smallest number of entries of an unembedding for which choosing the matrix product pays off."""
ROWS, WEIGHTS = 128, 2**21
"""Hidden states and entries of the unembedding that are multiplied to measure a product."""

_switch = Lock()


def precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits and statistics for weights of `dtype`: float32 or better."""
    return torch.promote_types(dtype, torch.float32)


def plain(tile: Float[Tensor, "tile d_model"], rows: int) -> Multiply:  # noqa: ARG001
    """torch.mm in float32 or better, on any device."""
    dtype = precision(tile.dtype)
    columns = tile.to(dtype).T
    return lambda hidden: torch.mm(hidden.to(dtype), columns)


def packed(tile: Float[Tensor, "tile d_model"], rows: int) -> Multiply:
    """OneDNN in float32 on a packed weight, which is twice as fast on some processors. Uses private names of torch."""
    weight = torch.ops.mkldnn._reorder_linear_weight(tile.float().contiguous(), rows)
    return lambda hidden: torch.ops.mkldnn._linear_pointwise(hidden.float(), weight, None, "none", [], "")


def bfloat16(tile: Float[Tensor, "tile d_model"], rows: int) -> Multiply:  # noqa: ARG001
    """OneDNN on bfloat16 factors with float32 sums and output: exact when both factors are bfloat16 already.

    torch has a switch for the whole process, which is on while a product runs: threads that multiply other
    matrices at that time get bfloat16 factors too.
    """
    columns = tile.float().T
    setting: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]

    def multiply(hidden: Tensor) -> Tensor:
        with _switch:
            before, setting.fp32_precision = setting.fp32_precision, "bf16"
            try:
                return torch.mm(hidden.float(), columns)
            finally:
                setting.fp32_precision = before

    return multiply


MATMULS: dict[str, Callable[[Tensor, int], Multiply]] = {"plain": plain, "packed": packed, "bfloat16": bfloat16}


def candidates(hidden: torch.dtype, weight: torch.dtype, device: torch.device) -> list[str]:
    """Names of the exact matrix products for these factors."""
    if device.type != "cpu" or torch.float64 in (hidden, weight):
        return ["plain"]
    return ["plain", "packed", *(["bfloat16"] if hidden == weight == torch.bfloat16 else [])]


def choose(weight: Float[Tensor, "d_vocab d_model"], hidden: torch.dtype) -> str:
    """Name of the fastest exact matrix product for this matrix, measured once per process.

    Neither dtype nor vendor tells which is fastest: a library can be twice as fast as another on one processor and
    slower on the next. A small matrix isn't worth measuring and always gets "plain".
    """
    if weight.numel() < WORTH_MEASURING or candidates(hidden, weight.dtype, weight.device) == ["plain"]:
        return "plain"
    seconds = exact(hidden, weight.dtype, weight.device, weight.shape[1])
    return min(seconds, key=seconds.__getitem__, default="plain")


@cache
def exact(hidden: torch.dtype, weight: torch.dtype, device: torch.device, d_model: int) -> dict[str, float]:
    """The products that work here and are exact for these factors, with the seconds for one tile."""
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(ROWS, d_model, generator=generator, device=device).to(hidden)
    tile = torch.randn(max(1, WEIGHTS // d_model), d_model, generator=generator, device=device).to(weight)
    truth = torch.mm(rows.double(), tile.double().T)
    bound = 1e-6 * d_model**0.5 * truth.abs().max()
    seconds: dict[str, float] = {}
    for name in candidates(hidden, weight, device):
        try:
            multiply = MATMULS[name](tile, len(rows))
            error = (multiply(rows).double() - truth).abs().max()
        except RuntimeError:  # this processor or this build of torch lacks the kernel
            continue
        if error <= bound:
            seconds[name] = min(_seconds(multiply, rows) for _ in range(5))
    return seconds


def _seconds(multiply: Multiply, rows: Tensor) -> float:
    start = time.process_time()  # other programs don't change it
    multiply(rows)
    return time.process_time() - start
