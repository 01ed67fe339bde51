"""Compare measuring with the reference algorithm and with bare matrix products: python benchmarks/kernel.py.

Three parts: the measuring alone, for a number of hidden states; whole scans of random models with the shapes of real
ones; and how the time and memory of a scan grow. All candidates take turns in one process, on the CPU or on the GPU.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import growth
import logit_readout
import reference
import scan
import torch
import tyro
from exactness import POINTS, Reader, errors, heavy, numbers
from growth import Growth
from machine import load, machine
from products import products
from tables import report
from timing import Candidate, alternate
from torch import Tensor

from internal_policy.measure import choice, matmul, metrics
from internal_policy.measure.kernel import Kernel

GPU = torch.cuda.is_available()
FEW = ("entropy", "kl", "rank", "logprob")
BUT_TOPK = tuple(name for name in metrics.MEASURES if name != "topk")
TOGETHER = 64
"""Hidden states in one product of the reference formula: those of a site at as many tokens."""


@dataclass(frozen=True)
class Benchmark:
    """Compare measuring with the reference algorithm, TransformerLens and bare matrix products.

    The defaults take about a quarter of an hour on one core with AVX-512: 4 minutes for the kernel, 7 for scans and 4
    for growth. On a GPU the defaults are larger, and take at most 8 minutes by estimate.
    """

    parts: tuple[Literal["kernel", "scan", "growth"], ...] = ("kernel", "scan", "growth")
    """What to measure: the measuring alone, whole scans, and how a scan's time and memory grow."""
    device: Literal["cpu", "cuda"] = "cuda" if GPU else "cpu"
    """Where to measure."""
    threads: int = 1
    """Threads of the CPU. On one thread, times are CPU times; with more they are the time that passed."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("bfloat16", "float32")
    """Types of the hidden states and weights; scans on a GPU use the first, and growth float32."""
    d_model: tuple[int, ...] = (1024, 2560) if GPU else (1024,)
    """Widths of the hidden states that are measured alone."""
    d_vocab: int = 151_936
    """Rows of the unembedding when measuring alone."""
    rows: tuple[int, ...] = (64, 512, 4096) if GPU else (64, 512)
    """How many hidden states are measured alone; multiples of 64."""
    shapes: tuple[str, ...] = ("qwen3-0.6b", "qwen3-4b") if GPU else ("qwen3-0.6b",)
    """Models to scan: qwen3-0.6b, llama-3.2-1b or qwen3-4b."""
    tokens: tuple[int, ...] = (64, 512) if GPU else (64,)
    """Response tokens of each scanned text."""
    texts: tuple[int, ...] = (1, 8) if GPU else (1,)
    """Number of texts in a scan, which are read together."""
    layers: int | None = None if GPU else 6
    """Number of layers to scan, if fewer than in the model's configuration; None for all."""
    growth: Growth = field(default_factory=Growth)
    """The sizes that grow."""
    runs: int = 3
    """Timed runs of each candidate in the first two parts; the tables show medians."""
    json: Path | None = None
    """JSON file to write everything to."""


def alone(dtype: torch.dtype, d_model: int, rows: int, options: Benchmark) -> dict[str, Any]:
    """Time and memory to measure `rows` hidden states, and the largest errors against float64."""
    device = torch.device(options.device)
    hidden = heavy(POINTS, rows // POINTS, d_model, device).to(dtype)
    weight = (torch.randn(options.d_vocab, d_model, device=device) * d_model**-0.5 * 3).to(dtype)
    targets = torch.randint(options.d_vocab, hidden.shape[1:2]).to(device)
    scale = torch.rand(POINTS // 2, hidden.shape[1]).to(device) + 0.5
    chosen, columns, matrix = choice.choose(weight, dtype), weight.float().T, hidden.flatten(0, 1)

    def ours(measures: tuple[str, ...], name: str = chosen) -> Candidate:
        kernel = Kernel(weight, measures=measures, matmul=name)
        return Candidate(lambda: kernel.measure(hidden, targets, scale))

    def paper() -> None:
        for states in matrix.split(TOGETHER):
            reference.entropy(states.float() @ columns)

    others = [name for name in ways(weight, dtype) if name != chosen]
    candidates = {
        **{f"bare product, {name}": Candidate(run) for name, run in products(matrix, weight).items()},
        "ours: entropy": ours(("entropy",)),
        "ours: entropy, KL, rank, logprob": ours(FEW),
        "ours: all but top-k": ours(BUT_TOPK),
        "ours: all measures, top 5": ours(metrics.MEASURES),
        **{f"ours, {name}: all measures, top 5": ours(metrics.MEASURES, name) for name in others},
        "reference formula: entropy": Candidate(paper),
    }
    readers: dict[str, Reader] = {f"ours, {name}": partial(numbers, weight, name) for name in (chosen, *others)}
    readers["reference formula"] = lambda states, _: {
        "entropy": reference.entropy(states.flatten(0, 1).float() @ columns).unsqueeze(1)
    }
    if logit_readout.INSTALLED:
        bridge = logit_readout.bridge_with(weight)
        read = partial(logit_readout.read, bridge)
        candidates["logit_readout: entropy, rank, logprob"] = Candidate(
            lambda: read(hidden, targets.expand(POINTS, -1))
        )
        readers["logit_readout"] = read
    return {
        "part": "kernel",
        "what": f"{rows} states, d = {d_model}, {str(dtype).removeprefix('torch.')}",
        "chosen": chosen,
        "flop": 2 * rows * d_model * options.d_vocab,
        "costs": alternate(candidates, options.runs, device),
        "errors": errors(weight, readers),
    }


def ways(weight: Tensor, dtype: torch.dtype) -> list[str]:
    """The values of `Kernel.matmul` that work here for this unembedding and hidden states of its type."""
    if weight.is_cuda:
        return list(choice.exact(("stacked", "fused"), dtype, weight.dtype, weight.device, weight.shape[1]))
    products = list(matmul.exact(dtype, weight.dtype, weight.device, weight.shape[1]))
    return [*products, *(["native"] if choice.works("native", weight.dtype, weight.device) else [])]


def scans(shape: str, dtype: str, options: Benchmark) -> Iterator[dict[str, Any]]:
    """The results for one model, one after another."""
    device = torch.device(options.device)
    model = scan.model(shape, getattr(torch, dtype), device, options.layers)
    layers = model.config.num_hidden_layers
    for texts, tokens in product(options.texts, options.tokens):
        costs = alternate(scan.candidates(model, texts, tokens), options.runs, device)
        yield {
            "part": "scan",
            "what": f"scan of {shape}'s shape, {layers} layers, {texts} x {tokens} tokens, {dtype}",
            "chosen": choice.choose(model.lm_head.weight, model.dtype),
            "costs": costs,
        }


def cases(options: Benchmark) -> Iterator[dict[str, Any]]:
    """The results, one after another."""
    if "kernel" in options.parts:
        for dtype, d_model, rows in product(options.dtypes, options.d_model, options.rows):
            yield alone(getattr(torch, dtype), d_model, rows, options)
    if "scan" in options.parts:
        dtypes = options.dtypes[: 1 if options.device == "cuda" else None]
        for shape, dtype in product(options.shapes, dtypes):
            yield from scans(shape, dtype, options)
    if "growth" in options.parts:
        yield from growth.cases(options.growth, torch.device(options.device))


@torch.inference_mode()
def main(options: Benchmark) -> None:
    """Print a table for each case."""
    if wrong := [rows for rows in options.rows if rows < POINTS or rows % POINTS]:
        sys.exit(f"--rows {wrong[0]} isn't a multiple of {POINTS}. Try --rows {POINTS * max(1, wrong[0] // POINTS)}.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    about = machine(options.device)
    print(json.dumps(about, indent=1), flush=True)
    found: list[dict[str, Any]] = []
    for case in cases(options):
        found.append({**case, "load": load()})
        print(report(found[-1]), flush=True)
        if options.json is not None:  # after every case, because all of them take minutes
            options.json.write_text(json.dumps({**about, "cases": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
