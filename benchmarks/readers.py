"""Compare the time of each reader with hooks: python benchmarks/readers.py.

Hooks, TransformerLens and nnsight read the same random model with the shape of a real one: reading alone (the norms of
all hidden states, without the unembedding) and a whole scan. Each run has its own process and one thread; the numbers
are median CPU times. Every reader computes attention eagerly, as TransformerLens does.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import scan
import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer

from internal_policy.bundle import DATA

READERS = ("hooks", "transformer-lens", "nnsight")


@dataclass(frozen=True)
class Benchmark:
    """Compare the time of each reader with hooks."""

    shape: Literal["qwen3-0.6b", "llama-3.2-1b"] = "qwen3-0.6b"
    """Hub id of the model whose configuration is used."""
    layers: int = 8
    """Number of layers to use."""
    tokens: int = 128
    """Response tokens; the prompt is one token."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    runs: int = 5
    """Number of runs of each reader."""
    reader: str = ""
    """Used by the benchmark itself: run one reader and print its numbers."""
    folder: str = ""
    """Used by the benchmark itself: folder of the model."""


def run(options: Benchmark) -> dict[str, float]:
    """One reader in this process: CPU seconds to import and wrap, to read, and to scan."""
    from internal_policy.scans.reader import reader_of
    from internal_policy.scans.scan import Scanner
    from internal_policy.scans.selection import Selection
    from internal_policy.tasks.rollouts import Rollout

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.folder, attn_implementation="eager").eval()
    ids = tuple(torch.randint(10, 10_000, (options.tokens + 1,), generator=torch.Generator().manual_seed(0)).tolist())
    rollout = Rollout("", None, 0, ids[:1], ids[1:], "", None, True)
    layers = tuple(range(options.layers))
    start = time.process_time()
    held: Any = model
    if options.reader == "transformer-lens":
        from internal_policy.readers.transformer_lens import boot

        held = boot(model, AutoTokenizer.from_pretrained(DATA / "models" / "demo-qwen3"))
    if options.reader == "nnsight":
        import nnsight

        held = nnsight.NNsight(model)
    read = reader_of(held)
    seconds = {"wrap": time.process_time() - start}
    reading = Selection(layers, readouts=("raw",), measures=("norm",))
    Scanner.of(read, reading).measure([rollout])
    for name, selection in {"read": reading, "scan": Selection(layers, readouts=("raw",))}.items():
        start = time.process_time()
        Scanner.of(read, selection).measure([rollout])
        seconds[name] = time.process_time() - start
    return seconds


def main(options: Benchmark) -> None:
    """Print a line for each reader."""
    if options.reader:
        print(json.dumps(run(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = scan.model(options.shape, getattr(torch, options.dtype), torch.device("cpu"), options.layers)
        model.save_pretrained(folder)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
        for _ in range(options.runs):
            for name in READERS:
                values = {**asdict(options), "reader": name, "folder": folder}
                words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
                child = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
                results[name].append(json.loads(child.stdout.splitlines()[-1]))
    print(options)
    for name, runs in results.items():
        line = f"{name:18} import and wrap {median(run['wrap'] for run in runs):5.1f} s CPU"
        for what in ("read", "scan"):
            ratio = median(run[what] / base[what] for run, base in zip(runs, results["hooks"], strict=True))
            line += f"   {what} {median(run[what] for run in runs):6.2f} s, {ratio:5.2f} of hooks"
        print(line)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
