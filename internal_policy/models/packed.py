"""Read quantized weights: whether a module holds one plain matrix, that matrix, and every number it multiplies by."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of plain weights; others are packed, with scales beside them."""
ROWS = 256
"""Unit vectors unembedded at a time, which bounds the memory of `dequantized`."""


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds its numbers as they are: an ordinary tensor of 16 bits or more."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in FLOATS


def is_packed(module: nn.Module) -> bool:
    """Whether a module's own weights are quantized, whichever library did it."""
    own = dict(module.named_parameters(recurse=False))
    buffers = dict(module.named_buffers(recurse=False))
    scheme = getattr(module, "quantization_scheme", None)  # compressed-tensors also rounds what the module reads
    return scheme is not None or "qweight" in buffers or not all(map(is_plain, own.values()))


@torch.no_grad()
def dequantized(module: nn.Module, d_model: int, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """A linear module without its quantization: the weight as its library dequantizes it, rounded to `dtype`.

    If the library has no function for that, the weight is what the module makes of the unit vectors, which is as exact,
    because products with 1 and 0 are. What the library does to the vectors that the module reads, such as rounding them
    to 8 bits, isn't copied. bitsandbytes changes the weight in the first pass on a CPU, so this comes before it.
    """
    bias = getattr(module, "bias", None)
    weight = _dequantized(module)
    if weight is None:
        units = torch.eye(d_model, dtype=dtype, device=device)
        columns = torch.cat([module(part).to(dtype) for part in units.split(ROWS)])
        weight = columns.T if bias is None else columns.T - bias[:, None]
    plain = nn.Linear(d_model, len(weight), bias=bias is not None, dtype=dtype, device=weight.device)
    plain.weight.data.copy_(weight)
    if bias is not None:
        plain.bias.data.copy_(bias)
    return plain.requires_grad_(False).eval()


def _dequantized(module: Any) -> Tensor | None:
    """The weight as bitsandbytes or torchao dequantizes it; None for other modules."""
    kind = type(module.weight).__name__ if hasattr(module, "weight") else ""
    if kind in ("Params4bit", "Int8Params"):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return dequantize_bnb_weight(module.weight, getattr(module, "state", None))
    if hasattr(getattr(module, "weight", None), "__tensor_flatten__"):
        return module.weight.dequantize()
    return None


def numbers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a module, and the scales of packed ones, as tensors of 16 bits or more, with the weight's name.

    Whole numbers are left out, because they are always finite.
    """
    tensors = dict(module.named_parameters(recurse=False))
    if is_packed(module):
        tensors |= dict(module.named_buffers(recurse=False))
    for name, tensor in tensors.items():
        for part in _parts(tensor):
            if part.is_floating_point():
                yield name, part if part.dtype in FLOATS else part.float()


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The tensors that a packed tensor consists of; a plain one is its own."""
    if hasattr(tensor, "__tensor_flatten__"):  # torchao
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
        return
    yield tensor
    state = getattr(tensor, "quant_state", None)  # 4 bits of bitsandbytes, whose scales may be quantized too
    while state is not None:
        yield from (part for part in (state.absmax, getattr(state, "offset", None)) if part is not None)
        state = getattr(state, "state2", None)
    if getattr(tensor, "SCB", None) is not None:  # 8 bits of bitsandbytes
        yield tensor.SCB
