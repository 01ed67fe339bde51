"""Files are written whole or not at all, on any file system."""

import errno
import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors import SafetensorError

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.scans import store


@pytest.fixture
def no_links(monkeypatch):
    """A file system without hard links, such as exFAT."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


@pytest.fixture(autouse=True)
def _fresh():
    files._sweep_once.cache_clear()


def ended() -> int:
    """The number of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def fail() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_every_file_is_written_under_a_temporary_name_first():
    """But for a checkpoint's card, whose folder has a temporary name, and what torchrun reads after a failure."""
    package, calls = Path(files.__file__).parent, re.compile(r"([^\s=]*)\.write_(?:text|bytes)\(")
    written = {
        (path.relative_to(package).as_posix(), found[1])
        for path in package.rglob("*.py")
        for found in calls.finditer(path.read_text(encoding="utf-8"))
        if found[1] not in ("temporary", "files")
    }
    assert written == {("train/run.py", "card.CARD)"), ("cli/launched.py", "Path(file)")}


def test_a_removed_folder_is_not_made_again(tmp_path):
    """A folder with only the later half of its files would be taken for somebody else's."""
    with pytest.raises(FileNotFoundError):
        files.write_json(tmp_path / "removed" / "x.json", {})
    assert not (tmp_path / "removed").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "Error writing bytes to file"),  # Arrow
        OSError(errno.EDQUOT, "Disk quota exceeded", "somewhere"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 448 vs 342"),  # torch.save
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_is_one_error_that_names_the_folder(error, tmp_path):
    with pytest.raises(OSError, match=re.escape(str(tmp_path))) as raised, files.replacing(tmp_path / "x.json"):
        raise error
    assert raised.value.errno in files.FULL
    assert raised.value.filename == str(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [PermissionError(13, "No", "x"), InputError("No space left in it."), KeyError("x")])
def test_other_errors_pass_through(error, tmp_path):
    with pytest.raises(type(error)) as raised, files.naming_full(tmp_path):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_created_once(links, tmp_path, request):
    if not links:
        request.getfixturevalue("no_links")
    assert files.created(tmp_path / ".0-0.claim", "one")
    assert not files.created(tmp_path / ".0-0.claim", "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(".0-0.claim", "one")]


def _write(path, number):
    for _ in range(20):
        store.write_table(path, pa.table({"x": [number] * 1000}))


def test_processes_that_write_the_same_file_leave_one_whole_file(tmp_path):
    path = tmp_path / "x.parquet"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(path, number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    values = set(store.read_part(path)["x"].to_pylist())
    assert values in ({1}, {2})
    assert len(list(tmp_path.iterdir())) == 1


def test_the_first_file_written_with_once_wins(tmp_path):
    for number in (1, 2):
        files.write_json(tmp_path / "x.json", {"a": number}, once=True)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


@pytest.mark.usefixtures("no_links")
def test_the_first_file_written_with_once_wins_without_hard_links(tmp_path):
    for number in (1, 2):
        files.write_json(tmp_path / "x.json", {"a": number}, once=True)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def _write_once(path, number, ready, go):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    os.link = refuse
    ready.release()
    go.wait()
    for turn in range(20):
        files.write_json(path / f"{turn}.json", {"a": number}, once=True)
        files.write_json(path / f"{number}-{turn}.json", json.loads((path / f"{turn}.json").read_text()))


def test_without_hard_links_processes_agree_on_the_first_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    writers = [context.Process(target=_write_once, args=(tmp_path, number, ready, go)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    for _ in writers:
        assert ready.acquire(timeout=120)
    go.set()
    for writer in writers:
        writer.join()
    for turn in range(20):
        seen = {(tmp_path / f"{name}{turn}.json").read_text() for name in ("", "1-", "2-")}
        assert len(seen) == 1, turn


@pytest.mark.usefixtures("no_links")
def test_the_lock_of_a_killed_process_expires(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    (tmp_path / ".x.json.lock").touch()
    files.write_json(tmp_path / "x.json", {"a": 1}, once=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        files.write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_follow_the_umask_if_the_writer_replaces_the_file_by_a_narrow_one(tmp_path):
    with files.replacing(tmp_path / "x.safetensors") as temporary:
        temporary.unlink()
        temporary.touch(0o600)
    (tmp_path / "usual").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    killed = tmp_path / f".internal-policy-{files.HERE}-{ended()}-01234567.parquet"
    killed.touch()
    files.write_json(tmp_path / "x.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_temporary_files_of_any_machine_are_removed_after_a_day(tmp_path):
    elsewhere = tmp_path / ".internal-policy-00000000-1-01234567.json"
    elsewhere.touch()
    os.utime(elsewhere, (0, 0))
    files.write_json(tmp_path / "x.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
def test_a_clock_that_jumps_forward_removes_no_file_of_a_running_process(tmp_path, monkeypatch):
    with files.held(tmp_path) as mark, files.replacing(tmp_path / "x.json") as temporary:
        monkeypatch.setattr("time.time", lambda: 4e9)
        files.sweep(tmp_path)
        assert files.writers(tmp_path) == [f"process {os.getpid()}"]
        assert mark.exists()
        assert temporary.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
def test_temporary_files_are_removed_if_another_process_has_the_number_now(tmp_path):
    (tmp_path / f".internal-policy-{files.HERE}-{os.getpid()}-1-01234567.json").touch()
    assert files.writers(tmp_path) == []
    files.sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_temporary_files_of_running_processes_and_other_files_are_kept(tmp_path):
    names = [
        f".internal-policy-{files.HERE}-{os.getpid()}-01234567.json",
        ".internal-policy-00000000-999999999-01234567.json",
        ".internal-policy-notes.txt",
        ".x.json",
    ]
    for name in names:
        (tmp_path / name).touch()
    for name in names[2:]:
        os.utime(tmp_path / name, (0, 0))
    files.write_json(tmp_path / "x.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "x.json"])


def test_a_file_with_a_long_name_is_written(tmp_path):
    files.write_json(tmp_path / f"{'x' * 250}.json", {})
    assert [len(p.name) for p in tmp_path.iterdir()] == [255]


def test_a_folder_that_is_written_to_names_its_writer_until_it_is_done(tmp_path):
    with files.held(tmp_path / "scan" / "0") as mark:
        assert files.writers(tmp_path / "scan") == [f"process {os.getpid()}"]
        assert mark.is_file()
    assert files.writers(tmp_path / "scan") == []
    assert not list((tmp_path / "scan" / "0").iterdir())


def test_the_mark_of_a_process_that_was_killed_counts_for_nothing(tmp_path):
    (tmp_path / f".internal-policy-{files.HERE}-{ended()}-00000000.working").touch()
    assert files.writers(tmp_path) == []


def test_a_mark_of_another_machine_counts_for_a_day(tmp_path):
    mark = tmp_path / ".internal-policy-00000000-12-00000000.working"
    mark.touch()
    assert files.writers(tmp_path) == [f"process 12 on another machine (it keeps {mark})"]
    os.utime(mark, (0, 0))
    assert files.writers(tmp_path) == []


def test_processes_of_one_machine_know_that_they_are_on_the_same():
    code = "from internal_policy import files; print(files.HERE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == files.HERE
