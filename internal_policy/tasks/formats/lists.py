"""Several responses to a prompt in one row, in a list."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from internal_policy.errors import InputError, quoted
from internal_policy.tasks.formats.response import Response, ids_of, list_of, text_of
from internal_policy.tasks.marks import marks_of, number_of
from internal_policy.tasks.problems import ANSWER_COLUMNS, PROBLEM_COLUMNS, messages_of, tools_of
from internal_policy.tasks.rows import Row, at

LISTS = ("responses", "completions", "outputs")
"""Columns that may hold the responses."""
PROMPTS = ("prompt", *(name for name in PROBLEM_COLUMNS if name != "prompt"))
"""Columns that may hold their prompt."""
REWARDS = ("reward", "rewards", "score", "scores")
"""Columns that become the reward."""


def fits(values: Mapping[str, Any]) -> bool:
    """Whether a row has a prompt and a list of responses."""
    named = any(name in values for name in (*PROMPTS, "prompt_token_ids"))
    return named and any(isinstance(values.get(name), list) for name in LISTS)


def read(rows: Iterator[Row]) -> Iterator[Response]:
    """A response for each item of the list: a text, a message, or an object with text and token_ids, as in vLLM.

    Numbers in lists of the same length are marks of each response, other numbers are marks of all. Raises InputError.
    """
    for row in rows:
        with at(row):
            yield from _responses(row)


def _responses(row: Row) -> Iterator[Response]:
    values = row.values
    name = next((name for name in LISTS if isinstance(values.get(name), list)), LISTS[0])
    items = list_of(values, name)
    column = next((column for column in PROMPTS if values.get(column) is not None), "prompt")
    is_engine = any(isinstance(item, dict) and "token_ids" in item for item in items)
    cell, given = values.get(column), values.get("prompt_token_ids")
    prompt: Any = (
        cell or "" if given is not None or (is_engine and isinstance(cell, str)) else messages_of(values, column)
    )
    answer = next((values[column] for column in ANSWER_COLUMNS if values.get(column) is not None), None)
    for number, item in enumerate(items):
        text, ids = _item(item, name)
        marks = _marks(values, {name, column}, number, len(items))
        yield Response(
            where=row.where,
            prompt=prompt,
            prompt_ids=None if given is None else ids_of(given, "prompt_token_ids"),
            text=text,
            ids=ids,
            tools=tools_of(values),
            answer=answer,
            reward=next((marks[reward] for reward in REWARDS if reward in marks), None),
            marks=marks,
            ended=_ended(item),
        )


def _item(item: Any, name: str) -> tuple[str, tuple[int, ...] | None]:
    """The text of a response, and its token ids if it has them."""
    if isinstance(item, str):
        return item, None
    if not isinstance(item, dict):
        raise InputError(f"'{name}' holds {quoted(item)}; expected texts, or objects with a text.")
    message = item.get("message", item)
    content = message.get("content", item.get("text")) if isinstance(message, dict) else message
    ids = item.get("token_ids")
    return text_of(content, name), None if ids is None else ids_of(ids, "token_ids")


def _ended(item: Any) -> bool | None:
    """Whether the model ended the response, by its finish_reason."""
    reason = item.get("finish_reason") if isinstance(item, dict) else None
    return None if reason is None else reason == "stop" and not isinstance(item.get("stop_reason"), str)


def _marks(values: Mapping[str, Any], skipped: set[str], number: int, count: int) -> dict[str, float]:
    """The marks of one of several responses."""
    own: dict[str, Any] = {}
    for name, cell in values.items():
        is_list = isinstance(cell, Sequence) and not isinstance(cell, str)
        if is_list and len(cell) == count and all(item is None or number_of(item) is not None for item in cell):
            own[name] = cell[number]
        elif not is_list:
            own[name] = cell
    return marks_of(own, skipped | {*ANSWER_COLUMNS, "prompt_token_ids"})
