"""Whether two answers mean the same mathematics, decided by math-verify in a process that can be stopped."""

import atexit
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from multiprocessing import process
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType

import pebble

LONGEST = 300
"""Characters of an answer that is parsed; what is longer equals nothing."""
TIME_LIMIT = 3.0
"""Seconds for a pair, of which one takes about a millisecond; then the process is killed."""
MEMORY_LIMIT = 2**30
"""Bytes that the process may hold, on Linux; with math-verify loaded it holds 60 million."""


def equal(given: str, answer: str) -> bool:
    r"""Whether `given` means what `answer` does, both as LaTeX without \boxed{}: numbers, sets, intervals, equations.

    What takes too long or too much memory, or cannot be parsed, equals nothing. Nothing is ever executed. Threads take
    turns, and every process has a worker of its own. Raises RuntimeError if no worker can be started.
    """
    if max(len(given), len(answer)) > LONGEST:
        return False
    with _worker.lock:
        for _ in range(2):  # a worker that somebody else has killed is replaced, once
            try:
                return _worker.pool().schedule(_verify, (given, answer), timeout=TIME_LIMIT).result()
            except (TimeoutError, pebble.ProcessExpired):  # the pair was too much for it; pebble starts another
                return False
            except RuntimeError:
                pass
        raise RuntimeError("math-verify cannot be started; look above for what its process said.")


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


class _Worker:
    """The pool of one process, started when it is first needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._pool: pebble.ProcessPool | None = None

    def pool(self) -> pebble.ProcessPool:
        """The pool; a new one if it broke."""
        if self._pool is None or not self._pool.active:
            self.close()
            self._pool = pebble.ProcessPool(max_workers=1, initializer=_prepare, context=_Context())
        return self._pool

    def close(self) -> None:
        """Stop the process."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
        self._pool = None


_worker = _Worker()


def _forget() -> None:
    """After a fork the worker is the parent's, and so may be whoever holds the lock: the child must not stop it."""
    global _worker
    _worker = _Worker()
    started: set = getattr(process, "_children", set())
    started -= {child for child in started if isinstance(child, _Process)}


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _worker.close())


# what runs in the worker

SMALL = re.compile(r"(?<![0-9])0?\.(0+)[1-9]")
"""A decimal below a tenth; the group is its zeros behind the point."""


def _prepare() -> None:
    import math_verify  # noqa: F401  # loaded now, so that no pair pays for it

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler would wait for the end of a long power
    logging.disable()  # math-verify warns that its own time-outs are off
    _limit_memory()


def _limit_memory() -> None:
    """Keep the process below MEMORY_LIMIT where the platform can: macOS refuses, and Windows has no such limit."""
    try:
        import resource
    except ImportError:
        return
    with suppress(ValueError, OSError):  # also where a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _verify(given: str, answer: str) -> bool:
    from math_verify import verify

    zeros = [len(match[1]) for text in (given, answer) for match in SMALL.finditer(text)]
    rounded = max([6, *(number + 3 for number in zeros)])  # else all that is below a millionth is 0
    try:
        return bool(verify(_parsed(answer), _parsed(given), float_rounding=rounded, timeout_seconds=0))
    except (MemoryError, RecursionError):
        return False


@lru_cache(maxsize=64)  # the responses to one problem have one answer
def _parsed(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    # as LaTeX alone: plain expressions would go through Python's `eval`
    return parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=0)
