"""Triton kernels that turn the statistics of each hidden state into its numbers."""

# pyright: reportMissingImports=false, reportIndexIssue=false

from typing import no_type_check

import triton
import triton.language as tl

from internal_policy.measure.triton_product import LOG2_E, LOWEST, limited


@triton.jit
@no_type_check
def merge(s, t, down, part_s, part_t):
    """Add the sums of a part of the vocabulary, whose maximum is below the largest by -`down`, to s and t."""
    down = tl.maximum(down, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    fade = tl.exp2(down)
    return s + fade * part_s, t + fade * (part_t + part_s * down)


# fmt: off
@triton.jit(do_not_specialize=["size", "splits", "points", "scaled"])
@no_type_check
def finish(
    out, targets, entropies, scales, numbers, size, splits, points, scaled, exponent, inverse, cap,
    CAPPED: tl.constexpr, ROWS: tl.constexpr,
):
    # fmt: on
    """The numbers of policies, in `numbers` (7, size), from the statistics `out` (splits, 8, size) that `fold` left.

    These are entropy, log-probability of the target, rank, KL, entropy of the scaled policy, the logit at the maximum
    after the transform, and ln s. `targets` has the targets' logits and `entropies` the final policies' entropies.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < size
    point = row % points
    scale = tl.load(scales + row // points * (scaled + 1) + point, inside & (point <= scaled), 1.0)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    for n in range(splits):
        highest = tl.maximum(highest, tl.load(out + n * 8 * size + row, inside, 0.0))
    s = tl.zeros((ROWS,), tl.float32)
    t = tl.zeros((ROWS,), tl.float32)
    cross = tl.zeros((ROWS,), tl.float32)
    above = tl.zeros((ROWS,), tl.float32)
    scaled_s = tl.zeros((ROWS,), tl.float32)
    scaled_t = tl.zeros((ROWS,), tl.float32)
    for n in range(splits):
        part = out + n * 8 * size + row
        m = tl.load(part, inside, 0.0)
        if CAPPED:
            down = (limited(m, inverse, cap) - limited(highest, inverse, cap)) * exponent
            scaled_down = (limited(m * scale, inverse, cap) - limited(highest * scale, inverse, cap)) * exponent
        else:
            down = (m - highest) * exponent
            scaled_down = down * scale
        cross += tl.load(part + 3 * size, inside, 0.0) + tl.load(part + 4 * size, inside, 0.0) * down
        above += tl.load(part + 5 * size, inside, 0.0)
        part_s, part_t = tl.load(part + size, inside, 1.0), tl.load(part + 2 * size, inside, 0.0)
        s, t = merge(s, t, down, part_s, part_t)
        part_s, part_t = tl.load(part + 6 * size, inside, 1.0), tl.load(part + 7 * size, inside, 0.0)
        scaled_s, scaled_t = merge(scaled_s, scaled_t, scaled_down, part_s, part_t)
    target = tl.load(targets + row, inside, 0.0)
    if CAPPED:
        highest = limited(highest, inverse, cap)
        target = limited(target, inverse, cap)
    else:
        highest *= exponent / LOG2_E
        target *= exponent / LOG2_E
    log_s = tl.log(s)
    nan = float("nan")
    numbers += row
    tl.store(numbers, log_s - t / s / LOG2_E, inside)
    tl.store(numbers + size, target - highest - log_s, inside)
    tl.store(numbers + 2 * size, tl.where(s == s, above + 1, nan), inside)
    kl = log_s - cross / LOG2_E - tl.load(entropies + row // points, inside, 0.0)
    tl.store(numbers + 3 * size, tl.maximum(kl, 0.0, propagate_nan=tl.PropagateNan.ALL), inside)
    controlled = (point > 0) & (point <= scaled)
    scaled_s = tl.where(controlled, scaled_s, 1.0)
    at_input_norm = tl.log(scaled_s) - scaled_t / scaled_s / LOG2_E
    tl.store(numbers + 4 * size, tl.where(controlled, at_input_norm, nan), inside)
    tl.store(numbers + 5 * size, highest, inside)
    tl.store(numbers + 6 * size, log_s, inside)


@triton.jit(do_not_specialize=["size", "tiles", "k"])
@no_type_check
def strongest(maxima, chosen, slots, counts, size, tiles, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tiles with the `k` largest of `maxima` (size, tiles), in `chosen` (size, k).

    `counts` (tiles,) counts how often each was chosen, and `slots` (size, k) numbers the choices of a tile.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < size
    at = row.to(tl.int64)[:, None] * tiles + column[None, :]
    z = tl.load(maxima + at, inside[:, None] & (column < tiles)[None, :], float("-inf"))
    for n in range(k):
        best = tl.minimum(tl.argmax(z, 1), tiles - 1)  # among NaN it may be any column
        z = tl.where(column[None, :] == best[:, None], float("-inf"), z)
        tl.store(chosen + row * k + n, best, inside)
        tl.store(slots + row * k + n, tl.atomic_add(counts + best, 1, inside), inside)


@triton.jit(do_not_specialize=["size", "each", "k"])
@no_type_check
def top(
    z,
    chosen,
    numbers,
    probs,
    ids,
    size,
    d_vocab,
    each,
    k,
    inverse,
    cap,
    CAPPED: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Probabilities and tokens of the `k` largest logits of `z` (size, each x TILE), in `probs` and `ids` (size, k).

    `chosen` (size, each) are the tiles that the logits come from, and `numbers` what `finish` wrote.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < size
    at = row.to(tl.int64)[:, None] * (each * TILE) + column[None, :]
    logits = tl.load(z + at, inside[:, None] & (column < each * TILE)[None, :], float("-inf"))
    highest, log_s = tl.load(numbers + 5 * size + row, inside, 0.0), tl.load(numbers + 6 * size + row, inside, 0.0)
    for n in range(k):
        best = tl.minimum(tl.argmax(logits, 1), each * TILE - 1)
        value = tl.max(logits, 1)
        logits = tl.where(column[None, :] == best[:, None], float("-inf"), logits)
        tile = tl.load(chosen + row * each + best // TILE, inside, 0)
        value = limited(value, inverse, cap) if CAPPED else value * inverse
        tl.store(probs + row * k + n, tl.exp(value - highest - log_s), inside)
        token = tl.minimum(tile * TILE + best % TILE, d_vocab - 1)
        tl.store(ids + row * k + n, token.to(tl.int64), inside)
