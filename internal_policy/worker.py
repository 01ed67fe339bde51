"""Call a function in a process with limits on time and memory, through a line of JSON for each call."""

import atexit
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MEMORY_LIMIT = 2**30
"""Bytes that a process may use; with its libraries loaded, it uses 60 million."""
GLANCE = 0.02
"""Seconds between checks of a process that hasn't answered."""
PATIENCE = 10
"""Seconds that a call may take for each second of processor time it may use, because other programs use it too."""
ABANDONED = 60
"""Seconds after which a process ends by itself during a call, because its caller was killed."""
READY = b"internal-policy's worker is ready\n"
"""First line that a process prints itself; its interpreter may print others before."""


class Stopped(Exception):
    """A call took too much time or memory, and its process was killed."""


class Worker:
    """A process `python -m module` that starts when first needed or by `start`, and is replaced if it breaks.

    The module calls `serve`. Threads take turns, and every forked process gets its own.
    """

    def __init__(self, module: str) -> None:
        """Prepare to run `module`; the process starts with `start` or the first call."""
        self.module = module
        self.process: Any = None  # a Popen with pipes
        self.is_ready = False
        self.lock = threading.Lock()
        _workers.add(self)

    def start(self) -> None:
        """Start the process, without waiting until it is ready, so that the first call needn't wait as long."""
        with self.lock:
            self._start()

    def call(self, *arguments: Any, timeout: float) -> Any:
        """Call the module's function and return its result; JSON must be able to hold both arguments and result.

        `timeout` is in seconds of processor time, because a busy machine shouldn't stop more calls than an idle one.
        Raises Stopped, TypeError for arguments that JSON can't hold, and RuntimeError if the function raises or no
        process can be started.
        """
        request = json.dumps(arguments).encode() + b"\n"
        with self.lock:
            line, stopped = self._exchange(request, timeout)
            if not line and not stopped:  # something else killed the process
                line, _ = self._exchange(request, timeout)
        if not line:
            raise Stopped
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"A worker process failed: {answer['error']}")
        return answer["result"]

    def _exchange(self, request: bytes, timeout: float) -> tuple[bytes, bool]:
        """The answer, empty if the process ended instead, and whether a limit stopped it."""
        try:
            process = self._running()
            with _limited(process, timeout) as stopped:
                with suppress(BrokenPipeError):
                    process.stdin.write(request)
                    process.stdin.flush()
                line = process.stdout.readline()
        except BaseException:  # Ctrl-C, for example; the next call must not get this answer
            self.close()
            raise
        if line.endswith(b"\n"):
            return line, False
        self.close()
        return b"", stopped.is_set()

    def _running(self) -> Any:
        """The process, ready; a new one if it ended."""
        self._start()
        if not self.is_ready and not any(line.endswith(READY) for line in self.process.stdout):
            self.close()
            raise RuntimeError("internal-policy couldn't start a worker process. Its output above shows why.")
        self.is_ready = True
        return self.process

    def _start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        path = os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],  # -P: imports come from the folders of this process alone
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.is_ready = False

    def close(self) -> None:
        """Stop the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            with suppress(BrokenPipeError):  # a request that it hasn't read
                self.process.stdin.close()
        self.process = None

    def forget(self) -> None:
        """Drop the process and the lock without closing them, because another process owns them."""
        self.lock = threading.Lock()
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                pipe.raw.close()  # without a flush, which might send half a request again
            self.process.returncode = 0  # otherwise Python warns that it is still running
        self.process = None


def serve(function: Callable[..., Any], prepare: Callable[[], None]) -> None:
    """Call `prepare`, then answer each line of stdin with the result of `function` until stdin closes.

    Libraries can't interfere: what they print is discarded, and they can't read from stdin.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = Path(os.devnull).open("r+b")  # noqa: SIM115  # open until the process ends
    os.dup2(nowhere.fileno(), 0)
    os.dup2(nowhere.fileno(), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the caller, which stops this process
    prepare()
    answer = READY
    with suppress(BrokenPipeError):  # the caller is gone
        while True:
            answers.write(answer)
            answers.flush()
            if not (request := requests.readline()):
                return
            faulthandler.dump_traceback_later(ABANDONED, exit=True, file=nowhere)  # also while C code runs
            answer = _answer(function, request)
            faulthandler.cancel_dump_traceback_later()
    os._exit(1)  # otherwise Python would try to write the answer again


def _answer(function: Callable[..., Any], request: bytes) -> bytes:
    try:
        line = json.dumps({"result": function(*json.loads(request))})
    except Exception:
        line = json.dumps({"error": traceback.format_exc()})
    return line.encode() + b"\n"


@contextmanager
def _limited(process: Any, timeout: float) -> Iterator[threading.Event]:
    """Inside, the process is killed and the event set if it takes too much time or memory."""
    done, stopped = threading.Event(), threading.Event()
    end = time.monotonic() + PATIENCE * timeout

    def watch() -> None:
        if done.wait(GLANCE):
            return
        seconds, _ = _used(process)
        while not done.wait(GLANCE):
            now, memory = _used(process)
            if now - seconds > timeout or time.monotonic() > end or memory > MEMORY_LIMIT:
                stopped.set()
                process.kill()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stopped
    finally:
        done.set()
        watcher.join()


def _used(process: Any) -> tuple[float, int]:
    """Seconds of processor time and bytes of memory that a process has used."""
    import psutil  # only slow calls need it

    with suppress(psutil.Error):
        child = psutil.Process(process.pid)
        times = child.cpu_times()
        return times.user + times.system, child.memory_info().rss
    return 0.0, 0


_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()


def _close_all() -> None:
    for worker in list(_workers):
        worker.close()


def _forget_all() -> None:
    for worker in list(_workers):
        worker.forget()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
