"""Inspect: logs as `.eval` archives and as `.json` files."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

from internal_policy.errors import InputError, first_line, quoted
from internal_policy.tasks.formats.response import Response, list_of, object_of, reasoning_of, text_of
from internal_policy.tasks.marks import first, marks_of, number_of
from internal_policy.tasks.problems import messages_of
from internal_policy.tasks.rows import Row, at

COLUMNS = ("id", "epoch", "input", "target", "output")
"""What every sample has."""
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""What a grade counts, as in Inspect's value_to_float."""
FOLDER = "samples/"
"""Where an archive keeps its samples."""
ZSTD = 93
"""Number of the compression that Inspect uses, which Python's zipfile can't read before 3.14."""
LARGEST = 2**30
"""Bytes of the largest sample that is read."""
TOOL_KEYS = ("tool_call_id", "name")
"""Keys of a message from a tool that chat templates read."""


def archive(path: Path) -> Iterator[Row]:
    """The samples of an archive, in its order. Raises InputError for any other zip file, and for a damaged one."""
    try:
        with ZipFile(path) as found, path.open("rb") as file:
            names = [part for part in found.infolist() if part.filename.startswith(FOLDER)]
            for part in names:
                where = f"{path}, {part.filename}"
                try:
                    values = json.loads(_content(found, file, part))
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{where} isn't JSON ({first_line(error)}). Copy the log again.") from error
                if not isinstance(values, dict):
                    raise InputError(f"{where} holds {quoted(values)}; expected a sample of Inspect.")
                yield Row(where, values)
    except (BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} isn't a complete Inspect log ({first_line(error)}). Copy it again.") from error


def _content(found: ZipFile, file: Any, part: ZipInfo) -> bytes:
    """The bytes of a part of an archive, checked."""
    if part.file_size > LARGEST:
        raise BadZipFile(f"{part.filename} has {part.file_size:,} bytes")
    if part.compress_type != ZSTD:
        return found.read(part)
    import pyarrow

    file.seek(part.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise BadZipFile(f"{part.filename} has no header")
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    packed = file.read(part.compress_size)
    with pyarrow.input_stream(pyarrow.BufferReader(packed), compression="zstd") as stream:
        content = stream.read(part.file_size + 1)
    if len(content) != part.file_size or zlib.crc32(content) != part.CRC:
        raise BadZipFile(f"{part.filename} is damaged")
    return content


def samples(path: Path, log: Mapping[str, Any]) -> Iterator[Row]:
    """The samples of a `.json` log. Raises InputError."""
    for number, values in enumerate(log.get("samples") or [], 1):
        where = f"{path}, sample {number}"
        if not isinstance(values, dict):
            raise InputError(f"{where} holds {quoted(values)}; expected a sample of Inspect.")
        yield Row(where, values)


def read(rows: Iterator[Row]) -> Iterator[Response]:
    """The last message of each sample, after all before it. Raises InputError.

    The epoch is the number of the response. Scores are marks, with grades as numbers, and the first is the reward.
    """
    for row in rows:
        with at(row):
            yield _response(row)


def _response(row: Row) -> Response:
    values = row.values
    choices = list_of(object_of(values, "output"), "choices")
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    attached = values.get("attachments") or {}
    message = _message(choice.get("message") or {"role": "assistant", "content": ""}, attached)
    marks = _marks(values.get("scores") or {})
    reason, epoch = choice.get("stop_reason"), values.get("epoch")
    return Response(
        where=row.where,
        prompt=_context(values, attached),
        text=message["content"],
        parts={key: value for key, value in message.items() if key not in ("role", "content")},
        answer=_answer(values.get("target")),
        reward=first(marks),
        marks=marks,
        sample=epoch - 1 if isinstance(epoch, int) and 0 < epoch < 2**31 else None,
        ended=None if reason in (None, "unknown") else reason in ("stop", "tool_calls"),
    )


def _answer(target: Any) -> str | None:
    """The only correct answer; None if there are several, or none."""
    only = target[0] if isinstance(target, list) and len(target) == 1 else target
    return only if isinstance(only, str) else None


def _context(values: Mapping[str, Any], attached: Mapping[str, Any]) -> Sequence[Any]:
    """The messages before the last one from the assistant."""
    found = [_message(message, attached) for message in values.get("messages") or []]
    replies = [number for number, message in enumerate(found) if message["role"] == "assistant"]
    if replies:
        return messages_of({"messages": found[: replies[-1]]}, "messages")
    given = values.get("input")
    turns = [_message(one, attached) for one in given] if isinstance(given, list) else given
    return messages_of({"input": turns}, "input")


def _message(message: Any, attached: Mapping[str, Any]) -> dict[str, Any]:
    """A message of Inspect as one for a chat template."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"a message is {quoted(message)}; expected a role and content.")
    content = message.get("content")
    text = text_of(content, "content")
    kept: dict[str, Any] = {"role": message["role"], "content": attached.get(text.removeprefix("attachment://"), text)}
    if reasoning := reasoning_of(content):
        kept["reasoning_content"] = reasoning
    if calls := message.get("tool_calls"):
        kept["tool_calls"] = [
            {"type": "function", "function": {"name": call.get("function"), "arguments": call.get("arguments")}}
            for call in calls
            if isinstance(call, dict)
        ]
    return kept | {key: message[key] for key in TOOL_KEYS if message["role"] == "tool" and message.get(key)}


def _marks(scores: Any) -> dict[str, float]:
    """The scores of a sample by scorer; those of a scorer with several values are called SCORER.NAME."""
    found: dict[str, Any] = {}
    for name, score in scores.items() if isinstance(scores, Mapping) else ():
        value = score.get("value") if isinstance(score, Mapping) else None
        many = value if isinstance(value, Mapping) else {"": value}
        for key, one in many.items():
            found[f"{name}.{key}" if key else name] = _grade(one)
    return marks_of(found)


def _grade(value: Any) -> float | None:
    """A score as a number: C, P, I and N, words, digits, or a number; None for anything else."""
    if not isinstance(value, str):
        return number_of(value)
    if value in GRADES or value.lower() in GRADES:
        return GRADES.get(value, GRADES.get(value.lower()))
    try:
        return number_of(float(value))
    except ValueError:
        return None
