"""The library calls that multiply hidden states by the unembedding, which limit how fast a scan can be."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from internal_policy.measure import kernel, matmul, stacked
from internal_policy.measure.matmul import Multiply

ONEDNN: Any = torch.ops.mkldnn
MKL: Any = torch.ops.mkl


def rounded(tile: Tensor, rows: int) -> Multiply:  # noqa: ARG001
    """torch.mm with logits in the type of the factors, which aren't exact in bfloat16."""
    return partial(torch.mm, mat2=tile.T)


def packed_rounded(tile: Tensor, rows: int) -> Multiply:
    """The same with oneDNN on a packed weight."""
    weight = ONEDNN._reorder_linear_weight(tile.contiguous(), rows)
    return lambda hidden: ONEDNN._linear_pointwise(hidden, weight, None, "none", [], "")


def packed_by_mkl(tile: Tensor, rows: int) -> Multiply:
    """MKL in float32 on a packed weight."""
    weight = MKL._mkl_reorder_linear_weight(tile.contiguous(), rows)
    return lambda hidden: MKL._mkl_linear(hidden, weight, tile, None, rows)


NAMES = {
    "plain": "torch.mm in float32",
    "packed": "oneDNN, packed, in float32",
    "bfloat16": "oneDNN, bfloat16 factors",
}
"""What the exact products of `matmul.MATMULS` are called in a table."""
OTHERS: dict[torch.dtype, dict[str, Callable[[Tensor, int], Multiply]]] = {
    torch.float32: {"MKL, packed, in float32": packed_by_mkl},
    torch.bfloat16: {
        "torch.mm with bfloat16 logits": rounded,
        "oneDNN, packed, bfloat16 logits": packed_rounded,
    },
}
"""Products that a scan doesn't use, because they are slower or not exact, but that bound what is possible."""


def products(hidden: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    """The bare products of all states with the unembedding that work here; on a CPU in tiles."""
    if hidden.is_cuda:
        found: dict[str, Callable[[], object]] = {"float32 logits": lambda: stacked.product(hidden, weight)}
        if weight.dtype != torch.float32:
            found["bfloat16 logits"] = lambda: hidden @ weight.T
        return found
    exact = matmul.exact(hidden.dtype, weight.dtype, weight.device, weight.shape[1])
    makers = {**{NAMES[name]: matmul.MATMULS[name] for name in exact}, **OTHERS[weight.dtype]}
    return {name: partial(tiled, maker, hidden, weight) for name, maker in makers.items() if works(maker, weight)}


def tiled(maker: Callable[[Tensor, int], Multiply], hidden: Tensor, weight: Tensor) -> None:
    """Multiply all states by the unembedding, a tile at a time, which stays in the processor's cache."""
    for tile in weight.split(kernel.TILE_VOCAB):
        multiply = maker(tile, kernel.TILE_ROWS)
        for rows in hidden.split(kernel.TILE_ROWS):
            multiply(rows)


def works(maker: Callable[[Tensor, int], Multiply], weight: Tensor) -> bool:
    """Whether this processor and this build of torch have the product."""
    tile = weight[:64]
    try:
        maker(tile, 64)(tile)
    except (AttributeError, RuntimeError):
        return False
    return True
