"""A tiny model, problems and a command that measures them."""

from pathlib import Path

import pytest
from conftest import SUMS, jsonl, saved, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a tiny Qwen3 model and a tokenizer."""
    return saved(tiny_model("qwen3").float(), tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture
def problems(tmp_path) -> Path:
    path = tmp_path / "problems.jsonl"
    jsonl(path, *SUMS)
    return path


@pytest.fixture
def asked(folder, problems) -> list[str]:
    return ["scan", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--batch-size", "4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Folders with a tiny model and a tokenizer, by family: with other names in its configuration, or sites missing."""
    paths = {}
    for name in ("gpt2", "gemma3", "gpt_neox", "granite", "mixtral"):
        paths[name] = saved(tiny_model(name), tokenizer, tmp_path_factory.mktemp(name))
    return paths
