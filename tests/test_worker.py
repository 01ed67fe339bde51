"""Calls in a worker process return, raise or are stopped, whatever happens to either process."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from internal_policy import worker
from internal_policy.worker import Stopped, Worker

MODULE = """
import os, subprocess, sys, time
from internal_policy import worker

print("imported", flush=True)
worker.ABANDONED = 1

def act(what, *values):
    if what == "echo":
        return values
    if what == "print":
        print("printed")
        os.system("echo printed by a program")
        sys.stdout.flush()
        return sys.stdin.read()
    if what == "sleep":
        time.sleep(*values)
    if what == "spin":
        while True:
            pass
    if what == "raise":
        raise RuntimeError("from the called function")
    if what == "end":
        os._exit(3)
    if what == "fill":
        return len(bytearray(2**31))
    if what == "object":
        return object()
    if what == "path":
        return sys.path

def prepare():
    print("prepared", flush=True)
    FAIL

if __name__ == "__main__":
    worker.serve(act, prepare)
"""
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs signals or forks")


@pytest.fixture
def working(tmp_path, monkeypatch):
    (tmp_path / "acting.py").write_text(MODULE.replace("FAIL", ""))
    monkeypatch.syspath_prepend(tmp_path)
    made = Worker("acting")
    yield made
    made.close()


@pytest.mark.parametrize(
    "value", ["", "a\nb\r\n\u2028", "\ud800", "é🙂", 'x"}\n{"result": 1}', [1.5, None, {"a": [True]}]]
)
def test_values_come_back_unchanged(working, value):
    assert working.call("echo", value, timeout=10.0) == [value]


def test_output_printed_by_the_worker_is_not_mistaken_for_an_answer(working, capfd):
    assert working.call("print", timeout=10.0) == ""
    assert working.call("echo", 1, timeout=10.0) == [1]
    assert capfd.readouterr().out == ""


def test_a_worker_that_was_started_early_answers_the_first_call(working):
    working.start()
    started = working.process
    working.start()
    assert working.call("echo", 1, timeout=10.0) == [1]
    assert working.process is started


def test_an_error_in_the_called_function_is_reported(working):
    with pytest.raises(RuntimeError, match="from the called function"):
        working.call("raise", timeout=10.0)


@pytest.mark.parametrize("call", [("echo", {1, 2}), ("echo", object())])
def test_an_argument_that_json_cannot_hold_is_rejected(working, call):
    with pytest.raises(TypeError, match="not JSON serializable"):
        working.call(*call, timeout=10.0)


def test_a_result_that_json_cannot_hold_is_an_error(working):
    with pytest.raises(RuntimeError, match="not JSON serializable"):
        working.call("object", timeout=10.0)


def test_a_worker_that_fails_to_start_is_reported(working, tmp_path, capfd):
    (tmp_path / "acting.py").write_text(MODULE.replace("FAIL", "raise ValueError('from the preparation')"))
    with pytest.raises(RuntimeError, match="couldn't start a worker process"):
        working.call("echo", timeout=10.0)
    assert "from the preparation" in capfd.readouterr().err


@pytest.mark.parametrize(("call", "timeout"), [(("sleep", 60), 0.05), (("spin",), 0.3), (("fill",), 30.0)])
def test_a_call_past_a_limit_is_stopped_and_the_next_is_answered(working, monkeypatch, call, timeout):
    working.call("echo", timeout=10.0)
    monkeypatch.setattr(worker, "MEMORY_LIMIT", 2**28)
    with pytest.raises(Stopped):
        working.call(*call, timeout=timeout)
    assert working.call("echo", 1, timeout=10.0) == [1]


def test_a_busy_machine_does_not_stop_a_call(working):
    assert working.call("sleep", 0.4, timeout=0.1) is None


def test_a_call_that_ends_its_process_every_time_is_stopped(working):
    with pytest.raises(Stopped):
        working.call("end", timeout=10.0)


@POSIX
@pytest.mark.parametrize("started", [True, False])
def test_an_interrupted_call_does_not_answer_the_next(working, tmp_path, started):
    (tmp_path / "acting.py").write_text(MODULE.replace("FAIL", "time.sleep(2)"))
    if started:
        working.call("echo", timeout=10.0)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        working.call("sleep", 60, timeout=60.0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert working.call("echo", 1, timeout=10.0) == [1]


def test_a_worker_imports_from_the_folders_of_its_caller(working):
    path = working.call("path", timeout=10.0)
    assert [folder for folder in path if folder in sys.path] == list(dict.fromkeys(sys.path))


def test_nothing_is_imported_from_the_working_directory(working, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert working.call("echo", 1, timeout=10.0) == [1]


def caller(tmp_path, code: str) -> subprocess.Popen[str]:
    """A program that prints its worker's process id, then does as `code` says."""
    start = (
        "import os, time\nfrom internal_policy.worker import Worker\nw = Worker('acting')\nw.call('echo', timeout=10.0)"
    )
    (tmp_path / "script.py").write_text(f"{start}\nprint(w.process.pid, flush=True)\n{code}\n")
    script = [sys.executable, str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def ends(pid: int) -> bool:
    """Whether a process ends within half a minute."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


CALLERS = {
    "idle": "time.sleep(60)",
    "in a call": "w.call('sleep', 60, timeout=60.0)",
    "with a fork": "os.fork(); time.sleep(60)",
}


@POSIX
@pytest.mark.parametrize("code", CALLERS.values(), ids=CALLERS)
def test_a_worker_ends_when_its_caller_is_killed(working, tmp_path, code):
    with caller(tmp_path, code) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(0.3)  # by now it runs `code`
        process.kill()
        gone = ends(pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the fork
    assert gone


@POSIX
def test_a_worker_ends_with_its_caller(working, tmp_path):
    with caller(tmp_path, "") as process:
        output, _ = process.communicate()
    assert process.returncode == 0
    assert ends(int(output))
