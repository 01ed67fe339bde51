"""Each benchmark runs at toy size, so that its command keeps working."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from internal_policy.measure import matmul

FOLDER = Path(__file__).parent.parent / "benchmarks"
SHAPE = {
    "family": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 700,
    "tie_word_embeddings": True,
}
TOY = """--runs 1 --d-model 16 --d-vocab 700 --rows 64 --shapes toy --tokens 3 --layers None --growth.d-model 16
--growth.tokens 3 6 --growth.d-vocab 300 600 --growth.layers 1 2 --growth.base-tokens 3 --growth.base-vocab 300"""


@pytest.fixture
def kernel(monkeypatch) -> Any:
    """The module of benchmarks/kernel.py, which also knows the shape `toy`."""
    names, threads = {path.stem for path in FOLDER.glob("*.py")}, torch.get_num_threads()
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("kernel")
    monkeypatch.setitem(sys.modules["scan"].SHAPES, "toy", SHAPE)
    monkeypatch.setattr(matmul, "WEIGHTS", 2**14)
    yield module
    torch.set_num_threads(threads)
    for name in names & set(sys.modules):
        del sys.modules[name]


def run(kernel: Any, *words: str) -> None:
    """The command with these words."""
    kernel.main(tyro.cli(kernel.Benchmark, args=[*TOY.split(), *words]))


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_every_part_of_the_speed_benchmark_writes_what_it_measured(kernel, tmp_path, capsys, dtype):
    run(kernel, "--dtypes", dtype, "--json", str(tmp_path / "found.json"))
    found, printed = json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out
    assert (found["threads"], found["device"]) == (1, "cpu")
    assert found["processor"]
    assert [case["part"] for case in found["cases"]] == ["kernel", "scan", "growth", "growth", "growth"]
    alone, scan, *growth = found["cases"]
    for case in (alone, scan):
        assert {"ours: all measures, top 5", "logit_readout: entropy, rank, logprob"} <= set(case["costs"])
        assert case["what"] in printed
    ours = [numbers for name, numbers in alone["errors"].items() if name.startswith("ours")]
    assert ours
    assert all(len(numbers) == 9 and max(numbers.values()) < 1e-3 for numbers in ours)
    assert {"reference formula", "logit_readout"} <= set(alone["errors"])
    assert [list(case["costs"]) for case in growth] == [["3", "6"], ["300", "600"], ["1", "2"]]


@pytest.mark.usefixtures("kernel")
def test_the_limit_of_a_scan_is_the_forward_pass_and_the_fastest_bare_product():
    seconds = {"bare products, a": 3.0, "bare products, b": 2.0, "forward pass": 0.5, "ours": 4.0}
    assert sys.modules["tables"].limit({name: {"seconds": value} for name, value in seconds.items()}) == 2.5


def test_rows_that_are_not_a_multiple_of_64_are_refused(kernel):
    with pytest.raises(SystemExit, match=r"--rows 100 isn't a multiple of 64\. Try --rows 64\."):
        run(kernel, "--rows", "100")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "readers.py --layers 1 --tokens 2 --runs 1",
        "train.py --layers 4 --d-model 64 --d-vocab 600 --prompts 1 --tokens 4 --steps 1 --runs 1",
        "sessions.py --sessions 2 --seconds 5 --rounds 1 --rest 0",
        pytest.param(
            "look.py --runs 1 --large-rollouts 0",
            marks=pytest.mark.skipif(not Path("/usr/bin/chromium").exists(), reason="it needs Chromium"),
        ),
    ],
    ids=["readers", "train", "sessions", "look"],
)
def test_the_other_benchmarks_run(words):
    name, *rest = words.split()
    done = subprocess.run([sys.executable, str(FOLDER / name), *rest], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_benchmark_of_controls_prints_their_ratio(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    controls = importlib.import_module("controls")
    controls.main(controls.Benchmark(tokens=4, runs=1))
    torch.set_num_threads(threads)
    for name in ("controls", "timing"):
        sys.modules.pop(name)
    found = json.loads(capsys.readouterr().out)
    assert found["ratio"] > 0
    assert found["without"] > 0
