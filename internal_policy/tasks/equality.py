"""Whether two answers mean the same mathematics, decided by math-verify in a process that can be stopped."""

import logging
import re
from contextlib import suppress
from functools import lru_cache

from internal_policy.worker import MEMORY_LIMIT, Stopped, Worker, serve

LONGEST = 300
"""Characters of an answer that is parsed; what is longer equals nothing."""
TIME_LIMIT = 3.0
"""Seconds for a pair, of which one takes about a millisecond; then the process is killed."""


def equal(given: str, answer: str) -> bool:
    r"""Whether `given` means what `answer` does, both as LaTeX without \boxed{}: numbers, sets, intervals, equations.

    What takes too long or too much memory, or cannot be parsed, equals nothing. Nothing is ever executed. Threads take
    turns, and every process has a worker of its own. Raises RuntimeError if no worker can be started.
    """
    if max(len(given), len(answer)) > LONGEST:
        return False
    try:
        return _worker.call(given, answer, timeout=TIME_LIMIT)
    except Stopped:
        return False


# what runs in the worker

SMALL = re.compile(r"(?<![0-9])0?\.(0+)[1-9]")
"""A decimal below a tenth; the group holds the zeros after its point."""


def _prepare() -> None:
    import math_verify  # noqa: F401  # loaded now, so that no pair pays for it

    logging.disable()  # math-verify warns that its own time-outs are off
    _limit_memory()


def _limit_memory() -> None:
    """Limit the memory of this process to MEMORY_LIMIT, which macOS and Windows don't support."""
    try:
        import resource
    except ImportError:
        return
    with suppress(ValueError, OSError):  # a lower limit may be set already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _verify(given: str, answer: str) -> bool:
    from math_verify import verify

    zeros = [len(match[1]) for text in (given, answer) for match in SMALL.finditer(text)]
    rounded = max([6, *(number + 3 for number in zeros)])  # by default anything below a millionth is 0
    try:
        return bool(verify(_parsed(answer), _parsed(given), float_rounding=rounded, timeout_seconds=0))
    except (MemoryError, RecursionError):
        return False


@lru_cache(maxsize=64)  # the responses to one problem have one answer
def _parsed(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    # as LaTeX alone: plain expressions would go through Python's `eval`
    return parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=0)


_worker = Worker("internal_policy.tasks.equality")

if __name__ == "__main__":
    serve(_verify, _prepare)
