"""What each of several processes prints when all of them fail alike."""

import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from internal_policy.__main__ import main
from internal_policy.cli import launched


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Become a worker of torchrun."""

    def become(rank: int, size: int = 2) -> Path:
        path = tmp_path / f"error-{rank}.json"
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, launched.ERROR_FILE: path}.items():
            monkeypatch.setenv(name, str(value))
        return path

    return become


def test_wrong_usage_is_printed_by_the_first_process_alone(worker, capsys):
    for rank, expected in enumerate([1, 0]):
        worker(rank)
        assert main(["train", "--steps", "0"]) == 2
        assert capsys.readouterr().err.count("--steps is 0") == expected


def test_torchruns_summary_has_the_reason_of_every_process(worker):
    path = worker(1)
    assert main(["train", "--steps", "0"]) == 2
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(path))
    assert failure.message == "error: --steps is 0. Use a number from 1 to 2147483647."
    assert failure.message in str(ChildFailedError("train", {1: failure}))


def test_without_torchrun_every_process_says_why_it_failed(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv(launched.ERROR_FILE, raising=False)
    assert main(["train", "--steps", "0"]) == 2
    assert "--steps is 0" in capsys.readouterr().err


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("train", "Continue with the same launch command and --resume."),
        ("scan", "Continue with the same launch command."),
    ],
)
def test_an_interrupted_worker_names_the_launch_command(command, how, worker, monkeypatch, capsys):
    monkeypatch.setattr("internal_policy.cli.main._run", interrupt)
    path = worker(0)
    assert main([command]) == 130
    assert capsys.readouterr().err == f"Interrupted. Finished work is kept. {how}\n"
    assert json.loads(path.read_text())["message"].startswith("Interrupted.")


def test_a_single_process_names_its_own_command(monkeypatch, capsys):
    monkeypatch.setattr("internal_policy.cli.main._run", interrupt)
    assert main(["train", "--steps", "5"]) == 130
    assert "Continue with: internal-policy train --steps 5 --resume" in capsys.readouterr().err
