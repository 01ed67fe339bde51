"""Commands in a process of their own find the Hub by HF_ENDPOINT, as huggingface_hub does."""

import json
import os
import subprocess
import sys

import hub_server
import pytest


@pytest.mark.slow
def test_a_scan_that_one_process_uploads_another_one_verifies(tmp_path):
    with hub_server.serving() as hub:
        named = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_server.TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        named |= {"HF_HOME": str(tmp_path / "hub"), "INTERNAL_POLICY_CACHE": str(tmp_path / "cache")}

        def run(*words: str) -> str:
            command = [sys.executable, "-m", "internal_policy", *words, "--json"]
            return subprocess.run(command, env=os.environ | named, check=True, capture_output=True, text=True).stdout

        told = json.loads(run("push", "demo-qwen3", "org/scan", "--license", "mit", "--yes"))
        (row,) = json.loads(run("verify", "hf://datasets/org/scan"))
        assert (row["name"], row["damaged"]) == (told["address"], [])
