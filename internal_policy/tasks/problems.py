"""Problems and their answers."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any, TypedDict, cast

from internal_policy.errors import InputError, quoted
from internal_policy.tasks.marking import boxed
from internal_policy.tasks.rows import Row, at, columns_of, from_hub, hub_rows, read_rows

PROBLEM_COLUMNS = ("problem", "question", "prompt")
"""Columns that may hold the problem, in order of preference; one with chat messages comes first."""
ANSWER_COLUMNS = ("answer", "final_answer", "reward_model", "solution")
"""Columns that may hold its answer, in order of preference; `reward_model` is verl's, and holds `ground_truth`."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold the reasoning before its content."""

LONGEST_ANSWER = 60
"""A longer `solution` in characters without a box is taken for a derivation, not for an answer to mark by."""


class Message(TypedDict):
    """One turn of a conversation; it may have more keys for the chat template, such as tool_calls."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """A question, with the answer that marks its responses."""

    messages: tuple[Message, ...]
    """The conversation, with at least one message from the user."""
    answer: str | None
    """What a correct response has in its last box; None if responses can't be marked."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the chat template describes to the model."""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The other columns of its row, for reward functions."""

    @property
    def text(self) -> str:
        """The last user message."""
        return [message["content"] for message in self.messages if message["role"] == "user"][-1]

    def framed(self, system_prompt: str | None, prompt_suffix: str | None) -> "Problem":
        """The problem with a system message in place of its own, and a line after its last message."""
        *context, last = self.messages
        if system_prompt is not None:
            context = [message for message in context if message["role"] != "system"]
            context.insert(0, Message(role="system", content=system_prompt))
        if prompt_suffix is not None:
            last = cast(Message, {**last, "content": f"{last['content']}\n{prompt_suffix}"})
        return replace(self, messages=(*context, last))


def read_problems(
    source: str,
    *,
    problem_column: str | None = None,
    answer_column: str | None = None,
    limit: int | None = None,
    system_prompt: str | None = None,
    prompt_suffix: str | None = None,
) -> list[Problem]:
    """The first `limit` problems of a .jsonl, .json, .csv or .parquet file, or of a hub data set `name[:config]@split`.

    In a .txt file each line that isn't blank is a problem, without an answer. Columns are found by name
    (PROBLEM_COLUMNS, ANSWER_COLUMNS) unless they are given. `system_prompt` and `prompt_suffix` change every problem
    as `Problem.framed` does. Raises InputError.
    """
    rows = hub_rows(source, limit) if from_hub(source) else read_rows(Path(source), limit)
    problems = of_rows(rows, source, problem_column, answer_column)
    return [problem.framed(system_prompt, prompt_suffix) for problem in problems]


def mixed(sets: Mapping[str, Sequence[Problem]]) -> list[Problem]:
    """The problems of several sets in one list, mixed evenly.

    Each problem keeps its order within its set, and gets the set's name in the column `problems`.
    """
    placed = [
        ((number + 0.5) / len(problems), replace(problem, columns={**problem.columns, "problems": name}))
        for name, problems in sets.items()
        for number, problem in enumerate(problems)
    ]
    return [problem for _, problem in sorted(placed, key=itemgetter(0))]


def of_rows(
    rows: Sequence[Row], source: str, problem_column: str | None = None, answer_column: str | None = None
) -> list[Problem]:
    """The problems in rows; error messages name `source`. Columns are found as by `read_problems`."""
    columns = columns_of(rows)
    for given in (problem_column, answer_column):
        if given is not None and given not in columns:
            raise InputError(f"{source} has no column '{given}'. Its columns are {', '.join(columns)}.")
    problem_column = problem_column or _with_messages(rows) or _first(PROBLEM_COLUMNS, columns)
    answer_column = answer_column or _first(ANSWER_COLUMNS, columns)
    if problem_column is None:
        raise InputError(
            f"{source} has no column called {', '.join(PROBLEM_COLUMNS[:-1])} or {PROBLEM_COLUMNS[-1]}. "
            f"Its columns are {', '.join(columns)}. Choose the one with the problems with --problem-column."
        )
    problems = []
    for row in rows:
        with at(row):
            messages = messages_of(row.values, problem_column)
            if messages[-1]["role"] != "user":
                raise InputError(
                    f"the conversation in '{problem_column}' ends with the {messages[-1]['role']}, not with the user."
                )
            cell = row.values.get(answer_column) if answer_column else None
            answer = answer_of(cell)
            if answer_column == "solution" and answer == str(cell).strip() and len(str(cell)) > LONGEST_ANSWER:
                answer = None
            others = {name: value for name, value in row.values.items() if name != problem_column}
            problems.append(Problem(messages, answer, tools_of(row.values), others))
    return problems


def messages_of(values: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """The conversation in a cell: a list of chat messages, or text, which counts as one user message.

    Messages keep all of their keys, for the chat template. Raises InputError if the cell is neither, or if the last
    user message is empty.
    """
    cell = values.get(column)
    turns = [{"role": "user", "content": cell}] if isinstance(cell, str) else cell
    if not isinstance(turns, list) or not all(map(_is_message, turns)):
        raise InputError(
            f"'{column}' holds {quoted(cell)}; expected text, or a list of messages with a text role and content."
        )
    given = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
    messages = tuple(cast(Message, {"content": "", **turn}) for turn in given)
    questions = [message["content"] for message in messages if message["role"] == "user"]
    if not questions or not questions[-1].strip():
        raise InputError(f"'{column}' is empty ({quoted(cell)}). Add the user's text, or remove the row.")
    return messages


def tools_of(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The JSON schemas in the cell `tools` of a row, or in its JSON text. Raises InputError for anything else."""
    cell = tools = values.get("tools")
    if isinstance(cell, str) and cell:
        with suppress(ValueError):
            tools = json.loads(cell)
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(
            f"'tools' holds {quoted(cell)}; expected a list of JSON schemas. Fix it, or remove the column."
        )
    return tuple(tools)


PRINTED = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?e[+-][0-9]{2,3}")
"""A very small or large number as Python prints it; LaTeX would read 1e-05 as a product with Euler's number."""


def answer_of(cell: Any) -> str | None:
    r"""The answer in a cell: the last \boxed{} of a solution, what follows GSM8K's `####`, or all of it.

    verl's `reward_model` holds it as `ground_truth`. Numbers are written out: 0.00001, not 1e-05. None if the cell is
    empty. Raises InputError if it is neither text nor a finite number.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("ground_truth")
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if cell is None or cell != cell:  # pandas writes a missing answer as NaN
        return None
    is_decimal = isinstance(cell, float | Decimal)
    if not (math.isfinite(cell) if is_decimal else isinstance(cell, str | int)):
        raise InputError(f"the answer is {quoted(cell)}; expected text or a number.")
    text = str(cell)
    answer = (boxed(text) or text.rpartition("####")[2]).strip()
    return f"{Decimal(answer):f}" if is_decimal or PRINTED.fullmatch(answer) else answer or None


def _first(names: Iterable[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _with_messages(rows: Sequence[Row]) -> str | None:
    """The first of PROBLEM_COLUMNS with chat messages in every row; text beside them lacks their instructions."""
    lists = (name for name in PROBLEM_COLUMNS if all(isinstance(row.values.get(name), list) for row in rows))
    return next(lists, None) if rows else None


def _is_message(turn: Any) -> bool:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        return False
    more = any(value is not None for key, value in turn.items() if key not in ("role", "content"))
    return isinstance(turn.get("content"), str) or (more and turn.get("content") is None)
