"""A trained model is called after its run, wherever a model's name is shown."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import jsonl

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.models.naming import title

DEMO = bundle.DATA / "models" / "demo-qwen3"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a finished training run."""
    shutil.copytree(DEMO, tmp_path / "low-layer" / "model")
    (tmp_path / "low-layer" / "run.json").write_text("{}")
    return tmp_path / "low-layer"


def test_the_model_of_a_run_is_called_after_the_run(run, monkeypatch):
    assert title(str(run / "model")) == "low-layer"
    monkeypatch.chdir(run)
    assert title("model") == title("./model/") == "low-layer"


def test_a_checkpoint_is_called_after_the_run_and_itself(run):
    (run / "checkpoint-40").mkdir()
    assert title(str(run / "checkpoint-40")) == "low-layer-checkpoint-40"


def test_other_models_keep_their_names(tmp_path):
    (tmp_path / "my-qwen").mkdir()
    assert title(str(tmp_path / "my-qwen")) == "my-qwen"
    assert title("demo-qwen3") == "demo-qwen3"
    assert title("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"


def test_a_name_too_long_for_a_path_is_kept():
    assert title("x" * 5000) == "x" * 5000


def test_a_folder_called_model_without_a_run_keeps_its_name(tmp_path):
    (tmp_path / "model").mkdir()
    assert title(str(tmp_path / "model")) == "model"


def test_a_scan_of_a_trained_model_has_the_name_of_the_run(run, cache, capsys):
    scan = ["scan", "--model", str(run / "model"), "--limit", "1", "--max-new-tokens", "2", "--top-k", "0"]
    assert main([*scan, "--layers", "1", "--readout", "raw", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "low-layer"
    assert [path.parent.parent.name for path in cache.glob("*/*/scan.json")] == ["low-layer"]
    assert main(["ls", "--json"]) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out) if not row["bundled"]] == ["low-layer"]


def test_an_evaluation_of_a_trained_model_has_the_name_of_the_run(run, tmp_path, capsys):
    problems, output = jsonl(tmp_path / "p.jsonl", {"problem": "1 + 1", "answer": "2"}), tmp_path / "evaluated"
    few = ["--problems", str(problems), "--samples", "2", "--max-new-tokens", "2", "--output", str(output)]
    assert main(["evaluate", "--model", str(run / "model"), *few]) == 0
    assert "low-layer" in capsys.readouterr().out
    assert set(pd.read_parquet(output / "pass_at_k.parquet")["label"]) == {"low-layer"}
