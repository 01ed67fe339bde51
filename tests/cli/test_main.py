"""From arguments to an exit code."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from internal_policy.__main__ import main
from internal_policy.scans import scan, verify

pytestmark = pytest.mark.usefixtures("here")


def test_options_are_accepted_with_underscores_too(asked):
    assert main([*asked, "--dry_run", "--top_k", "2"]) == 0


def test_no_progress_bar_is_drawn_without_a_terminal(asked, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    read, advice, begun, ended = capsys.readouterr().err.splitlines()
    assert read.startswith("Read through the chat template as: ")
    assert advice.startswith("For plain text, add ")
    assert begun == "Writing the scan to mine."
    assert ended.startswith("Measured in ")


def test_wrong_usage_exits_2():
    assert main(["scan", "--nonsense"]) == 2


def failing(monkeypatch, number: int, *act) -> None:
    """Call `act` before a scan measures its rollouts from `number` on."""
    measured = scan.Scanner.measured

    def fail(scanner, rollouts, first, *others):
        if first == number:
            act[0](*act[1:])
        return measured(scanner, rollouts, first, *others)

    monkeypatch.setattr(scan.Scanner, "measured", fail)


def raised(error: BaseException) -> None:
    raise error


def test_a_termination_is_said_in_one_sentence_like_an_interruption(asked, here, capsys, monkeypatch):
    failing(monkeypatch, 4, os.kill, os.getpid(), signal.SIGTERM)
    assert main([*asked, "--output", "mine"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("Interrupted. Finished work is kept. Continue with: internal-policy scan --model")
    assert not [path.name for path in (here / "mine").iterdir() if path.name.startswith(".")]  # no claim, no mark
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("std::bad_alloc"), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")],
)
def test_too_little_memory_is_one_sentence_with_the_remedy(error, asked, capsys, monkeypatch):
    failing(monkeypatch, 4, raised, error)
    assert main([*asked, "--output", "mine"]) == 1
    said = "error: There isn't enough memory. Try --batch-size 1, --dtype bfloat16 or shorter texts. Finished work is"
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_a_folder_that_was_removed_is_named_and_the_command_works_again(asked, here, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, 4, os.rename, here / "mine", here / "gone")
        assert main([*asked, "--output", "mine"]) == 1
    said = "error: mine was removed while the command ran. Start again with: internal-policy scan --model"
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
    assert not (here / "mine").exists()
    assert main([*asked, "--output", "mine"]) == 0
    assert not verify.scan(here / "mine").faults


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_output_that_cannot_be_written_is_an_error():
    words = [sys.executable, "-m", "internal_policy", "--version"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device.\n"
