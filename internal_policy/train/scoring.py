"""Call a reward function on a batch of responses, explain its errors, and check what it returns."""

import asyncio
import inspect
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from internal_policy.errors import InputError, counted, first_line, quoted
from internal_policy.tasks.problems import Problem

Function = Callable[..., Any]
ROW = "row"
"""Column of the data set with the number of a problem, by which its other columns are found."""
LARGEST = float(torch.finfo(torch.float32).max)
"""Largest reward; TRL keeps rewards as float32."""


def checked(name: str, function: Function, problems: Sequence[Problem], *, alone: bool) -> Function:
    """A reward function for TRL that also gets the columns of `problems`, under its name in the logs.

    An asynchronous function becomes a plain one. When called, it raises InputError if `function` fails, or doesn't
    return a finite number for each response. None means that the reward doesn't apply to a response, which only one of
    several rewards may return; `alone` says that this is the only one.
    """
    columns = [*dict.fromkeys(name for problem in problems for name in problem.columns)]

    def values(passed: Mapping[str, Any]) -> dict[str, Any]:
        rows = [problems[row].columns for row in passed[ROW]]
        others = {name: value for name, value in passed.items() if name != ROW}  # its names win, such as answer
        return {**{name: [row.get(name) for row in rows] for name in columns}, **others}

    plain = _synchronous(function) if inspect.iscoroutinefunction(function) else function

    def call(**passed: Any) -> list[float | None]:
        given = values(passed)
        try:
            found = plain(**given)
        except Exception as error:
            raise _failed(name, function, _first_failure(plain, given), error, given) from error
        return _numbers(name, found, len(given["completions"]), alone=alone)

    call.__name__ = name
    return call


def _synchronous(function: Function) -> Function:
    """An asynchronous function as a plain one, which always runs in the same event loop."""
    runner = asyncio.Runner()

    def call(**given: Any) -> Any:
        return runner.run(function(**given))

    weakref.finalize(call, runner.close)
    return call


def _first_failure(function: Function, given: Mapping[str, Any]) -> tuple[int, Exception] | None:
    """The first response, from 1, at which a function fails if it is called with each alone, and its error."""
    for number, one in enumerate(_singly(given), 1):
        try:
            function(**one)
        except Exception as error:
            return number, error
    return None


def _singly(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments for each response alone."""
    total = len(given["completions"])
    lists = {name for name, value in given.items() if isinstance(value, list) and len(value) == total}
    for number in range(total):
        yield {name: [value[number]] if name in lists else value for name, value in given.items()}


def _failed(
    name: str, function: Function, first: tuple[int, Exception] | None, error: Exception, given: Mapping[str, Any]
) -> InputError:
    """What failed, in a sentence: at the first response that fails alone, or for all together."""
    total = len(given["completions"])
    at = f"for {counted(total, 'response')}" if first is None else f"at response {first[0]} of {total}"
    error = error if first is None else first[1]
    return InputError(
        f"The reward {name} failed {at}{line_of(error, _file(function))}: {described(error)}. Fix it and start a new "
        "run; its --model can be a checkpoint of this one."
    )


def _file(function: Function) -> str:
    """The file that defines a function; empty if there is none."""
    return str(getattr(inspect.unwrap(function), "__globals__", {}).get("__file__", ""))


def line_of(error: BaseException, file: str) -> str:
    """The line of `file` at which an error was raised, in brackets; empty if it wasn't raised there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""


def described(error: BaseException) -> str:
    """The type and the first line of an error."""
    kind, said = type(error).__name__, first_line(Exception(error)) if str(error) else ""
    return f"{kind}: {said[:200]}" if said else kind


def _numbers(name: str, found: Any, total: int, *, alone: bool) -> list[float | None]:
    """What a function returned, as numbers. Raises InputError unless there is a finite one for each response."""
    values = found.tolist() if isinstance(found, np.ndarray | torch.Tensor) else found
    if not isinstance(values, list | tuple):
        raise InputError(f"The reward {name} returned {quoted(found)}. Return a list with a number for each response.")
    if len(values) != total:
        raise InputError(
            f"The reward {name} returned {counted(len(values), 'number')} for {counted(total, 'response')}. Return one "
            "for each."
        )
    for number, value in enumerate(values, 1):
        if value is None and not alone:
            continue
        if not isinstance(value, Real | np.bool_) or not -LARGEST <= cast(float, value) <= LARGEST:  # nor NaN
            more = "" if alone else ", or None if it doesn't apply"
            more = ". None needs a second reward, which then decides" if alone and value is None else more
            raise InputError(
                f"The reward {name} returned {quoted(value)} for response {number}. Return a number{more}."
            )
    return [None if value is None else float(value) for value in values]
