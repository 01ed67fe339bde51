"""Several processes train the same weights as one."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model

from internal_policy import bundle
from internal_policy.cli import parsing
from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.train import Train
from internal_policy.train import checkpoints, run

ROOT, ONE = Path(__file__).parents[2], "1.resid_post"


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def distributed(tmp_path, tokenizer, processes, name, options, **environment):
    """The weights that `processes` processes train."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    asked = {
        "folder": str(tmp_path / name), "tokenizer": str(tmp_path / "tokenizer"), "options": options,
        "output": str(tmp_path / f"{name}.pt"),
    }  # fmt: skip
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": str(processes)}
    here = Path(__file__).parent.parent
    command = [sys.executable, "-W", "ignore", str(here / "trainer.py"), json.dumps(asked)]
    paths = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = [
        subprocess.Popen(
            command, env={**os.environ, **master, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank),
            "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)[-3000:]
    return torch.load(asked["output"], weights_only=True)


SAME = {"schedule": [f"{ONE}:2"], "max_steps": 4, "num_generations": 2, "ddp_backend": "gloo"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tokenizer):
    """The weights that one process trains: one update per generation batch of 8."""
    options = {**SAME, "per_device_train_batch_size": 4, "steps_per_generation": 2}
    return distributed(tmp_path_factory.mktemp("alone"), tokenizer, 1, "one", options)


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(tmp_path, tokenizer, alone):
    options = {**SAME, "per_device_train_batch_size": 2, "steps_per_generation": 2}
    both = distributed(tmp_path, tokenizer, 2, "two", options)
    for name, weight in alone.items():
        torch.testing.assert_close(both[name], weight, atol=1e-5, rtol=0)  # TRL's head is float32


@pytest.mark.slow
@pytest.mark.parametrize("resample", [0, 2])
def test_processes_that_leave_out_different_numbers_of_responses_train_the_same_weights(tmp_path, tokenizer, resample):
    options = {**SAME, "reward": "odd", "max_steps": 8, "learning_rate": 0.1, "optim": "sgd", "resample": resample}
    one = distributed(
        tmp_path, tokenizer, 1, "one", {**options, "per_device_train_batch_size": 4, "steps_per_generation": 2}
    )
    two = distributed(
        tmp_path, tokenizer, 2, "two", {**options, "per_device_train_batch_size": 2, "steps_per_generation": 2}
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-6, rtol=0)


def documented() -> list[str]:
    """The words of the command for several processes in docs/train.md."""
    (line,) = re.findall("^torchrun .*", (ROOT / "docs" / "train.md").read_text(), re.MULTILINE)
    return shlex.split(line)


def test_the_documented_command_parses():
    assert documented()[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "internal_policy"]
    assert isinstance(parsing.parse(COMMANDS, documented()[5:]), Train)


def documented_run(tmp_path: Path, more: str, **options: Any) -> subprocess.Popen:
    """The command of docs/train.md, started in a folder with the model and the problems that it names."""
    (tmp_path / "my-qwen").symlink_to(bundle.DATA / "models" / "demo-qwen3")
    shutil.copy(bundle.DATA / "problems" / "train.jsonl", tmp_path)
    few = "--layer 3 --prompts 2 --samples 4 --micro-batch 4 --internal-steps 1 --max-new-tokens 8 -o run"
    words = [sys.executable, "-m", "torch.distributed.run", *documented()[1:], *few.split(), *more.split()]
    return subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        env={**os.environ, "PYTHONPATH": str(ROOT), "INTERNAL_POLICY_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip


@pytest.mark.slow
def test_the_documented_command_trains_one_model_in_two_processes(tmp_path):
    started = documented_run(tmp_path, "--steps 2")
    out, err = started.communicate(timeout=240)
    assert started.returncode == 0, err[-3000:]
    assert err.count("Training in 2 processes.") == 1
    assert out.count("Means over steps") == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["the terminal's processes", "torchrun"])
def test_interrupting_torchrun_leaves_a_checkpoint(tmp_path, to):
    started = documented_run(tmp_path, "--steps 2000 --scan-every 0", start_new_session=True)
    while not (tmp_path / "run" / "metrics.parquet").exists():
        assert started.poll() is None
        time.sleep(0.1)
    if to == "torchrun":  # as a job queue does
        started.terminate()
    else:  # as Ctrl-C does
        os.killpg(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=240)
    (found,) = checkpoints.found(tmp_path / "run").values()
    assert checkpoints.is_whole(found)
    assert err.count("A checkpoint will be written after this step.") == 1
    assert err.count("Continue with the same launch command and --resume.") >= 1


@pytest.mark.parametrize("launched", [False, True])
def test_a_single_process_started_by_accelerate_is_told_of_torchrun(monkeypatch, launched):
    monkeypatch.delenv(run.ACCELERATE, raising=False)
    if launched:
        monkeypatch.setenv(run.ACCELERATE, "no")
    assert ("use torchrun" in run._processes(1, on_cpu=True)) == launched
    assert run._processes(2, on_cpu=True) == "Training in 2 processes."


@pytest.mark.slow
def test_two_fsdp_processes_train_the_same_weights_as_one(tmp_path, tokenizer, alone):
    options = {**SAME, "per_device_train_batch_size": 2, "steps_per_generation": 2}
    sharded = {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }  # fmt: skip
    both = distributed(tmp_path, tokenizer, 2, "sharded", options, **sharded)
    assert set(both) == set(alone)
    before = tiny_model("qwen3").state_dict()
    for name, weight in alone.items():
        moved = (weight - before[name]).abs().max()
        assert (both[name] - weight).abs().max() < 0.02 * moved  # TRL's head is float32, and Adam divides
