"""The formats that responses are read in, recognised by their columns."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from internal_policy.errors import InputError, joined
from internal_policy.tasks import rows
from internal_policy.tasks.formats import batch, inspect, lighteval, lists, lm_eval, trl, verl
from internal_policy.tasks.formats.response import Response
from internal_policy.tasks.rows import Row

Found = Row | Response
"""A row with columns of our own, or a response that was made of other columns."""


@dataclass(frozen=True)
class Format:
    """How one tool writes responses."""

    name: str
    """What it is called in messages."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a row has its columns."""
    read: Callable[[Iterator[Row]], Iterator[Found]]
    """Makes responses of rows."""
    together: bool = False
    """Whether its files are read together, because prompts and responses are in different ones."""


def _has(columns: Sequence[str], values: Mapping[str, Any]) -> bool:
    return values.keys() >= {*columns}


def _is_ours(values: Mapping[str, Any]) -> bool:
    complete = (("prompt_ids", "response_ids"), ("prompt", "response"), ("messages",), ("text",))
    return any(_has(columns, values) for columns in complete)


def _as_it_is(given: Iterator[Row]) -> Iterator[Found]:
    return given


FORMATS = (
    Format("Inspect", partial(_has, inspect.COLUMNS), inspect.read),
    Format("internal-policy", _is_ours, _as_it_is),
    Format("vLLM or OpenAI batches", batch.fits, batch.read, together=True),
    Format("lm-eval", partial(_has, lm_eval.COLUMNS), lm_eval.read),
    Format("lighteval", partial(_has, lighteval.COLUMNS), lighteval.read),
    Format("verl", partial(_has, verl.COLUMNS), verl.read),
    Format("TRL", partial(_has, trl.COLUMNS), trl.read),
    Format("lists of responses", lists.fits, lists.read),
)
"""The first that fits is taken. Add a row to read another tool's files."""
EXPECTED = (
    "prompt_ids and response_ids, prompt and response, messages, text, prompt and completion (TRL), prompt and "
    "responses, completions or outputs as a list, or the columns of verl, lm-eval, lighteval, Inspect, or a batch of "
    "vLLM or OpenAI"
)
"""The columns that are read, for error messages."""
ARCHIVE, PARQUET = b"PK\x03\x04", b"PAR1"
"""How these files begin, whatever they are called."""
LOG = {"eval", "samples"}
"""What an Inspect log as JSON has."""
ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".eval")
"""Files of a folder that are looked at."""


def unknown(values: Mapping[str, Any]) -> InputError:
    """The error for a row whose columns fit no format."""
    return InputError(f"the columns are {', '.join(values)}; expected {EXPECTED}.")


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file, recognised by how it begins, or else by its name. Raises InputError."""
    rows.check_file(path)
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(ARCHIVE):
        return inspect.archive(path)
    if head.startswith(PARQUET):
        return rows.parquet(path)
    ending, start = path.suffix.lower(), head.lstrip()[:1]
    if ending == ".json" or (ending not in rows.READERS and start == b"["):
        found = rows.json_of(path)
        is_log = isinstance(found, dict) and found.keys() >= LOG
        return inspect.samples(path, found) if is_log else rows.listed(path, found)
    if ending not in rows.READERS and start == b"{":
        return rows.jsonl(path)
    return rows.rows_in(path, rows.document)


def format_of(values: Mapping[str, Any]) -> Format | None:
    """The format that a row fits; None if there is none."""
    return next((form for form in FORMATS if form.fits(values)), None)


def files_in(folder: Path) -> list[Path]:
    """The files of a folder with responses, by name and number. Raises InputError if it has none."""
    found = [path for path in sorted(folder.iterdir(), key=_order) if path.suffix.lower() in ENDINGS and path.is_file()]
    known = [path for path in found if _is_known(path)]
    if not known:
        raise InputError(
            f"{folder} has no file with responses among its {len(found)} files in {joined(ENDINGS)}; expected "
            f"{EXPECTED}."
        )
    return known


def listed(given: Iterable[str]) -> list[str]:
    """Files of responses, with those of each folder in its place. Raises InputError for a folder without any."""
    return [file for name in given for file in (map(str, files_in(Path(name))) if os.path.isdir(name) else [name])]  # noqa: PTH112


def _order(path: Path) -> tuple[bool, int, str]:
    """Numbers first, as numbers: verl calls its files 1.jsonl to 100.jsonl."""
    is_number = path.stem.isdecimal() and len(path.stem) < 20
    return not is_number, int(path.stem) if is_number else 0, path.name


def _is_known(path: Path) -> bool:
    if path.suffix.lower() == ".json" and not isinstance(found := rows.json_of(path), list):
        return isinstance(found, dict) and found.keys() >= LOG
    first = next(rows_of(path), None)
    return first is not None and format_of(first.values) is not None


def read(paths: Sequence[Path]) -> Iterator[Found]:
    """The responses in files, in their order; those of a format that is read `together` come where its first file is.

    Raises InputError for an empty file, and for one that fits no format.
    """
    groups: list[tuple[Format, Iterable[Row]]] = []
    for path in paths:
        form, found = _opened(path)
        same = [number for number, (other, _) in enumerate(groups) if form.together and other is form]
        if same:
            groups[same[0]] = form, chain(groups[same[0]][1], found)
        else:
            groups.append((form, found))
    for form, found in groups:
        yield from form.read(iter(found))


def of_rows(given: Iterable[Row]) -> Iterator[Found]:
    """The responses in rows, which all have the format of the first."""
    found = iter(given)
    if (first := next(found, None)) is None:
        return iter(())
    form = format_of(first.values)
    return _as_it_is(chain([first], found)) if form is None else form.read(chain([first], found))


def _opened(path: Path) -> tuple[Format, Iterator[Row]]:
    found = rows_of(path)
    if (first := next(found, None)) is None:
        raise InputError(f"{path} is empty. It needs one row for each response.")
    if (form := format_of(first.values)) is None:
        with rows.at(first):
            raise unknown(first.values)
    return form, chain([first], found)
