"""The launch commands of the documentation parse, and the batch script saves, queues itself again and resumes."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from internal_policy import bundle
from internal_policy.cli import parsing
from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.train import Train
from internal_policy.train import checkpoints

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
SCRIPTS = [(name, text) for name, page in PAGES.items() for text in re.findall(r"```(?:ba)?sh\n(.*?)```", page, re.S)]
VALUES = {"$SLURM_NNODES": "2", "$SLURM_GPUS_ON_NODE": "8", "$first": "node1", "${more[@]}": "--resume"}
"""Variables of the batch script -> a value that they may have."""


def launches(launcher: str) -> list[tuple[str, list[str]]]:
    """Page and words of each command that starts `train` with a launcher."""
    found = []
    for name, text in SCRIPTS:
        for line in text.replace("\\\n", " ").splitlines():
            words = [VALUES.get(word, word) for word in shlex.split(line, comments=True)]
            if launcher in words and "train" in words:
                words = words[words.index(launcher) :]
                found.append((name, words[:-1] if words[-1] == "&" else words))
    return found


@pytest.mark.parametrize(("page", "words"), launches("torchrun"))
def test_a_torchrun_command_starts_train(page, words):
    launch = get_args_parser().parse_args(words[1:])
    assert (launch.module, launch.training_script) == (True, "internal_policy")
    assert isinstance(parsing.parse(COMMANDS, launch.training_script_args), Train)


@pytest.mark.parametrize(("page", "words"), launches("accelerate"))
def test_an_accelerate_command_starts_train(page, words):
    launch = launch_command_parser().parse_args(words[2:])
    assert (launch.module, launch.training_script) == (True, "internal_policy")
    assert isinstance(parsing.parse(COMMANDS, launch.training_script_args), Train)


def test_the_page_on_clusters_has_every_kind_of_launch():
    pages = [page for page, _ in launches("torchrun") + launches("accelerate")]
    assert pages.count("cluster.md") == 5


@pytest.mark.parametrize(("page", "text"), SCRIPTS)
def test_bash_can_read_every_script_of_the_documentation(page, text):
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=10)
    assert (checked.returncode, checked.stderr) == (0, "")


def batch_script() -> str:
    (text,) = [text for name, text in SCRIPTS if name == "cluster.md" and "#SBATCH" in text]
    return text


STUBS = {
    "srun": 'exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$QUEUE"; fi',
}
"""Stand-ins for the programs of the cluster."""


@pytest.fixture
def batch(tmp_path):
    """Start the batch script with a small model, as SLURM would; `more` are options of train."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "bin").mkdir()
    for name, text in STUBS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    script = batch_script().replace("Qwen/Qwen3-0.6B", "demo-qwen3").replace(":29500", f":{port}")
    script = script.replace("/shared/train.jsonl", str(bundle.DATA / "problems" / "train.jsonl"))

    def start(more: str) -> subprocess.Popen:
        path = tmp_path / "job.sh"
        path.write_text(script.replace("/shared", str(tmp_path)).replace('--output "$run"', f'--output "$run" {more}'))
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "7",
            "OMP_NUM_THREADS": "1", "RUN": str(tmp_path / "run"), "QUEUE": str(tmp_path / "queue"),
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(path)], env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    return start


FEW = "--layer 3 --internal-steps 1 --prompts 2 --samples 4 --micro-batch 4 --max-new-tokens 8 --scan-every 0"


@pytest.mark.slow
def test_a_stopped_job_saves_queues_itself_again_and_resumes(batch, tmp_path):
    job, run = batch(f"{FEW} --steps 24"), tmp_path / "run"
    while not (run / "metrics.parquet").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.1)
    os.kill(job.pid, signal.SIGTERM)  # to the script alone, as --signal=B:TERM does
    _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert (tmp_path / "queue").read_text() == "requeue 7\n"
    (saved,) = checkpoints.found(run)
    assert 0 < saved < 24
    job = batch(f"{FEW} --steps 24")
    _, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert checkpoints.is_whole(run / "model")
    assert (tmp_path / "queue").read_text() == "requeue 7\n"  # a finished job isn't queued again


@pytest.mark.slow
def test_a_job_that_fails_is_not_queued_again(batch, tmp_path):
    job = batch(f"{FEW} --steps 0")
    _, err = job.communicate(timeout=120)
    assert job.returncode == 1
    assert err.count("error: --steps is 0.") >= 1
    assert not (tmp_path / "queue").exists()
