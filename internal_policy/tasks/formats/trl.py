"""TRL: `completions_STEP.parquet` of `log_completions`, and data sets with `prompt` and `completion`."""

from collections.abc import Iterator
from typing import Any

from internal_policy.errors import InputError, quoted
from internal_policy.tasks import cells
from internal_policy.tasks.formats.response import Response, text_of
from internal_policy.tasks.marks import first, marks_of
from internal_policy.tasks.problems import messages_of, tools_of
from internal_policy.tasks.rows import Row, at

COLUMNS = ("prompt", "completion")
"""Columns that every row has."""
NOT_A_REWARD = ("step", "advantage")
"""Numbers of a logged completion that no reward function gave."""


def read(rows: Iterator[Row]) -> Iterator[Response]:
    """A response for each row. Text is what the model read and wrote; messages are put through the chat template.

    Each reward function has a column, and the first of them is the reward. Raises InputError.
    """
    for row in rows:
        with at(row):
            values = row.values
            marks = marks_of(values, COLUMNS)
            rewards = {name: value for name, value in marks.items() if name not in NOT_A_REWARD}
            text, parts = _completion(values.get("completion"))
            prompt = values.get("prompt")
            yield Response(
                where=row.where,
                prompt=prompt if isinstance(prompt, str) else messages_of(values, "prompt"),
                text=text,
                parts=parts,
                tools=tools_of(values),
                answer=values.get("answer"),
                reward=cells.number(values, "reward") if "reward" in rewards else first(rewards),
                marks=marks,
            )


def _completion(cell: Any) -> tuple[str, dict[str, Any]]:
    """The text of a completion, and its reasoning and tool calls if it is a message."""
    if isinstance(cell, str):
        return cell, {}
    message = cell[0] if isinstance(cell, list) and len(cell) == 1 else None
    if not isinstance(message, dict) or message.get("role") != "assistant":
        raise InputError(f"'completion' holds {quoted(cell)}; expected text, or a list of one assistant message.")
    parts = {key: value for key, value in message.items() if key not in ("role", "content") and value}
    return text_of(message.get("content") or "", "completion"), parts
