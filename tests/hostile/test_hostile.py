"""Every reader of files and texts from others gives a value or a sentence, whatever it is given.

`python -m tests.hostile --inputs 100000` gives many more lies than these tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import campaign, readers, seeds

QUICK = {"problems .jsonl": 60, "problems .csv": 60, "lens": 40, "published lens": 40, "argument": 120}
"""Reader -> its inputs in the default suite."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    """The sound files of QUICK."""
    return seeds.make(tmp_path_factory.mktemp("seeds"), seeds.LIGHT)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """All sound files, written by another process so that this one starts no threads before it forks."""
    readers.preload()
    return campaign.prepared(tmp_path_factory.mktemp("seeds"))


def check(name: str, inputs: int, sound: Path, tmp_path: Path) -> None:
    found = campaign.run(name, inputs, sound, tmp_path)
    assert not found.failures, found.failures
    assert found.inputs == inputs
    assert found.refused


@pytest.mark.parametrize("name", QUICK)
def test_a_lie_is_refused_in_a_sentence(name, quick, tmp_path):
    check(name, QUICK[name], quick, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", readers.READERS)
def test_lies_of_every_kind_are_refused_in_a_sentence(name, sound, tmp_path):
    check(name, campaign.shares(5000, [*readers.READERS])[name], sound, tmp_path)


def test_an_input_that_breaks_a_reader_is_kept(quick, tmp_path, monkeypatch):
    def broken(folder: Path) -> None:
        raise LookupError

    reader = readers.Reader(("argument-positions",), ("argument",), broken)
    monkeypatch.setattr(campaign, "READERS", {"broken": reader})
    found = campaign.run("broken", 5, quick, tmp_path)
    first, *_, last = found.failures["LookupError at ?"]
    assert [len(found.failures["LookupError at ?"]), len({*first.parent.glob("broken-*.txt")})] == [5, campaign.KEPT]
    assert (last / "argument").is_file()


@pytest.mark.parametrize(
    ("act", "what"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with -11"),
        ("import pickle, datetime; pickle.loads(pickle.dumps(datetime.date.today()))", "unpickled datetime.date"),
        ("open('../secret.json')", "opened ../secret.json"),
        ("x = b'x' * 2**31", "MemoryError"),
        ("open('../secret.json'.removeprefix('../'), 'w')", "wrote"),
    ],
)
def test_a_reader_that_does_what_it_must_not_is_caught(act, what, quick, tmp_path, monkeypatch):
    def wrong(folder: Path) -> None:
        exec(act)

    monkeypatch.setattr(campaign, "READERS", {"wrong": readers.Reader(("problems-csv",), ("problems.csv",), wrong)})
    assert any(what in failure for failure in campaign.run("wrong", 1, quick, tmp_path).failures)


@pytest.mark.slow
def test_a_reader_is_fuzzed_guided_by_coverage(tmp_path):
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.hostile.guided", "--reader", "problems .json", "--seconds", "3"]
    environment = {**os.environ, "INTERNAL_POLICY_CACHE": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
    assert done.returncode == 0, done.stderr
    assert "DONE" in done.stderr
