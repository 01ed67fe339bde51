"""Processes that share some work claim one part after another, and take over what others leave behind."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.scans import sharing
from internal_policy.scans.sharing import claiming, turns

ELSEWHERE = "00000000"
"""A machine other than this."""


def claimed(folder, part: int, machine: str, process: int, age: float = 0.0) -> None:
    """Claim a part as another process would; `age` is how many seconds ago it last gave a sign of life."""
    folder.mkdir(exist_ok=True)
    path = folder / f".{part}-0.claim"
    path.write_text(f"{machine} {process}")
    os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))


def ended() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_part_is_claimed_by_one_process_until_it_is_released(tmp_path):
    with claiming(tmp_path) as one, claiming(tmp_path) as other:
        assert one.take(3)
        assert not other.take(3)
        assert other.take(4)
        one.release(3)
        assert other.take(3)


def test_all_claims_end_with_an_error(tmp_path):
    def interrupted() -> None:
        with claiming(tmp_path) as claims:
            assert claims.take(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_during_whose_making_a_signal_came_ends_too(tmp_path, monkeypatch):
    made = files.created

    def signalled(path: Path, text: str) -> bool:
        made(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "created", signalled)
    with pytest.raises(KeyboardInterrupt), claiming(tmp_path) as claims:
        claims.take(0)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_process_that_has_ended_is_taken_over_by_one(tmp_path):
    claimed(tmp_path, 0, files.HERE, ended())
    with claiming(tmp_path) as one, claiming(tmp_path) as other:
        assert one.take(0)
        assert not other.take(0)
        one.release(0)
        assert list(tmp_path.glob("*.claim")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
def test_a_part_is_taken_over_if_another_process_has_the_number_of_its_own(tmp_path):
    for part, text in ((0, f"{files.HERE} {os.getpid()} 1"), (1, " ".join(files.myself())), (2, "\0 \xff" * 100)):
        (tmp_path / f".{part}-0.claim").write_text(text, encoding="latin-1")
    with claiming(tmp_path) as claims:
        assert [claims.take(part) for part in range(3)] == [True, False, False]


def test_a_command_killed_when_all_was_done_leaves_nothing_once_it_is_asked_again(tmp_path):
    """Other machines, running processes and files that aren't ours are left alone."""
    claimed(tmp_path, 0, files.HERE, ended())
    (tmp_path / f".internal-policy-{files.HERE}-{ended()}-01234567.working").touch()
    claimed(tmp_path, 1, ELSEWHERE, 1)
    claimed(tmp_path, 2, files.HERE, os.getpid())
    (tmp_path / ".3-0.claim").mkdir()
    sharing.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".1-0.claim", ".2-0.claim", ".3-0.claim"]


def test_a_claim_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    """An empty claim of a full disk or a killed process would keep others waiting for two minutes."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with claiming(tmp_path) as claims, pytest.raises(OSError, match=re.escape(str(tmp_path))):
        claims.take(0)
    assert not list(tmp_path.iterdir())


def test_claims_that_killed_processes_left_are_swept_and_others_stay(tmp_path):
    claimed(tmp_path, 0, files.HERE, ended())
    claimed(tmp_path, 1, ELSEWHERE, 1)
    with claiming(tmp_path) as claims:
        assert claims.take(2)
        claims.sweep()
        assert sorted(path.name for path in tmp_path.glob("*.claim")) == [".1-0.claim", ".2-0.claim"]


@pytest.mark.parametrize(("age", "free"), [(60, False), (240, True), (-60, False), (-240, True)])
def test_a_process_on_another_machine_keeps_its_part_as_long_as_it_gives_signs_of_life(age, free, tmp_path):
    claimed(tmp_path, 0, ELSEWHERE, 1, age)
    with claiming(tmp_path) as claims:
        assert claims.take(0) == free


def test_a_folder_in_the_place_of_a_claim_is_refused_by_name(tmp_path):
    (tmp_path / ".0-0.claim").mkdir()
    with claiming(tmp_path) as claims, pytest.raises(InputError, match=r"\.0-0\.claim is a folder.*Remove it"):
        claims.take(0)


def test_a_claim_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "BEAT", 0.001)
    with claiming(tmp_path) as claims:
        assert claims.take(0)
        path = tmp_path / ".0-0.claim"
        os.utime(path, (0, 0))
        for _ in range(5000):
            if path.stat().st_mtime > 0:
                break
            Event().wait(0.001)
        assert path.stat().st_mtime > 0


def test_claims_are_hidden_files_of_ours(tmp_path):
    with claiming(tmp_path) as claims:
        assert claims.take(0)
        assert claims.take("scan.json")
        assert all(files.is_hidden(path.name) for path in tmp_path.iterdir())


def test_turns_give_each_part_once_and_skip_those_of_others(tmp_path):
    claimed(tmp_path, 1, ELSEWHERE, 1)
    with claiming(tmp_path) as claims:
        assert [*turns(range(4), claims, {2}.__contains__, waits=False)] == [(0, True), (2, False), (3, True)]


def test_a_part_that_was_finished_just_before_it_was_claimed_is_not_done_again(tmp_path):
    looks = iter([False, True])
    with claiming(tmp_path) as claims:
        assert [*turns([0], claims, lambda _: next(looks), waits=False)] == [(0, False)]
        assert claims.mine == {}


def test_waiting_ends_when_others_have_done_their_parts_or_died(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "GLANCE", 0.001)
    claimed(tmp_path, 0, ELSEWHERE, 1)
    claimed(tmp_path, 1, ELSEWHERE, 2)
    done: set[int] = set()

    def others() -> None:
        Event().wait(0.05)
        done.add(0)
        os.utime(tmp_path / ".1-0.claim", (0, 0))

    with claiming(tmp_path) as claims:
        Thread(target=others).start()
        first, *others_had = turns(range(3), claims, done.__contains__, waits=True)
    assert first == (2, True)
    assert sorted(others_had) == [(0, False), (1, True)]
