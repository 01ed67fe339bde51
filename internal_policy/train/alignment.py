"""How far one policy gradient points the way of another: cosine, and the first-order gain of a sign step.

A gradient is a mapping from parameters to tensors; a parameter that it lacks has gradient 0. With `blocks`, the first
dimension of each tensor is a block of prompts, and the gradient of all prompts is the sum over it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

CONFIDENCE = 0.95
TILE = 2**18
"""Entries of a gradient that are compared at a time, per block."""

Gradient = Mapping[str, Float[Tensor, "..."]]
Blocks = Mapping[str, Float[Tensor, "blocks ..."]]


def cosine(one: Gradient, other: Gradient) -> float:
    """Cosine of two gradients; 0 if one of them is 0."""
    product = sum(_dot(one[name], other[name]) for name in one if name in other)
    lengths = [sum(_dot(each, each) for each in gradient.values()) for gradient in (one, other)]
    return product / (lengths[0] * lengths[1]) ** 0.5 if all(lengths) else 0.0


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.double() * other.double()).sum())


@dataclass(frozen=True)
class Estimate:
    """A number estimated from blocks of prompts, with the values that leaving out each block gives."""

    value: float
    """The estimate from all blocks."""
    left_out: tuple[float, ...]
    """The estimate without each block."""

    @property
    def error(self) -> float:
        """The jackknife's standard error (Efron and Tibshirani 1993, ch. 11)."""
        return jackknife(np.array(self.left_out))

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95% interval, by Student's t with one degree of freedom less than there are blocks."""
        from scipy.stats import t  # takes a third of a second to import

        half = float(t.ppf(1 - (1 - CONFIDENCE) / 2, len(self.left_out) - 1)) * self.error
        return self.value - half, self.value + half


def jackknife(left_out: Float[np.ndarray, " blocks"]) -> float:
    """Standard error of an estimate from its values without each block."""
    return float(np.sqrt((len(left_out) - 1) * left_out.var()))


@dataclass(frozen=True)
class Comparison:
    """How far a gradient points the way of another, each from the same blocks of prompts."""

    gain: Estimate
    """Gain of a sign step on prompts that it wasn't taken from, as a share of the gain of the other gradient's step.

    The step is taken from all blocks but one and its gain is measured on that one, so that both gradients sharing the
    noise of a batch adds nothing. The same is done with the other gradient's own step, and the sums over blocks are
    divided. The share is 1 for the same gradient, and may be above 1."""
    cosine: Estimate
    """Cosine without the bias of noise: of the products of blocks, only those of different ones are used."""
    gain_in_batch: Estimate
    """Gain of a sign step on the prompts that it was taken from, as a share of the largest such gain."""
    cosine_in_batch: Estimate
    """Cosine of the two sums over blocks."""


@dataclass(frozen=True)
class Sums:
    """Sums over all entries of two gradients, which all estimates are made of. Index 0 of `steps` is of all blocks."""

    products: Float[Tensor, "blocks blocks"]
    """Product of the first gradient in one block with the second in another."""
    steps: Float[Tensor, " with_all"]
    """Sign step from all blocks, then from all without each, times the second gradient in the same blocks."""
    held_out: Float[Tensor, "blocks blocks"]
    """[i, j]: sign step without blocks i and j, times the second gradient in block i; without i alone if j is i."""


def sums(one: Blocks, other: Blocks) -> Sums:
    """The sums for a step along `one` that is measured by `other`. Takes blocks**2 / 2 sign steps."""
    count = len(next(iter(other.values())))
    new = {"dtype": torch.float64, "device": next(iter(other.values())).device}
    found = Sums(torch.zeros(count, count, **new), torch.zeros(count + 1, **new), torch.zeros(count, count, **new))
    for name in one:
        if name in other:
            a, b = one[name].flatten(1), other[name].flatten(1)
            edges = [*range(0, a.shape[1], TILE), a.shape[1]]
            for start, end in pairwise(edges):
                _add(found, a[:, start:end], b[:, start:end])
    return found


def _add(found: Sums, one: Float[Tensor, "blocks entries"], other: Float[Tensor, "blocks entries"]) -> None:
    """Add a tile to the sums."""
    one, other = one.double(), other.double()
    found.products.add_(one @ other.T)
    total, measured = one.sum(0), other.sum(0)
    found.steps[0] += total.sign() @ measured
    for i in range(len(one)):
        step = (total - one[i]).sign()
        found.held_out[i, i] += step @ other[i]
        found.steps[i + 1] += step @ (measured - other[i])
        if i + 1 < len(one):
            both = (total - one[i] - one[i + 1 :]).sign_()
            found.held_out[i, i + 1 :] += both @ other[i]
            found.held_out[i + 1 :, i] += (both * other[i + 1 :]).sum(1)


def compare(one: Blocks, other: Blocks, own: Sums | None = None) -> Comparison:
    """How far `one` points the way of `other`. `own` are the sums of `other` with itself, if they are known."""
    own = sums(other, other) if own is None else own
    cross, mine = sums(one, other), _products(one, len(own.products))
    kept = [np.arange(len(mine))]
    kept += [np.delete(kept[0], out) for out in kept[0]]
    return Comparison(
        _estimate([_held_out(cross, some, j) / _held_out(own, some, j) for j, some in enumerate(kept, -1)]),
        _estimate([_cosine(cross.products, mine, own.products, some, apart=True) for some in kept]),
        _estimate([float(a / b) for a, b in zip(cross.steps, own.steps, strict=True)]),
        _estimate([_cosine(cross.products, mine, own.products, some, apart=False) for some in kept]),
    )


def _products(one: Blocks, count: int) -> Float[Tensor, "blocks blocks"]:
    """Products of a gradient in one of `count` blocks with itself in another."""
    found = torch.zeros(count, count, dtype=torch.float64)
    for each in one.values():
        flat = each.flatten(1)
        for start, end in pairwise([*range(0, flat.shape[1], TILE), flat.shape[1]]):
            tile = flat[:, start:end].double()
            found += (tile @ tile.T).cpu()
    return found


def _estimate(values: list[float]) -> Estimate:
    return Estimate(values[0], tuple(values[1:]))


def _held_out(found: Sums, some: np.ndarray, out: int) -> float:
    """Gain of the steps on the blocks that they weren't taken from; `out` is the block left out, -1 for none."""
    table = found.held_out.cpu().numpy()
    return float(table.diagonal().sum() if out < 0 else table[some, out].sum())


def _cosine(cross: Tensor, one: Tensor, other: Tensor, some: np.ndarray, *, apart: bool) -> float:
    """Cosine from the products of blocks; `apart` uses only those of different blocks. NaN where noise is all.

    0 if a gradient is 0.
    """
    if not (one.any() and other.any()):
        return 0.0
    tables = [table.cpu().numpy()[np.ix_(some, some)] for table in (cross, one, other)]
    product, *lengths = (float(table.sum() - (table.trace() if apart else 0)) for table in tables)
    return product / (lengths[0] * lengths[1]) ** 0.5 if min(lengths) > 0 else float("nan")
