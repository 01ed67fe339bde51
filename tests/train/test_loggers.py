"""TensorBoard, Weights & Biases and Trackio get what the trainer logs, under the name of the run's folder, offline."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model
from datasets import Dataset
from trainer import PROMPTS, Fixed, by_length

from internal_policy.errors import InputError
from internal_policy.train import defaults

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
NAMES = ("internal/entropy", "internal/clip_ratio/region_mean", "generation_tokens_per_second", "peak_memory", "reward")


def configured(folder: Path, logger: str, **fields: Any) -> Any:
    """The configuration of a run of 2 steps."""
    shape = {"num_generations": 2, "max_completion_length": 6, "schedule": ["1.resid_post:1"], "use_cpu": True}
    return defaults.configured(folder, {**shape, **fields}, {"report_to": [logger]}, steps=2, prompts=2)


def train(folder: Path, tokenizer: Any, logger: str) -> None:
    rows = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    config = configured(folder, logger)
    run = Fixed(tiny_model("qwen3"), by_length, config, train_dataset=rows, processing_class=tokenizer)
    run.train()


def test_a_run_is_called_like_its_folder(tmp_path):
    assert configured(tmp_path / "my-run", "none").run_name == "my-run"
    assert configured(tmp_path / "my-run", "none", run_name="other").run_name == "other"


def test_tensorboard_gets_a_point_per_step(tmp_path, tokenizer):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    train(tmp_path / "my-run", tokenizer, "tensorboard")
    (folder,) = (tmp_path / "my-run" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {f"train/{name}" for name in NAMES} <= {*events.Tags()["scalars"]}
    assert [event.step for event in events.Scalars("train/reward")] == [1, 2]
    assert [event.step for event in events.Scalars("train/internal/entropy")] == [1]


@pytest.mark.slow  # whole commands
@pytest.mark.parametrize("logger", ["wandb", "trackio"])
def test_a_logger_without_network_gets_all_names(tmp_path, logger):
    pytest.importorskip(logger)
    command = [sys.executable, "-m", "internal_policy", "train", "--report-to", logger, "-o", str(tmp_path / "my-run")]
    shape = shlex.split("--steps 2 --prompts 2 --samples 2 --scan-every 0 --layer 2 --internal-steps 1")
    places = {"WANDB_DIR": str(tmp_path / "logs"), "TRACKIO_DIR": str(tmp_path / "logs"), "WANDB_MODE": "offline"}
    (tmp_path / "logs").mkdir()
    subprocess.run([*command, *shape], env={**os.environ, **places, "OMP_NUM_THREADS": "1"}, check=True)
    written = b"".join(path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file())
    assert [name for name in NAMES if f"train/{name}".encode() not in written] == []
    assert b"my-run" in written


@pytest.mark.parametrize(("logger", "module"), list(defaults.PACKAGES.items()))
def test_a_logger_that_cannot_be_imported_is_one_sentence(tmp_path, monkeypatch, logger, module):
    monkeypatch.setattr(defaults, "get_available_reporting_integrations", lambda: [logger])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{logger} is installed but can't be imported \(.*\)\. Install it again\.$"):
        configured(tmp_path, logger)


def test_loggers_that_cannot_be_listed_are_one_sentence(tmp_path, monkeypatch):
    def broken() -> list[str]:
        raise AttributeError("module 'wandb' has\nno attribute 'run'")

    monkeypatch.setattr(defaults, "get_available_reporting_integrations", broken)
    with pytest.raises(InputError, match="can't be imported"):
        configured(tmp_path, "tensorboard")
