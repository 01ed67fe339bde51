"""Compare a scan with controls to one without: python benchmarks/controls.py --model demo-qwen3.

Both read the same text and take turns. On one thread of a CPU the seconds are the process's CPU time.
"""

import json
import os
from dataclasses import dataclass
from functools import partial

import torch
import tyro
from timing import Candidate, alternate

import internal_policy as ip
from internal_policy.bundle import DATA


@dataclass(frozen=True)
class Benchmark:
    """Compare a scan with controls to one without."""

    model: str = "demo-qwen3"
    """Name or folder of the model."""
    tokens: int = 256
    """Tokens of the text."""
    runs: int = 5
    """Number of runs of each, after one that doesn't count."""
    threads: int = 1
    """Threads of PyTorch."""


def main(options: Benchmark) -> None:
    """Print the median seconds, and how many times as long the scan with controls takes, as JSON."""
    torch.set_num_threads(options.threads)
    model, tokenizer = ip.load(options.model)
    problems = (DATA / "problems" / "heldout.jsonl").read_text(encoding="utf-8")
    text = str(tokenizer.decode(tokenizer(problems)["input_ids"][: options.tokens]))
    scan = partial(ip.scan, model, tokenizer, [text])
    candidates = {"without": Candidate(scan), "with": Candidate(partial(scan, controls=True))}
    for candidate in candidates.values():
        candidate.run()
    costs = alternate(candidates, options.runs, torch.device(str(model.device)))
    print(
        json.dumps(
            {
                "model": options.model,
                **{name: round(cost["seconds"], 3) for name, cost in costs.items()},
                "ratio": round(costs["with"]["seconds"] / costs["without"]["seconds"], 2),
                "load": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
