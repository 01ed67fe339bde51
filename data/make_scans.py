"""Scan, ablate and align the two demo models for the dashboard, notebooks and reports: `python data/make_scans.py`."""

import os
import shutil
import sys
from pathlib import Path

from internal_policy.__main__ import main

ROOT = Path(__file__).parent.parent
MODELS = ("demo-qwen3", "demo-llama")
"""Each is scanned under both readouts."""
PROBLEMS = 20
"""Number of held-out problems, few enough to keep the repository small."""
SUMS = 96
"""Number of sums whose responses give the gradients, as many as `internal-policy align` takes by default."""

if __name__ == "__main__":
    os.chdir(ROOT)  # the record keeps paths as typed
    for model in MODELS:
        names = (model, f"{model}-ablation", f"{model}-alignment")
        folder, ablation, alignment = (Path("data/scans") / name for name in names)
        for path in (folder, ablation, alignment):
            shutil.rmtree(path, ignore_errors=True)
        options = ["--model", model, "--problems", "data/problems/heldout.jsonl", "--limit", str(PROBLEMS)]
        options += ["--readout", "both", "--output", str(folder)]
        aligned = ["--model", model, "--problems", "data/problems/sums.jsonl", "--limit", str(SUMS)]
        aligned += ["--max-new-tokens", "64", "--batch-size", "32", "-o", str(alignment)]
        for words in (["scan", *options], ["ablate", model, "-o", str(ablation)], ["align", *aligned]):
            sys.argv = ["internal-policy", *words]
            if code := main(words):
                sys.exit(code)
