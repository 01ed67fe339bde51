"""Measure policies on a GPU without storing logits: their statistics are folded into the product by Triton kernels."""

# pyright: reportMissingImports=false, reportIndexIssue=false

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from internal_policy.measure import triton_product, triton_rows
from internal_policy.measure.stacked import Wanted, aim, product
from internal_policy.measure.transform import LogitTransform

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tile:
    """The part of the product that one program computes at a time, and how."""

    rows: int
    """Hidden states; at most `columns`."""
    columns: int
    """Vocabulary entries."""
    depth: int
    """Dimensions multiplied at once."""
    warps: int
    """Groups of 32 threads."""
    stages: int
    """Steps of `depth` that are loaded ahead."""
    flatten: bool = True
    """Whether the next tile is loaded while the statistics of the last one are computed."""


def tile_for(wanted: Wanted) -> Tile:
    """The tile for this unembedding: the largest whose logits and statistics stay in registers."""
    if wanted.weight.element_size() > 2:
        return Tile(128, 128, 32, 8, 3)
    return Tile(128, 256 if wanted.transform.cap is None else 128, 64, 8, 3)


def token_bytes(wanted: Wanted, points: int) -> int:
    """Memory that `fold` needs for a token: its final policy, a copy of its states, and the tiles of its top k."""
    tile, (d_vocab, d_model) = tile_for(wanted), wanted.weight.shape
    top_k = wanted.top_k if "topk" in wanted.measures else 0
    per_state = 2 * d_model * wanted.weight.element_size() + 4 * (d_vocab // tile.columns + top_k * tile.columns)
    return 4 * 4 * d_vocab + points * per_state


def fold(
    wanted: Wanted,
    hidden: Float[Tensor, "tokens points d_model"],
    targets: Int[Tensor, " tokens"],
    scale: Float[Tensor, "tokens scaled"],
) -> dict[str, Tensor]:
    """Numbers of these states in Triton; a `Fold` of `stacked`."""
    tile, (tokens, points, d_model) = tile_for(wanted), hidden.shape
    (d_vocab, _), scaled, transform = wanted.weight.shape, scale.shape[1], wanted.transform
    if {"logprob", "rank"} & set(wanted.measures):
        target = picked(tile, hidden, wanted.weight[targets])
    else:
        target = torch.zeros(tokens, points, device=hidden.device)
    aims = aim(wanted, hidden, targets, target) if "rank" in wanted.measures else target
    scales = torch.nn.functional.pad(scale, (1, 0), value=1.0) if scaled else target
    p, entropies = final_policy(wanted, hidden[:, 0]) if "kl" in wanted.measures else (target, target)
    top_k = wanted.top_k if "topk" in wanted.measures else 0
    tiles = ceil(d_vocab / tile.columns)
    spans = [slice(0, 1 + scaled), slice(1 + scaled, points)] if scaled else [slice(0, points)]
    blocks = max(ceil(tokens * len(range(points)[span]) / tile.rows) for span in spans)
    block_bytes = tile.rows * d_model * hidden.element_size()
    per_split = tiles_per_split(blocks, tiles, block_bytes, hidden.device)
    out = target.new_empty(ceil(tiles / per_split), 8, tokens, points)
    maxima = target.new_empty(tokens * points, tiles if top_k else 0)
    scalars, capped = scalars_of(transform), transform.cap is not None
    for span in spans:
        rows = hidden[:, span].flatten(0, 1)
        if len(rows):
            triton_product.fold[(ceil(len(rows) / tile.rows) * len(out),)](
                describe(rows, tile.rows, tile.depth),
                describe(wanted.weight, tile.columns, tile.depth),
                p,
                aims,
                scales,
                out,
                maxima,
                len(rows),
                d_model,
                d_vocab,
                len(rows) // tokens,
                points,
                span.start,
                tokens * points,
                tiles,
                len(out),
                per_split,
                *scalars,
                KL="kl" in wanted.measures,
                RANK="rank" in wanted.measures,
                TOPK=top_k > 0,
                SCALED=scaled > 0 and span.start == 0,
                CAPPED=capped,
                EVEN=d_vocab % tile.columns == 0,
                TOKENS=min(5, (tile.rows - 2) // (len(rows) // tokens) + 2),
                FLATTEN=tile.flatten,
                **constants(tile, rows.dtype),
            )
    numbers = finished(out, target, entropies, scales, scalars, capped)
    found = dict(zip(("entropy", "logprob", "rank", "kl", "entropy_at_input_norm"), numbers, strict=False))
    return {**found, **(largest(wanted, tile, hidden, maxima, numbers) if top_k else {})}


def final_policy(
    wanted: Wanted, hidden: Float[Tensor, "tokens d_model"]
) -> tuple[Float[Tensor, "tokens d_vocab"], Float[Tensor, " tokens"]]:
    """Probabilities and entropies (nats) of the final policies, which the others are compared with."""
    p = wanted.transform.overwrite(product(hidden, wanted.weight)).softmax(-1)
    return p, torch.special.entr(p).sum(-1)


def finished(
    out: Float[Tensor, "splits 8 tokens points"],
    target: Float[Tensor, "tokens points"],
    entropies: Tensor,
    scales: Tensor,
    scalars: tuple[float, float, float],
    capped: bool,
) -> Float[Tensor, "7 tokens points"]:
    """The numbers from the statistics of all parts of the vocabulary, in the order of `triton_rows.finish`."""
    splits, _, tokens, points = out.shape
    numbers = target.new_empty(7, tokens, points)
    scaled = scales.shape[1] - 1 if scales is not target else 0
    triton_rows.finish[(ceil(target.numel() / 128),)](
        out,
        target,
        entropies,
        scales,
        numbers,
        target.numel(),
        splits,
        points,
        scaled,
        *scalars,
        CAPPED=capped,
        ROWS=128,
    )
    return numbers


def picked(
    tile: Tile, hidden: Float[Tensor, "tokens points d_model"], chosen: Float[Tensor, "tokens d_model"]
) -> Float[Tensor, "tokens points"]:
    """The logits of each token's own row of the unembedding, the same to the last bit as in `fold`."""
    tokens, points, d_model = hidden.shape
    out = torch.empty(tokens, points, device=hidden.device)
    triton_product.pick[(ceil(out.numel() / tile.rows),)](
        describe(hidden.flatten(0, 1), tile.rows, tile.depth),
        describe(chosen, tile.columns, tile.depth),
        out,
        out.numel(),
        d_model,
        points,
        **constants(tile, hidden.dtype),
    )
    return out


def largest(
    wanted: Wanted,
    tile: Tile,
    hidden: Float[Tensor, "tokens points d_model"],
    maxima: Float[Tensor, "size tiles"],
    numbers: Float[Tensor, "7 tokens points"],
) -> dict[str, Tensor]:
    """`topk_probs` and `topk_ids`: they lie in the tiles with the largest maxima, which are computed once more.

    Pairs of a state and a tile are sorted by tile, and each program computes some pairs of one tile.
    """
    (size, tiles), (d_vocab, d_model), k = maxima.shape, wanted.weight.shape, wanted.top_k
    each, device, transform = min(k, tiles), hidden.device, wanted.transform
    chosen, slots = torch.empty(2, size, each, dtype=torch.int32, device=device)
    counts = torch.zeros(tiles, dtype=torch.int32, device=device)
    rows, columns = shape_of(tiles)
    triton_rows.strongest[(ceil(size / rows),)](
        maxima, chosen, slots, counts, size, tiles, each, ROWS=rows, COLUMNS=columns
    )
    programs = (counts + tile.rows - 1) // tile.rows
    stops = programs.cumsum(0)
    tile_of = torch.searchsorted(stops, torch.arange(ceil(size * each / tile.rows) + tiles, device=device), right=True)
    order = torch.full((len(tile_of) * tile.rows,), -1, device=device)
    order[(stops - programs)[chosen] * tile.rows + slots] = torch.arange(size * each, device=device).view(size, each)
    z = torch.empty(size, each * tile.columns, device=device)
    triton_product.again[(len(tile_of),)](
        hidden,
        describe(wanted.weight, tile.columns, tile.depth),
        order,
        tile_of,
        z,
        d_model,
        d_vocab,
        tiles,
        each,
        **constants(tile, hidden.dtype),
    )
    probs = torch.empty(*hidden.shape[:2], k, device=device)
    ids = torch.empty(probs.shape, dtype=torch.int64, device=device)
    rows, columns = shape_of(each * tile.columns)
    triton_rows.top[(ceil(size / rows),)](
        z,
        chosen,
        numbers,
        probs,
        ids,
        size,
        d_vocab,
        each,
        k,
        *scalars_of(transform)[1:],
        CAPPED=transform.cap is not None,
        TILE=tile.columns,
        ROWS=rows,
        COLUMNS=columns,
    )
    return {"topk_probs": probs, "topk_ids": ids}


def shape_of(width: int) -> tuple[int, int]:
    """Rows and columns, powers of 2, of the part of a matrix of this width that a program holds in registers."""
    columns = 1 << (width - 1).bit_length()
    return max(1, 8192 // columns), columns


def scalars_of(transform: LogitTransform) -> tuple[float, float, float]:
    """What turns a transformed logit into an exponent of 2, what multiplies a logit before the cap, and the cap."""
    slope = transform.factor / transform.divisor
    return (LOG2_E * slope, slope, 1.0) if transform.cap is None else (LOG2_E, slope / transform.cap, transform.cap)


def describe(matrix: Float[Tensor, "rows d_model"], rows: int, depth: int) -> TensorDescriptor:
    """A matrix that programs load in pieces of rows x depth; beyond its edge there are zeros."""
    return TensorDescriptor.from_tensor(matrix, [rows, depth])


def constants(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    """What a kernel is compiled for."""
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@cache
def tiles_per_split(blocks: int, tiles: int, block_bytes: int, device: torch.device) -> int:
    """How many tiles a program goes through, to keep all multiprocessors busy until the end.

    The programs that run at the same time share their blocks of states, which half of the cache should hold. Starting
    a program takes about as long as 16 tiles.
    """
    if device.type != "cuda":
        return tiles
    gpu = torch.cuda.get_device_properties(device)
    processors, cache_bytes = gpu.multi_processor_count, gpu.L2_cache_size

    def time(splits: int) -> int:
        return ceil(blocks * splits / processors) * (ceil(tiles / splits) + 16)

    least = min(blocks, processors) * block_bytes * 2 // cache_bytes + 1
    return ceil(tiles / min(range(min(least, tiles), min(tiles, max(16, processors // blocks)) + 1), key=time))
