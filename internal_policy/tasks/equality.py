"""Decide with math-verify whether two answers mean the same, in a process that can be stopped."""

import logging
import re
from contextlib import suppress
from functools import lru_cache

from internal_policy.worker import MEMORY_LIMIT, Stopped, Worker, serve

LONGEST = 300
"""Longest answer in characters that is parsed; a longer one equals nothing."""
TIME_LIMIT = 3.0
"""Seconds to compare a pair, which normally takes a millisecond."""


def equal(given: str, answer: str) -> bool:
    r"""Whether `given` and `answer` mean the same, both as LaTeX without \boxed{}: numbers, sets, intervals, equations.

    An answer that takes too long or too much memory, or can't be parsed, equals nothing. Nothing is ever executed.
    Raises RuntimeError if no worker can be started.
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
    logging.disable()  # math-verify warns that its own time-outs are off
    _verify("x^2 + 2x + 1", "(x+1)^2")  # loads math-verify and sympy before any time limit starts
    _limit_memory()


def _limit_memory() -> None:
    """Limit the memory of this process to MEMORY_LIMIT; macOS and Windows don't support that."""
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

    # only as LaTeX, because plain expressions would go through Python's `eval`
    return parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=0)


_worker = Worker("internal_policy.tasks.equality")

if __name__ == "__main__":
    serve(_verify, _prepare)
