"""Which responses are looked at: by their reward, and by the numbers that came with them, such as `acc>=0.5`."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd

from internal_policy.errors import InputError, quoted
from internal_policy.tasks import pass_at_k
from internal_policy.tasks.marks import MARK

Outcome = Literal["all", "correct", "incorrect"]
"""Which rollouts to look at. An unmarked one is neither correct nor incorrect."""
COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
FORM = re.compile(r"([^<>=!]+?)\s*(>=|<=|!=|=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


@dataclass(frozen=True)
class Condition:
    """A number of a response compared with another, such as `acc>=0.5`."""

    column: str
    """Column of the table `rollouts`: reward, or mark.NAME."""
    sign: str
    """One of >=, <=, !=, =, > and <."""
    value: float
    """The number to compare with."""


def parse(text: str) -> Condition:
    """The condition in a text: `reward` or the name of a mark, a comparison and a number. Raises InputError."""
    match = FORM.fullmatch(text.strip())
    if match is None:
        raise InputError(
            f"{quoted(text)} isn't a condition. Write a mark, a comparison and a number, such as acc>=0.5."
        )
    name = match[1] if match[1] == "reward" or match[1].startswith(MARK) else f"{MARK}{match[1]}"
    return Condition(name, match[2], float(match[3]))


def columns(where: Sequence[str], known: Sequence[str]) -> list[str]:
    """The columns that conditions need. Raises InputError for one that isn't among the `known`, and names these."""
    needed = [parse(text).column for text in where]
    if missing := next((name for name in needed if name not in known), None):
        marks = [name.removeprefix(MARK) for name in known if name.startswith(MARK)]
        choices = ", ".join(("reward", *marks))
        raise InputError(f"The responses have no mark {quoted(missing.removeprefix(MARK))}. Choose one of {choices}.")
    return needed


def check(outcome: str, where: Sequence[str]) -> None:
    """Raise InputError for an unknown outcome, and for a text that isn't a condition."""
    if outcome not in get_args(Outcome):
        raise InputError(f"There is no outcome '{outcome}'. Choose one of {', '.join(get_args(Outcome))}.")
    for text in where:
        parse(text)


def met(rows: pd.DataFrame, outcome: Outcome, where: Sequence[str]) -> "pd.Series[bool]":
    """Whether each response has the outcome and meets every condition. One without a number doesn't."""
    found = pd.Series(True, index=rows.index)
    if outcome != "all":
        correct = pass_at_k.correct(rows["reward"])
        found &= correct if outcome == "correct" else ~correct & rows["reward"].notna()
    for condition in map(parse, where):
        numbers = rows[condition.column].astype(float)
        found &= numbers.notna() & COMPARED[condition.sign](numbers, condition.value)
    return found
