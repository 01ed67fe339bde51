"""Processes share a scan, clocks are set, and folders go away."""

import os
import time
from importlib.util import find_spec

import pytest
from faults.commands import COMMANDS
from faults.harness import ended, finished, said, started

ON_RAY = ("--engine", "ray", "--replicas", "2", "--gpus-per-replica", "0")


@pytest.mark.parametrize("number", [2, 4])
def test_processes_that_ask_for_the_same_scan_at_once_write_one(number, references, tmp_path):
    command, begun = COMMANDS["scan"], time.monotonic()
    children = [started(command.words, tmp_path) for _ in range(number)]
    assert [ended(child, tmp_path, begun).code for child in children] == [0] * number, said(tmp_path).read_text()
    assert command.result(tmp_path) == references("scan").result


def test_processes_that_write_the_same_file_of_responses_leave_one(references, tmp_path):
    command, begun = COMMANDS["generate"], time.monotonic()
    children = [started(command.words, tmp_path) for _ in range(2)]
    codes = [ended(child, tmp_path, begun).code for child in children]
    assert sorted(codes) in ([0, 0], [0, 2]), said(tmp_path).read_text()  # 2: the other one had already written it
    assert command.result(tmp_path) == references("generate").result


@pytest.mark.skipif(find_spec("ray") is None, reason="ray isn't installed")
def test_two_workers_of_ray_write_one_scan(references, tmp_path):
    command = COMMANDS["scan"]
    done = finished((*command.words, *ON_RAY), tmp_path)
    assert done.code == 0, done.said
    assert command.result(tmp_path) == references("scan").result


@pytest.mark.parametrize(("act", "days"), [("back", 1), ("forward", -400)])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_clock_that_is_set_loses_nothing(name, act, days, references, tmp_path):
    """A killed command leaves files of another day, and the clock of the next one is set at each file operation."""
    command, reference = COMMANDS[name], references(name)
    finished(command.words, tmp_path, {"act": "kill", "at": len(reference.operations) // 2})
    then = time.time() + days * 24 * 3600
    for path in tmp_path.rglob("*"):
        os.utime(path, (then, then))
    done = finished(command.again(tmp_path), tmp_path, {"act": act})
    assert done.code == 0, done.said
    assert command.result(tmp_path) == reference.result


@pytest.mark.parametrize("act", ["back", "forward"])
def test_processes_whose_clocks_disagree_write_one_scan(act, references, tmp_path):
    """The clock of one of the two is set at each file operation, and claims of another machine are from tomorrow."""
    command, begun = COMMANDS["scan"], time.monotonic()
    out = tmp_path / "work" / "out"
    out.mkdir(parents=True)
    for part in (1, 3):
        (out / f".{part}-0.claim").write_text("00000000 1")
        tomorrow = time.time() + 24 * 3600
        os.utime(out / f".{part}-0.claim", (tomorrow, tomorrow))
    children = [started(command.words, tmp_path, {"act": each}) for each in ("nothing", act)]
    assert [ended(child, tmp_path, begun).code for child in children] == [0, 0], said(tmp_path).read_text()
    assert command.result(tmp_path) == references("scan").result


REMOVED = {
    "the folder of a scan": ("scan", "link .*rollouts-00002", "work/out"),
    "the folder of a scan that is being closed": ("scan", "rename .*vocabulary", "work/out"),
    "the cache": ("generate", "rename .*part-00001", "cache"),
    "the folder of a run": ("train", "rename .*metrics", "work/out"),
    "the folder of a run that saves": ("train", r"mkdir .*\.partial", "work/out"),
}
"""What is removed while a command runs -> the command, the file operation before which it is, and the folder."""


@pytest.mark.parametrize("case", REMOVED)
def test_a_folder_removed_meanwhile_is_named_and_the_command_works_again(case, references, tmp_path):
    name, like, folder = REMOVED[case]
    command = COMMANDS[name]
    done = finished(command.words, tmp_path, {"act": "remove", "at": 1, "like": like, "target": str(tmp_path / folder)})
    assert "Traceback" not in done.said
    assert done.code == 1
    assert "was removed while the command ran. Start again with: internal-policy" in done.last
    assert not any((tmp_path / folder).glob("*"))
    again = finished(command.words, tmp_path)
    assert again.code == 0, again.said
    assert command.result(tmp_path) == references(name).result
