"""Problems as a data set for TRL, and the built-in rewards of a response."""

import re
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from internal_policy.errors import InputError
from internal_policy.tasks.marking import NUMBER, boxed, mark, normalised
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat

NUMBERS = re.compile(r"(?<![\w.])[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]+)?")
"""A number in running text."""


def dataset_of(problems: Sequence[Problem], chat: Chat) -> Dataset:
    """Problems as a data set with the columns `prompt`, `answer` and `row`, the number of the problem from 0.

    TRL applies the chat template to messages but not to text; it gets text if `chat` is None. Raises InputError for a
    problem with tools.
    """
    rows = []
    for number, problem in enumerate(problems):
        if problem.tools:
            raise InputError(f"Problem {number + 1} has 'tools', which training doesn't support. Remove that column.")
        prompt = problem.text if chat is None else [dict(message) for message in problem.messages]
        rows.append({"prompt": prompt, "answer": problem.answer, "row": number})
    return Dataset.from_list(rows)


def texts(completions: Sequence[Any]) -> list[str]:
    """The text of each response, which TRL passes as a list of messages, or as text if there is no chat template."""
    return [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]


def box_reward(completions: Sequence[Any], answer: Sequence[str | None], **_: Any) -> list[float | None]:
    """1 for a response whose last box holds the answer, else 0; None if the problem has no short answer."""
    return [mark(text, expected) for text, expected in zip(texts(completions), answer, strict=True)]


def number_reward(completions: Sequence[Any], answer: Sequence[str | None], **_: Any) -> list[float | None]:
    """1 for a response whose last number is the answer, else 0; None if the answer isn't a number."""
    return [_ends_with(text, expected) for text, expected in zip(texts(completions), answer, strict=True)]


def format_reward(completions: Sequence[Any], **_: Any) -> list[float | None]:
    """1 for a response with a complete box, whatever it holds, else 0."""
    return [float(boxed(text) is not None) for text in texts(completions)]


def is_number(answer: str) -> bool:
    """Whether an answer is a plain number."""
    return NUMBER.fullmatch(normalised(answer)) is not None


def _ends_with(text: str, answer: str | None) -> float | None:
    if answer is None or not is_number(answer):
        return None
    found = NUMBERS.findall(text)
    return float(bool(found) and normalised(found[-1]) == normalised(answer))
