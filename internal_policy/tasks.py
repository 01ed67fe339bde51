"""What is asked, and how an answer is marked."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from internal_policy.errors import InputError

PROBLEM_COLUMNS = ("problem", "question", "prompt")
"""Where a problem is looked for, in this order."""
ANSWER_COLUMNS = ("answer", "final_answer", "reward_model", "solution")
"""Where its answer is looked for, in this order; `reward_model` is verl's, and holds `ground_truth`."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """A question, with the answer that it is marked by."""

    messages: tuple[Message, ...]
    """The conversation that asks it; one of them at least is the user's."""
    answer: str | None
    """What a right response has in its last box; None if it cannot be marked."""

    @property
    def text(self) -> str:
        """The last user message."""
        return [message["content"] for message in self.messages if message["role"] == "user"][-1]


@dataclass(frozen=True)
class Row:
    """A row of a file or a data set."""

    where: str
    """Its place, for error messages: `problems.jsonl, line 3`."""
    values: Mapping[str, Any]
    """Column -> cell."""


def read_problems(
    source: str, *, problem_column: str | None = None, answer_column: str | None = None, limit: int | None = None
) -> list[Problem]:
    """The first `limit` problems of a .jsonl, .csv or .parquet file, or of a data set `name[:config]@split` of the hub.

    Columns are found by name (PROBLEM_COLUMNS, ANSWER_COLUMNS) unless they are given. Raises InputError.
    """
    path = Path(source)
    from_hub = "@" in source and path.suffix.lower() not in READERS and not path.exists()
    rows = _hub_rows(source, limit) if from_hub else read_rows(path, limit)
    columns = columns_of(rows)
    for given in (problem_column, answer_column):
        if given is not None and given not in columns:
            raise InputError(f"{source} has no column '{given}'; choose one of those there: {', '.join(columns)}.")
    asked = problem_column or _first(PROBLEM_COLUMNS, columns)
    marked = answer_column or _first(ANSWER_COLUMNS, columns)
    if asked is None:
        raise InputError(
            f"{source} has no column {', '.join(PROBLEM_COLUMNS[:-1])} or {PROBLEM_COLUMNS[-1]}, "
            f"but {', '.join(columns)}; name the one that holds the problems with --problem-column."
        )
    problems = []
    for row in rows:
        with at(row):
            messages = messages_of(row.values, asked)
            if messages[-1]["role"] != "user":
                raise InputError(f"the conversation in '{asked}' ends with the {messages[-1]['role']}, not the user.")
            problems.append(Problem(messages, answer_of(row.values.get(marked)) if marked else None))
    return problems


def messages_of(values: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """The conversation in a cell: a list of chat messages, or text, which is one message of the user's.

    Raises InputError if it is neither, or if the last thing the user says is empty.
    """
    cell = values.get(column)
    turns = [{"role": "user", "content": cell}] if isinstance(cell, str) else cell
    if not isinstance(turns, list) or not all(map(_is_message, turns)):
        raise InputError(
            f"'{column}' holds {_quoted(cell)}; expected is text, or a list of messages with a text role and content."
        )
    messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)
    said = [message["content"] for message in messages if message["role"] == "user"]
    if not said or not said[-1].strip():
        raise InputError(f"'{column}' is empty ({_quoted(cell)}); give the user's text, or remove the row.")
    return messages


def answer_of(cell: Any) -> str | None:
    r"""The answer in a cell: the last \boxed{} of a solution, what follows GSM8K's `####`, or all of it.

    verl's `reward_model` holds it as `ground_truth`. None if the cell is empty.
    Raises InputError if it is neither text nor a number.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("ground_truth")
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if cell is None or cell != cell:  # NaN is how pandas writes that there is none
        return None
    if not isinstance(cell, str | int | float):
        raise InputError(f"the answer is {_quoted(cell)}; expected is text or a number.")
    text = str(cell)
    return (boxed(text) or text.rpartition("####")[2]).strip() or None


def reward(response: str, answer: str) -> float:
    """1.0 if the last box of `response` holds `answer`, both normalised, else 0.0; nothing is ever evaluated."""
    given = normalised(boxed(response) or "")
    return float(given != "" and given == normalised(answer))


BRACES = re.compile(r"(\\boxed\s*\{)|\\\\(?!boxed)|\\[{}]|([{}])")


def boxed(text: str) -> str | None:
    r"""Content of the last complete \boxed{...}, None if there is none; time grows linearly with the text.

    Where boxes are nested the inner one is the last. Escaped braces (`\{`) do not count, nor do boxes never closed.
    """
    unclosed: list[tuple[bool, int]] = []
    last, content = -1, None
    for match in BRACES.finditer(text):
        box, brace = match.groups()
        if box or brace == "{":
            unclosed.append((box is not None, match.end()))
        elif brace and unclosed:
            is_box, start = unclosed.pop()
            if is_box and start > last:
                last, content = start, text[start : match.start()]
    return content


REWRITES = (
    (re.compile(r"\\!\s*|\\[,$]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\text\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\s+"), " "),
)
NUMBER = re.compile(r"([+-]?)(?=\.?[0-9])([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]*))?")


def normalised(answer: str) -> str:
    r"""`answer` without what changes no value: $, \text, wide spaces, thousands commas, a leading +, final zeros."""
    for pattern, replacement in REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip(" $").rstrip(" $.")
    number = NUMBER.fullmatch(answer)
    if number is None:
        return answer.removeprefix("+")
    sign, whole, decimals = number.groups("")  # digits stay text: no answer is too long for it
    whole, decimals = whole.replace(",", "").lstrip("0"), decimals.rstrip("0")
    value = (whole or "0") + ("." + decimals if decimals else "")
    return "-" + value if sign == "-" and value != "0" else value


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """The first `limit` rows of a .jsonl, .csv or .parquet file; what follows is not parsed. Raises InputError."""
    if not path.is_file():
        raise InputError(
            f"There is no file {path}; check the path, or for a data set of the hub write NAME[:CONFIG]@SPLIT, "
            "such as openai/gsm8k:main@test."
        )
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path} ends in '{path.suffix}'; the files that can be read are {', '.join(READERS)}.")
    return _some(READERS[path.suffix.lower()](path), limit, str(path))


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The names of all columns that occur, in the order they do."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


@contextmanager
def at(row: Row) -> Iterator[None]:
    """Inside, an InputError also says where the row is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from error


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                if b"\\ud" in line.lower():
                    json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not JSON in UTF-8 ({error}); correct or remove it.") from error
            if not isinstance(values, dict):
                raise InputError(f"{where} holds {_quoted(values)}; expected is one JSON object a line.")
            yield Row(where, values)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a long response is one field
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                if None in values:
                    raise csv.Error("more cells than columns")
                yield Row(f"{path}, line {reader.line_num}", values)
        except (csv.Error, UnicodeDecodeError) as error:
            where = f"{path}, line {reader.line_num}"
            raise InputError(f"{where} is not CSV in UTF-8 ({error}); correct or remove it.") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            rows = (values for batch in file.iter_batches(1024) for values in batch.to_pylist())
            yield from (Row(f"{path}, row {number}", values) for number, values in enumerate(rows, 1))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is not a whole Parquet file ({_first_line(error)}); write or copy it again."
        ) from error


READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _hub_rows(source: str, limit: int | None) -> list[Row]:
    import datasets

    name, _, split = source.rpartition("@")
    path, _, config = name.partition(":")
    try:
        loaded: Any = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # the hub, the network, the cache and the data set's own files fail in a dozen ways
        raise InputError(
            f"The data set {source} could not be loaded ({_first_line(error)}); check NAME[:CONFIG]@SPLIT and the "
            "network, log in with `hf auth login` if it is gated, or give a local .jsonl, .csv or .parquet file."
        ) from error
    rows = (Row(f"{source}, row {number}", values) for number, values in enumerate(loaded, 1))
    return _some(rows, limit, source)


def _some(rows: Iterator[Row], limit: int | None, source: str) -> list[Row]:
    if limit is not None and limit < 1:
        raise InputError(f"The limit is {limit}; it must be 1 or more.")
    some = list(islice(rows, limit))
    if not some:
        raise InputError(f"{source} is empty; a row for each problem or rollout was expected.")
    return some


def _first(names: Iterable[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def _quoted(cell: Any) -> str:
    return "nothing" if cell is None else f"{cell!r:.60}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
