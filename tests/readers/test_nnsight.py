"""nnsight reads the same hidden states as our hooks, here and on a server, and is imported only on request."""

import subprocess
import sys
from pathlib import Path

import pytest

from internal_policy import bundle
from internal_policy.cli import question, scan
from internal_policy.scans import store

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_every_case_passes_in_its_own_process():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "nnsight_cases.py")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout


def test_a_scan_by_hooks_does_not_import_nnsight(tmp_path):
    code = f"""
import sys, torch
backward = torch.Tensor.backward
import internal_policy.train.bupo, internal_policy.train.callbacks, internal_policy.cli.plot
sys.path.insert(0, {str(TESTS.parents[1] / "app")!r})
import scans, show
from internal_policy.__main__ import main
assert main(["scan", "--limit", "1", "--max-new-tokens", "4", "--output", {str(tmp_path / "scan")!r}]) == 0
assert not hasattr(object(), "save")
assert torch.Tensor.backward is backward
assert not {{"nnsight", "transformer_lens"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_works_after_importing_nnsight():
    code = "import nnsight, internal_policy.cli.scan, internal_policy.scans.scan, internal_policy.train.bupo"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scans_of_earlier_versions_have_the_same_question():
    asked = store.record(bundle.DATA / "scans" / "demo-qwen3")["asked"]
    assert scan.prepared(scan.Scan()).question.keys() == asked.keys()
    assert all(getattr(scan.Scan(), name, default) == default for name, default in question.LATER.items())
