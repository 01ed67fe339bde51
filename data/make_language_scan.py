"""Scan a real language model on everyday questions and texts: `python data/make_language_scan.py FOLDER`.

FOLDER holds SmolLM2-135M-Instruct. The model answers the questions of `language/prompts.jsonl`, always with its most
likely token, and reads the texts there as they are.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import internal_policy as ip
from internal_policy.__main__ import main
from internal_policy.tasks import rollouts, rows

DATA = Path(__file__).parent.resolve()
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model's name in the scan."""
PROMPTS, RESPONSES, SCAN = "data/language/prompts.jsonl", "data/language/responses.jsonl", "data/scans/smollm2-135m"
NEW_TOKENS = 32
"""Length limit of an answer, which keeps the scan small."""
SITES = "resid_pre,attn_in,attn_out,mlp_in,mlp_out,resid_post"
"""Every site that a page of the dashboard draws by default; resid_mid would add a sixth to the size."""


def respond() -> None:
    """Write a rollout for each question and text."""
    model, tokenizer = ip.load(MODEL)
    given = [json.loads(line) for line in Path(PROMPTS).read_text().splitlines()]
    asked = [row for row in given if "problem" in row]
    read = [rows.Row(PROMPTS, row) for row in given if "text" in row]
    answers = ip.generate(model, tokenizer, asked, temperature=0, max_new_tokens=NEW_TOKENS, batch_size=1)
    rollouts.write_rollouts(RESPONSES, [*answers, *rollouts.of_rows(tokenizer, read, {})])


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as here:
        os.chdir(here)  # the record keeps names as typed, which here lead to the folders
        Path(MODEL).parent.mkdir()
        Path(MODEL).symlink_to(folder)
        Path("data").symlink_to(DATA)
        shutil.rmtree(SCAN, ignore_errors=True)
        respond()
        options = ["--model", MODEL, "--rollouts", RESPONSES, "--readout", "both", "--sites", SITES, "--output", SCAN]
        sys.argv = ["internal-policy", "scan", *options]
        sys.exit(main(sys.argv[1:]))
