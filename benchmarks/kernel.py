"""Compare measuring with the reference algorithm and with bare matrix products: python benchmarks/kernel.py.

First the measuring alone, for a number of hidden states, then whole scans of random models with the shapes of real
ones. All candidates take turns in one process, on one thread of the CPU or on the GPU.
"""

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import reference
import scan
import torch
import tyro
from timing import alternate
from torch import Tensor
from torch.distributions import StudentT

from internal_policy.measure import choice, kernel, matmul, metrics, stacked

GPU = torch.cuda.is_available()
FEW = ("entropy", "kl", "rank", "logprob")
POINTS = 64
"""Hook points of the hidden states that are measured alone: the first is final, and half have a norm control."""
HEAVY = 64
"""Hidden states whose numbers are compared with float64."""


@dataclass(frozen=True)
class Benchmark:
    """Compare measuring with the reference algorithm and with bare matrix products."""

    device: Literal["cpu", "cuda"] = "cuda" if GPU else "cpu"
    """Where to measure."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("bfloat16", "float32")
    """Types of the hidden states and the unembedding, when measured alone; scans use the first."""
    d_model: tuple[int, ...] = (1024, 2560) if GPU else (1024,)
    """Widths of the hidden states."""
    d_vocab: int = 151_936
    """Rows of the unembedding."""
    rows: tuple[int, ...] = (64, 512, 4096) if GPU else (64, 512)
    """Numbers of hidden states, multiples of 64."""
    shapes: tuple[str, ...] = ("qwen3-0.6b", "qwen3-4b") if GPU else ("qwen3-0.6b",)
    """Models to scan."""
    tokens: tuple[int, ...] = (64, 512) if GPU else (64,)
    """Response tokens of each scanned text."""
    texts: tuple[int, ...] = (1, 8) if GPU else (1,)
    """Number of texts in a scan, which are read together."""
    layers: int | None = None
    """Number of layers to scan, if fewer than in the model's configuration."""
    runs: int = 3 if GPU else 1
    """Timed runs of each candidate."""
    json: Path | None = None
    """File to write everything to as JSON, too."""


def alone(dtype: torch.dtype, d_model: int, rows: int, options: Benchmark) -> dict[str, Any]:
    """Time and memory to measure `rows` hidden states, and the largest errors against float64."""
    device = torch.device(options.device)
    hidden = heavy(POINTS, rows // POINTS, d_model, device).to(dtype)
    weight = (torch.randn(options.d_vocab, d_model, device=device) * d_model**-0.5 * 3).to(dtype)
    targets = torch.randint(options.d_vocab, hidden.shape[1:2]).to(device)
    scale = torch.rand(POINTS // 2, hidden.shape[1]).to(device) + 0.5
    matrix = hidden.flatten(0, 1)
    chosen = choice.choose(weight, dtype)

    def ours(measures: tuple[str, ...], name: str = chosen) -> dict[str, Tensor]:
        return kernel.Kernel(weight, measures=measures, matmul=name).measure(hidden, targets, scale)

    def paper() -> None:
        columns = weight.float().T
        for states in hidden:
            reference.entropy(states.float() @ columns)

    candidates: dict[str, Callable[[], object]] = {
        **{f"bare product, {name}": bare for name, bare in products(matrix, weight).items()},
        "ours: entropy": lambda: ours(("entropy",)),
        "ours: entropy, KL, rank, logprob": lambda: ours(FEW),
        "ours: all measures, top 5": lambda: ours(metrics.MEASURES),
        "reference formula: entropy": paper,
    }
    if device.type == "cuda" and chosen != "stacked":
        candidates["PyTorch alone: all measures, top 5"] = lambda: ours(metrics.MEASURES, "stacked")
    return {
        "what": f"{rows} states, d = {d_model}, {str(dtype).removeprefix('torch.')}",
        "chosen": chosen,
        "flop": 2 * rows * d_model * options.d_vocab,
        "costs": alternate(candidates, options.runs, device),
        "errors": errors(weight, chosen),
    }


def heavy(points: int, positions: int, d_model: int, device: torch.device) -> Tensor:
    """Hidden states of very different sizes with heavy tails, whose logits reach the thousands."""
    size = torch.logspace(-1, 2.5, points, device=device).view(-1, 1, 1)
    return StudentT(torch.tensor(3.0, device=device)).sample((points, positions, d_model)) * size / 1.7


def errors(weight: Tensor, chosen: str) -> dict[str, float]:
    """The largest error of each measure against float64: in nats, or as a share of numbers above 1."""
    hidden = heavy(HEAVY, 1, weight.shape[1], weight.device).to(weight)
    targets, scale = torch.tensor([7], device=weight.device), torch.rand(HEAVY // 2, 1).to(weight.device) + 0.5
    found = kernel.Kernel(weight, matmul=chosen).measure(hidden, targets, scale)
    z = torch.cat([hidden.double().flatten(0, 1) @ part.double().T for part in weight.split(16384)], -1)
    policy = z.log_softmax(-1)
    scaled = (z[1 : 1 + HEAVY // 2] * scale.double()).log_softmax(-1)
    truth = {
        "entropy": -(policy.exp() * policy).sum(-1),
        "logprob": policy[:, 7],
        "kl": (policy[0].exp() * (policy[0] - policy)).sum(-1),
        "entropy_at_input_norm": -(scaled.exp() * scaled).sum(-1),
        "topk_probs": policy.topk(5).values.exp(),
    }
    found = {**found, "entropy_at_input_norm": found["entropy_at_input_norm"][1 : 1 + HEAVY // 2]}
    differences = {name: (found[name].squeeze(1).double() - values).abs() for name, values in truth.items()}
    return {name: (d / truth[name].abs().clamp(min=1)).max().item() for name, d in differences.items()}


def products(hidden: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    """The bare products of all states with the unembedding; on a CPU those that are exact, in tiles."""
    if hidden.is_cuda:
        found: dict[str, Callable[[], object]] = {"float32 logits": lambda: stacked.product(hidden, weight)}
        if weight.dtype != torch.float32:
            found["bfloat16 logits"] = lambda: hidden @ weight.T
        return found

    def tiled(name: str) -> None:
        for tile in weight.split(kernel.TILE_VOCAB):
            multiply = matmul.MATMULS[name](tile, kernel.TILE_ROWS)
            for rows in hidden.split(kernel.TILE_ROWS):
                multiply(rows)

    exact = matmul.exact(hidden.dtype, weight.dtype, weight.device, weight.shape[1])
    return {name: partial(tiled, name) for name in exact}


def cases(options: Benchmark) -> Iterator[dict[str, Any]]:
    """The results, one after another."""
    for dtype in options.dtypes:
        for d_model in options.d_model:
            for rows in options.rows:
                yield alone(getattr(torch, dtype), d_model, rows, options)
    for shape in options.shapes:
        model = scan.model(shape, getattr(torch, options.dtypes[0]), torch.device(options.device), options.layers)
        for texts, tokens in product(options.texts, options.tokens):
            found = scan.candidates(model, texts, tokens, products)
            yield {
                "what": f"scan of {shape}'s shape, {texts} x {tokens} tokens, {options.dtypes[0]}",
                "costs": alternate(found, options.runs, torch.device(options.device)),
            }


def table(case: dict[str, Any]) -> str:
    """A line for each candidate."""
    costs = case["costs"]
    fastest = min(cost["seconds"] for name, cost in costs.items() if name.startswith("bare"))
    slowest = next(cost["seconds"] for name, cost in costs.items() if name.startswith("reference"))
    lines = [f"\n{case['what']}{' (' + case['chosen'] + ')' if 'chosen' in case else ''}"]
    lines.append(f"{'':36}{'seconds':>10}{'of bare':>9}{'faster than reference':>23}{'MB':>8}{'TFLOP/s':>9}")
    for name, cost in costs.items():
        rate = f"{case['flop'] / cost['seconds'] / 1e12:9.2f}" if "flop" in case else ""
        seconds, mb = cost["seconds"], cost["mb"]
        lines.append(f"{name:36}{seconds:10.4f}{seconds / fastest:9.2f}{slowest / seconds:23.2f}{mb:8.0f}{rate}")
    if "errors" in case:
        lines.append("largest errors: " + ", ".join(f"{name} {error:.1e}" for name, error in case["errors"].items()))
    return "\n".join(lines)


@torch.inference_mode()
def main(options: Benchmark) -> None:
    """Print a table for each case."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}", flush=True)
    found: list[dict[str, Any]] = []
    for case in cases(options):
        found.append(case)
        print(table(case), flush=True)
    if options.json is not None:
        record = {"device": name, "torch": torch.__version__, "cases": found}
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
