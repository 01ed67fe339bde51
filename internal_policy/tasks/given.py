"""Read problems and rollouts from what Python code gives: lists of texts, dicts and objects, or the name of a file."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from internal_policy.errors import InputError
from internal_policy.tasks import problems as tasks
from internal_policy.tasks import rollouts as responses
from internal_policy.tasks.preview import PLAIN
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat
from internal_policy.tasks.rollouts import Rollout
from internal_policy.tasks.rows import READERS, Row, from_hub

_said: set[tuple[bool, str]] = set()
"""Prompts already described on stderr: whether they were read as plain text, and the tokenizer's chat template."""


def problems(given: Any, limit: int | None) -> list[Problem]:
    """Problems, questions, rows, or the name of a file, as problems. Raises InputError."""
    if _is_source(given, "problems"):
        return tasks.read_problems(str(given), limit=limit)
    items = _items(given, limit, "problems")
    return [
        item if isinstance(item, Problem) else tasks.of_rows([_row(item, number, "problem")], f"Item {number}")[0]
        for number, item in items
    ]


def rollouts(tokenizer: PreTrainedTokenizerBase, given: Any, limit: int | None, chat: Chat) -> list[Rollout]:
    """Rollouts, texts, rows, or the name of a file, as rollouts. Raises InputError."""
    note = partial(_say_once, (chat is None, str(tokenizer.chat_template)))
    if _is_source(given, "texts"):
        return responses.read_rollouts(given, tokenizer, chat, limit=limit, note=note)
    items = _items(given, limit, "texts")
    rows = [_row(item, number, "text") for number, item in items if not isinstance(item, Rollout)]
    read = iter(responses.of_rows(tokenizer, rows, chat, note))
    return [item if isinstance(item, Rollout) else next(read) for _, item in items]


def _say_once(template: tuple[bool, str], how: str) -> None:
    """Print how a prompt was read on stderr, once per process for each template and once for plain text."""
    if template in _said:
        return
    _said.add(template)
    print(how if how.startswith(PLAIN) else f"{how}\nFor plain text, pass chat=None.", file=sys.stderr)


def _is_source(given: Any, name: str) -> bool:
    """Whether `given` names a file or a data set. Raises InputError for any other string."""
    if not isinstance(given, str | Path):
        return False
    text = str(given)
    hub = name == "problems" and from_hub(text) and not any(map(str.isspace, text))
    endings = [*READERS, *([".eval"] if name == "texts" else [])]  # an Inspect log
    if isinstance(given, str) and not hub and Path(text).suffix.lower() not in endings:
        raise InputError(
            f"{name} is the string {text!r:.40}. Put texts in a list, or give the name of a {', '.join(endings)} file."
        )
    return True


def _items(given: Any, limit: int | None, name: str) -> list[tuple[int, Any]]:
    """The items of a list with their numbers, from 1. Raises InputError for anything but a list, and an empty one."""
    if not isinstance(given, list | tuple):
        raise InputError(f"{name} is {a_kind(given)}. Give a list of texts, dicts or rollouts.")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be 1 or more.")
    if not given:
        raise InputError(f"{name} is empty. Give a list of texts, dicts or rollouts.")
    return list(enumerate(given[:limit], 1))


def _row(item: Any, number: int, column: str) -> Row:
    """A text or a dict as a row. Raises InputError for anything else."""
    if isinstance(item, str):
        return Row(f"Item {number}", {column: item})
    if isinstance(item, Mapping):
        return Row(f"Item {number}", item)
    raise InputError(f"Item {number} is {a_kind(item)}. Give a {column}, or a dict.")


def a_kind(value: Any) -> str:
    """What kind of value it is, in words."""
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
