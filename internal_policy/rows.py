"""Read the rows of a file or of a data set on the hub, each with its place for error messages."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from internal_policy.errors import InputError


@dataclass(frozen=True)
class Row:
    """A row of a file or a data set."""

    where: str
    """Its place, for error messages: `problems.jsonl, line 3`."""
    values: Mapping[str, Any]
    """Column -> cell."""


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
                raise InputError(f"{where} holds {quoted(values)}; expected is one JSON object a line.")
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
            f"{path} is not a whole Parquet file ({first_line(error)}); write or copy it again."
        ) from error


READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def hub_rows(source: str, limit: int | None) -> list[Row]:
    """The first `limit` rows of a data set `name[:config]@split` of the hub. Raises InputError."""
    import datasets

    name, _, split = source.rpartition("@")
    path, _, config = name.partition(":")
    try:
        loaded: Any = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # the hub, the network, the cache and the data set's own files fail in a dozen ways
        raise InputError(
            f"The data set {source} could not be loaded ({first_line(error)}); check NAME[:CONFIG]@SPLIT and the "
            "network, log in with `hf auth login` if it is gated, or give a local .jsonl, .csv or .parquet file."
        ) from error
    rows = (Row(f"{source}, row {number}", values) for number, values in enumerate(loaded, 1))
    return _some(rows, limit, source)


def _some(rows: Iterator[Row], limit: int | None, source: str) -> list[Row]:
    if limit is not None and limit < 1:
        raise InputError(f"The limit is {limit}; it must be 1 or more.")
    some = list(islice(rows, limit if limit is None else min(limit, sys.maxsize)))
    if not some:
        raise InputError(f"{source} is empty; a row for each problem or rollout was expected.")
    return some


def quoted(cell: Any) -> str:
    """A cell as an error message shows it, its beginning."""
    return "nothing" if cell is None else f"{cell!r:.60}"


def first_line(error: Exception) -> str:
    """What an error says, as part of a sentence."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
