"""Compare the time and memory of a scan with the reference algorithm and bare products: python benchmarks/scan.py.

It scans a random model with the shape of a real one. Each candidate runs in its own process on one thread; the numbers
are median CPU times, and memory is the growth of the peak over the loaded model.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro
from transformers import AutoConfig, AutoModelForCausalLM

SHAPES = {
    "qwen3-0.6b": {
        "family": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "family": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}
FEW = ("entropy", "kl", "rank", "norm")
CANDIDATES = ("bare products", "ours: entropy, KL, rank, norm", "ours: all measures, top 5", "reference algorithm")


@dataclass(frozen=True)
class Benchmark:
    """Compare the time and memory of a scan with the reference algorithm and bare products."""

    shape: Literal["qwen3-0.6b", "llama-3.2-1b"] = "qwen3-0.6b"
    """Hub id of the model whose configuration is used."""
    layers: int | None = None
    """Number of layers, if fewer than in the configuration."""
    tokens: int = 64
    """Response tokens; the prompt is one token."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights."""
    runs: int = 3
    """Number of runs of each candidate."""
    candidate: str = ""
    """Used by the benchmark itself: run one candidate and print its numbers."""
    folder: str = ""
    """Used by the benchmark itself: folder of the model."""


def make(options: Benchmark, folder: Path) -> None:
    """Save a model with random weights."""
    shape = dict(SHAPES[options.shape])
    config = AutoConfig.for_model(shape.pop("family"), **shape)
    config.num_hidden_layers = options.layers or config.num_hidden_layers
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).save_pretrained(folder)


def run(options: Benchmark) -> dict[str, float]:
    """One candidate in this process: CPU seconds, and growth of the peak memory in MB."""
    import reference

    from internal_policy.measure import kernel, matmul
    from internal_policy.models.head import unembedding
    from internal_policy.scans.scan import Scanner
    from internal_policy.scans.selection import Selection, plan
    from internal_policy.tasks.rollouts import Rollout

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.folder).eval()
    ids = torch.randint(10, 10_000, (1, options.tokens + 1), generator=torch.Generator().manual_seed(0))
    response = tuple(ids[0].tolist())
    rollout = Rollout("", None, 0, response[:1], response[1:], "", None, True)
    selection = Selection(tuple(range(model.config.num_hidden_layers)), readouts=("raw",))
    weight = unembedding(model).weight
    with torch.inference_mode():
        model(ids[:, :4])
    chosen = matmul.choose(weight, weight.dtype)
    states = torch.randn(plan(selection).unembedded * options.tokens, weight.shape[1]).to(weight.dtype)

    def bare() -> None:
        for start in range(0, len(weight), kernel.TILE_VOCAB):
            multiply = matmul.MATMULS[chosen](weight[start : start + kernel.TILE_VOCAB], kernel.TILE_ROWS)
            for rows in states.split(kernel.TILE_ROWS):
                multiply(rows)

    candidates: dict[str, Callable[[], object]] = dict(
        zip(
            CANDIDATES,
            (
                bare,
                lambda: Scanner.of(model, replace(selection, measures=FEW)).measure([rollout]),
                lambda: Scanner.of(model, selection).measure([rollout]),
                lambda: reference.scan(model, ids, 1),
            ),
            strict=True,
        )
    )
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, start = _memory("VmRSS"), time.process_time()
    with torch.inference_mode():
        candidates[options.candidate]()
    return {"seconds": time.process_time() - start, "mb": _memory("VmHWM") - before}


def _memory(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1000


def main(options: Benchmark) -> None:
    """Print a line for each candidate."""
    if options.candidate:
        print(json.dumps(run(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(options, Path(folder))
        results: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
        for _ in range(options.runs):
            for name in CANDIDATES:
                values = {**asdict(options), "candidate": name, "folder": folder}
                words = [w for key, value in values.items() if value is not None for w in (f"--{key}", str(value))]
                child = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
                results[name].append(json.loads(child.stdout.splitlines()[-1]))
    print(options)
    least = median(run["seconds"] for run in results["bare products"])
    for name, runs in results.items():
        seconds, mb = median(run["seconds"] for run in runs), median(run["mb"] for run in runs)
        print(f"{name:32} {seconds:8.1f} s CPU {seconds / least:6.2f} of the bare products {mb:8.0f} MB more")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
