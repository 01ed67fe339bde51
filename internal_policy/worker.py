"""Call a function in a process with limits of time and memory."""

import atexit
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import process
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

import pebble
import psutil

MEMORY_LIMIT = 2**30
"""Bytes that a process may use; with its libraries loaded it uses 60 million."""
GLANCE = 0.02
"""Seconds between memory checks of a process that hasn't answered."""


class Stopped(Exception):
    """A call took too long, or too much memory; its process was killed."""


class _Process(SpawnProcess):
    """A fresh process that any caller may start, and that doesn't run the caller's script again.

    Otherwise a script without `if __name__ == "__main__"` would start over in the worker, and data loader workers,
    which are daemons, couldn't have one.
    """

    def start(self) -> None:
        self.daemon = True  # otherwise a caller started by multiprocessing would wait for it at exit
        caller, main = multiprocessing.current_process(), sys.modules["__main__"]
        nameless = ModuleType("__main__")
        # without these two attributes the child doesn't run the caller's script again
        nameless.__dict__.update(vars(main), __spec__=None, __file__=None)
        daemon, caller.daemon = caller.daemon, False
        sys.modules["__main__"] = nameless
        try:
            super().start()
        finally:
            sys.modules["__main__"], caller.daemon = main, daemon


class _Context(SpawnContext):
    Process = _Process


class Worker:
    """A process that starts when first needed, with a call of `prepare`, and is replaced if it breaks.

    Threads take turns, and every forked process gets its own.
    """

    def __init__(self, prepare: Callable[[], None]) -> None:
        """Doesn't start the process yet."""
        self.prepare = prepare
        self.forget()
        _workers.add(self)

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
        """The result of `function(*arguments)`, or what it raised.

        Raises Stopped, and RuntimeError if no process can be started.
        """
        with self.lock:
            for _ in range(2):  # a process that something else killed is replaced, once
                try:
                    future = self.pool().schedule(function, arguments, timeout=timeout)
                except RuntimeError:  # the pool broke since its last call
                    continue
                try:
                    return _result(future)
                except (TimeoutError, pebble.ProcessExpired) as error:  # over a limit; pebble starts another process
                    raise Stopped from error
                except BrokenProcessPool:
                    pass
        raise RuntimeError("internal-policy couldn't start a worker process. Its output above shows why.")

    def pool(self) -> pebble.ProcessPool:
        """The pool of one process; a new one if it broke."""
        if self._pool is None or not self._pool.active:
            self.close()
            self._pool = pebble.ProcessPool(max_workers=1, initializer=self.prepare, context=_Context())
        return self._pool

    def close(self) -> None:
        """Stop the process."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
        self._pool = None

    def forget(self) -> None:
        """Drop the process and the lock without touching them, because another process owns them."""
        self.lock = threading.Lock()
        self._pool: pebble.ProcessPool | None = None


def _result(future: Any) -> Any:
    while True:
        try:
            return future.result(GLANCE)
        except TimeoutError:
            if future.done():
                return future.result()
        for child in multiprocessing.active_children():
            with suppress(psutil.Error):
                if isinstance(child, _Process) and psutil.Process(child.pid).memory_info().rss > MEMORY_LIMIT:
                    child.kill()


_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()


def _forget_all() -> None:
    """After a fork the worker, and perhaps its lock, belong to the parent, so the child must not stop it."""
    for worker in _workers:
        worker.forget()
    started: set = getattr(process, "_children", set())
    started -= {child for child in started if isinstance(child, _Process)}


def _close_all() -> None:
    for worker in list(_workers):
        worker.close()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
