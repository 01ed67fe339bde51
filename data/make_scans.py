"""Scan the two demo models for the dashboard, the notebooks and the reports: `python data/make_scans.py`."""

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
        folder = Path("data/scans") / model
        shutil.rmtree(folder, ignore_errors=True)
        options = ["--model", model, "--problems", "data/problems/heldout.jsonl", "--limit", str(PROBLEMS)]
        sys.argv = ["internal-policy", "scan", *options, "--readout", "both", "--output", str(folder)]
        if code := main(sys.argv[1:]):
            sys.exit(code)
