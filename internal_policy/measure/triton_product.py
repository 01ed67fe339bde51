"""Triton kernels that multiply hidden states by the unembedding, and fold statistics of the logits as they go."""

# pyright: reportMissingImports=false, reportIndexIssue=false

from typing import no_type_check

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-115.415)
"""Exponents of 2 below this are raised to it: -80 log2(e)."""
EMPTY = tl.constexpr(-1e30)
"""The maximum of no logits; finite, because merging with -inf gives NaN."""


@triton.jit
@no_type_check
def product(hidden, weight, row, column, d_model, ROWS, COLUMNS, DEPTH, PRECISION):
    """Logits (ROWS, COLUMNS) in float32, the same to the last bit wherever they are in the tile."""
    z = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, d_model, DEPTH):
        z = tl.dot(hidden.load([row, k]), weight.load([column, k]).T, z, input_precision=PRECISION)
    return z


@triton.jit
@no_type_check
def limited(z, inverse, cap):
    """cap tanh(z inverse)."""
    small = tl.exp2(tl.abs(z * inverse) * (-2 * LOG2_E))
    size = cap * (1 - small) / (1 + small)
    return tl.where(z < 0, -size, size)


@triton.jit
@no_type_check
def add(y, shrink, s, t):
    """Add a tile to s = sum 2^y and t = sum y 2^y, where y are at most 0; the maximum has risen by -`shrink`."""
    y = tl.maximum(y, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    shrink = tl.maximum(shrink, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    weights, fade = tl.exp2(y), tl.exp2(shrink)
    return fade * s + tl.sum(weights, 1), fade * (t + s * shrink) + tl.sum(y * weights, 1)


@triton.jit
@no_type_check
def below(z, m, before, exponent, inverse, cap, real, CAPPED: tl.constexpr, EVEN: tl.constexpr):
    """Exponents of 2 of logits below their maximum `m`, and minus how much it has risen since `before`."""
    if CAPPED:
        ceiling = limited(m, inverse, cap)
        y = (limited(z, inverse, cap) - ceiling[:, None]) * exponent
        if not EVEN:
            y = tl.where(real, y, EMPTY)
        return y, (limited(before, inverse, cap) - ceiling) * exponent
    return (z - m[:, None]) * exponent, (before - m) * exponent


@triton.jit
@no_type_check
def compare(cross, seen, y, policy, token, first_token, last_token, column, d_vocab, wide, TOKENS: tl.constexpr):
    """Add a tile to the sums of p y and of p, where p is the final policy of each row's token."""
    if TOKENS <= 4:
        for n in tl.static_range(TOKENS):
            end = tl.where(first_token + n <= last_token, d_vocab, 0)
            p = tl.load(policy + (first_token + n) * wide + column, column < end, 0.0)
            cross += tl.where(token == first_token + n, tl.sum(p[None, :] * y, 1), 0.0)
            seen += tl.where(token == first_token + n, tl.sum(p, 0), 0.0)
    else:
        for at in range(first_token, last_token + 1):
            p = tl.load(policy + at * wide + column, column < d_vocab, 0.0)
            cross += tl.where(token == at, tl.sum(p[None, :] * y, 1), 0.0)
            seen += tl.where(token == at, tl.sum(p, 0), 0.0)
    return cross, seen


# fmt: off
@triton.jit(do_not_specialize=["n_rows", "points", "stride", "offset", "size", "tiles", "splits", "per_split"])
@no_type_check
def fold(
    hidden, weight, policy, aims, scales, out, maxima,
    n_rows, d_model, d_vocab, points, stride, offset, size, tiles, splits, per_split, exponent, inverse, cap,
    KL: tl.constexpr, RANK: tl.constexpr, TOPK: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr,
    EVEN: tl.constexpr, TOKENS: tl.constexpr, FLATTEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    """Statistics of ROWS policies over a part of the vocabulary, in `out` (splits, 8, size).

    These are the largest logit, s, t, sum p y and sum p with the final policy p of the row's token, how many logits
    exceed the row's `aims`, and s and t of the scaled policy; y is in units of log 2. `maxima` (size, tiles) gets the
    largest logit of each tile. The row of point i of a token is at token * `stride` + `offset` + i in these.
    """
    split = tl.program_id(0) % splits
    first = tl.program_id(0) // splits * ROWS
    row = first + tl.arange(0, ROWS)
    inside = row < n_rows
    token, first_token = row // points, first // points
    last_token = (tl.minimum(first + ROWS, n_rows) - 1) // points
    place = token * stride + offset + row % points
    wide = tl.full((), d_vocab, tl.int64)
    m, s, t = start(ROWS)
    _, cross, seen = start(ROWS)
    above, scaled_s, scaled_t = tl.zeros_like(s), tl.zeros_like(s), tl.zeros_like(s)
    aim = tl.load(aims + place, inside, 0.0)
    scale = tl.load(scales + row, inside, 0.0)
    for tile in tl.range(split * per_split, tl.minimum((split + 1) * per_split, tiles), flatten=FLATTEN):
        z = product(hidden, weight, first, tile * COLUMNS, d_model, ROWS, COLUMNS, DEPTH, PRECISION)
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        real = (column < d_vocab)[None, :]
        if not EVEN:
            z = tl.where(real, z, EMPTY)
        largest = tl.max(z, 1)
        if TOPK:
            tl.store(maxima + place.to(tl.int64) * tiles + tile, largest, inside)
        if RANK:
            above += tl.sum((z > aim[:, None]).to(tl.float32), 1)
        before = m
        m = tl.maximum(m, largest)
        y, shrink = below(z, m, before, exponent, inverse, cap, real, CAPPED, EVEN)
        if KL:
            cross += seen * shrink
            cross, seen = compare(
                cross, seen, y, policy, token, first_token, last_token, column, d_vocab, wide, TOKENS
            )
        if SCALED:
            if CAPPED:
                z *= scale[:, None]
                scaled, down = below(z, m * scale, before * scale, exponent, inverse, cap, real, CAPPED, EVEN)
                scaled_s, scaled_t = add(scaled, down, scaled_s, scaled_t)
            else:
                scaled_s, scaled_t = add(y * scale[:, None], shrink * scale, scaled_s, scaled_t)
        s, t = add(y, shrink, s, t)
    keep(out + split.to(tl.int64) * 8 * size + place, size, inside, m, s, t, cross)
    keep(out + split.to(tl.int64) * 8 * size + 4 * size + place, size, inside, seen, above, scaled_s, scaled_t)


@triton.jit
@no_type_check
def start(ROWS: tl.constexpr):
    """The maximum of no logits, and two sums over none."""
    return tl.full((ROWS,), EMPTY, tl.float32), tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)


@triton.jit
@no_type_check
def keep(out, size, inside, a, b, c, d):
    """Store four statistics of each row."""
    tl.store(out, a, inside)
    tl.store(out + size, b, inside)
    tl.store(out + 2 * size, c, inside)
    tl.store(out + 3 * size, d, inside)


@triton.jit(do_not_specialize=["n_rows", "points"])
@no_type_check
def pick(
    hidden,
    chosen,
    out,
    n_rows,
    d_model,
    points,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One logit of each row: that of its token's row of `chosen` (tokens, d_model), in `out` (rows,)."""
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    first_token = first // points
    z = product(hidden, chosen, first, first_token, d_model, ROWS, COLUMNS, DEPTH, PRECISION)
    mine = (row // points - first_token)[:, None] == tl.arange(0, COLUMNS)[None, :]
    tl.store(out + row, tl.sum(tl.where(mine, z, 0.0), 1), row < n_rows)


@triton.jit(do_not_specialize=["tiles", "each"])
@no_type_check
def again(
    hidden,
    weight,
    order,
    tile_of,
    out,
    d_model,
    d_vocab,
    tiles,
    each,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Logits of pairs of a row and a tile, in `out` (pairs, COLUMNS); a row has `each` pairs after one another.

    Program b computes the pairs `order` (programs, ROWS), -1 for none, all with the tile `tile_of[b]`.
    """
    tile = tl.load(tile_of + tl.program_id(0)).to(tl.int32)
    if tile < tiles:
        pair = tl.load(order + tl.program_id(0) * ROWS + tl.arange(0, ROWS))
        depth = tl.arange(0, DEPTH)
        rows = hidden + (tl.maximum(pair, 0) // each)[:, None] * d_model + depth[None, :]
        z = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, d_model, DEPTH):
            states = tl.load(rows + k, (depth < d_model - k)[None, :], 0.0)
            z = tl.dot(states, weight.load([tile * COLUMNS, k]).T, z, input_precision=PRECISION)
        column = tl.arange(0, COLUMNS)
        z = tl.where((tile * COLUMNS + column < d_vocab)[None, :], z, float("-inf"))
        tl.store(out + pair[:, None] * COLUMNS + column[None, :], z, (pair >= 0)[:, None])
