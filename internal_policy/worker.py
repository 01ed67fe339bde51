"""Call a function in a process of its own, which is stopped when it takes too long or too much memory."""

import atexit
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import process
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

import pebble
import psutil

MEMORY_LIMIT = 2**30
"""Bytes that a process may hold; with what it needs loaded it holds 60 million."""
GLANCE = 0.02
"""Seconds between two looks at the memory of a process that has not answered."""


class Stopped(Exception):
    """A call took too long, or too much memory; its process was killed."""


class _Process(SpawnProcess):
    """A fresh process that any caller may start, and that runs none of the caller's own script again.

    Otherwise a script without `if __name__ == "__main__"` would begin anew in the worker, and the workers of a data
    loader, which are daemons, could have none.
    """

    def start(self) -> None:
        self.daemon = True  # a caller that multiprocessing started waits at its end for all others
        caller, main = multiprocessing.current_process(), sys.modules["__main__"]
        nameless = ModuleType("__main__")
        nameless.__dict__.update(vars(main), __spec__=None, __file__=None)  # all that is told of what to run again
        daemon, caller.daemon = caller.daemon, False
        sys.modules["__main__"] = nameless
        try:
            super().start()
        finally:
            sys.modules["__main__"], caller.daemon = main, daemon


class _Context(SpawnContext):
    Process = _Process


class Worker:
    """A process that is started when it is first needed, with `prepare` called in it, and replaced where it breaks.

    Threads take turns, and every process that was forked has one of its own.
    """

    def __init__(self, prepare: Callable[[], None]) -> None:
        """No process is started yet."""
        self.prepare = prepare
        self.forget()
        _workers.add(self)

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
        """What `function` returns for `arguments`. Raises Stopped, and RuntimeError if no process can be started."""
        with self.lock:
            for _ in range(2):  # a process that somebody else has killed is replaced, once
                try:
                    return _result(self.pool().schedule(function, arguments, timeout=timeout))
                except (TimeoutError, pebble.ProcessExpired) as error:  # it was too much; pebble starts another
                    raise Stopped from error
                except RuntimeError:
                    pass
        raise RuntimeError("A process of internal-policy cannot be started; look above for what it said.")

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
        """Leave the process, and the lock, to whoever has them."""
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
    """After a fork a worker is the parent's, and so may be whoever holds its lock: the child must not stop it."""
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
