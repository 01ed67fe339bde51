"""A batch that doesn't fit into memory is halved, or said in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from faults.harness import finished, started

WORDS = ("scan", "--limit", "64", "--max-new-tokens", "48", "--layers", "0", "--output", "out", "--batch-size")


def peak(words: tuple[str, ...], room: Path) -> int:
    """The most address space in bytes that a command takes."""
    child, most = started(words, room), 0
    status = Path("/proc") / str(child.pid) / "status"
    while child.poll() is None:
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmPeak")]
        most = max([most, *(int(line[1]) * 1024 for line in lines)])
        try:
            child.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    assert child.returncode == 0
    return most


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_too_little_memory_halves_the_batch_or_is_said_in_one_sentence(tmp_path):
    """A process gets hardly more address space than a batch of two responses takes, and is asked for one of 64."""
    needed = peak((*WORDS[:2], "2", *WORDS[3:], "2"), tmp_path / "small")
    for more in (0, 64, 256):
        done = finished((*WORDS, "64"), tmp_path / str(more), {"memory": needed + more * 1_000_000})
        assert "Traceback" not in done.said
        assert done.code == 0 or (done.code == 1 and "There isn't enough memory. Try --batch-size 1" in done.last), done
