"""Compare the time to measure policies with the reference formula and bare products: python benchmarks/kernel.py.

Each line gives the median CPU time on one thread, and its ratio to the fastest exact bare product.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

import reference
import torch
import tyro

from internal_policy.measure import kernel, matmul, metrics

MEASURED = ("entropy", "kl", "rank", "logprob")


@dataclass(frozen=True)
class Benchmark:
    """Compare the time to measure policies with the reference formula and bare matrix products."""

    d_model: int = 1024
    """Width of the hidden states."""
    d_vocab: int = 32768
    """Rows of the unembedding."""
    points: int = 24
    """Number of hook points: the first is final, and half of the others have a norm control."""
    positions: int = 64
    """Positions at each hook point."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the hidden states and the unembedding."""
    runs: int = 7
    """Timed runs of each candidate."""


def main(options: Benchmark) -> None:
    """Print a line for each candidate."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    hidden = torch.randn(options.points, options.positions, options.d_model).to(dtype)
    weight = (torch.randn(options.d_vocab, options.d_model) * options.d_model**-0.5 * 3).to(dtype)
    targets = torch.randint(options.d_vocab, (options.positions,))
    scale = torch.rand(options.points // 2, options.positions) + 0.5
    rows = hidden.flatten(0, 1)

    def ours(measures: tuple[str, ...]) -> None:
        metrics.norm(hidden)
        kernel.Kernel(weight, measures=measures, matmul=chosen).measure(hidden, targets, scale)

    def bare(name: str) -> None:
        for start in range(0, options.d_vocab, kernel.TILE_VOCAB):
            multiply = matmul.MATMULS[name](weight[start : start + kernel.TILE_VOCAB], kernel.TILE_ROWS)
            for row in range(0, len(rows), kernel.TILE_ROWS):
                multiply(rows[row : row + kernel.TILE_ROWS])

    def paper() -> None:
        for states in hidden:
            reference.entropy(states.float() @ weight.float().T)

    chosen = matmul.choose(weight, dtype)
    exact = matmul.exact(dtype, dtype, weight.device, options.d_model)
    candidates: dict[str, Callable[[], None]] = {
        **{f"bare product, {name}": lambda name=name: bare(name) for name in exact},
        "ours: entropy": lambda: ours(("entropy",)),
        "ours: entropy, KL, rank, norm": lambda: ours(MEASURED),
        "ours: all measures, top 5": lambda: ours(metrics.MEASURES),
        "reference formula: entropy": paper,
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(options.runs + 1):
        for name, candidate in candidates.items():
            start = time.process_time()
            candidate()
            if run:  # the first round is a warm-up
                seconds[name].append(time.process_time() - start)
    fastest = min(median(seconds[name]) for name in candidates if name.startswith("bare"))
    logits = options.points * options.positions * options.d_vocab
    print(f"{options}\nmatrix product chosen: {chosen}")
    for name, spent in seconds.items():
        middle = median(spent)
        print(f"{name:36} {middle:7.3f} s {middle / logits * 1e9:6.2f} ns per logit {middle / fastest:6.2f}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
