"""Scan and ablate the two demo models for the dashboard, notebooks and reports: `python data/make_scans.py`."""

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

if __name__ == "__main__":
    os.chdir(ROOT)  # the record keeps paths as typed
    for model in MODELS:
        folder, ablation = Path("data/scans") / model, Path("data/scans") / f"{model}-ablation"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(ablation, ignore_errors=True)
        options = ["--model", model, "--problems", "data/problems/heldout.jsonl", "--limit", str(PROBLEMS)]
        options += ["--readout", "both", "--output", str(folder)]
        for words in (["scan", *options], ["ablate", model, "-o", str(ablation)]):
            sys.argv = ["internal-policy", *words]
            if code := main(words):
                sys.exit(code)
