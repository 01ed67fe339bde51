"""Read the rows of a file or of a data set on the hub, each with its place for error messages."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from internal_policy.errors import InputError, check_path, first_line, quoted
from internal_policy.tasks.formulas import unguarded

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Row:
    """A row of a file or a data set."""

    where: str
    """Its place, for error messages: `problems.jsonl, line 3`."""
    values: Mapping[str, Any]
    """Column -> cell."""


def lines(path: Path) -> Iterator[Row]:
    """A row for each line of a text file that isn't blank, as a problem. Raises InputError."""
    for number, line in enumerate(text_of(path.read_bytes(), str(path)).split("\n"), 1):
        if line.strip():
            yield Row(f"{path}, line {number}", {"problem": line})


def document(path: Path) -> Iterator[Row]:
    """A single row with all of a text file, as a text. Raises InputError."""
    yield Row(str(path), {"text": text_of(path.read_bytes(), str(path))})


def text_of(content: bytes, where: str) -> str:
    """The text in `content`, without a byte order mark and without the line break at its end.

    Line breaks become newlines. Raises InputError for anything but UTF-8, saying that it is in `where`.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{where}, line {line} isn't UTF-8 ({error.reason}). Save it as UTF-8.") from error
    return text.replace("\r\n", "\n").removesuffix("\n")


def read_rows(path: Path, limit: int | None = None, txt: Callable[[Path], Iterator[Row]] = lines) -> list[Row]:
    """The first `limit` rows of a .jsonl, .json, .csv, .parquet or .txt file; `txt` reads a .txt file.

    Raises InputError.
    """
    return _some(rows_in(path, txt), limit, str(path))


def rows_in(path: Path, txt: Callable[[Path], Iterator[Row]] = lines) -> Iterator[Row]:
    """The rows of a file, one after the other, as `read_rows` does."""
    check_file(path)
    if path.suffix.lower() not in READERS:
        raise InputError(f"Can't read {path}. Use a file that ends in {', '.join(READERS)}.")
    return {**READERS, ".txt": txt}[path.suffix.lower()](path)


def check_file(path: Path) -> None:
    """Raise InputError for a folder, and for a file that doesn't exist."""
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises for a long name
        raise InputError(f"{path} is a folder. Name a file in it: {', '.join(READERS)}.")
    if not os.path.isfile(path):  # noqa: PTH113
        check_path(path)
        raise InputError(
            f"There is no file {path!s:.200}. Check the path, or write NAME[:CONFIG]@SPLIT for a data set on the hub, "
            "such as openai/gsm8k:main@test."
        )


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The names of all columns, in order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


@runtime_checkable
class Placed(Protocol):
    """A row, or what was made of it."""

    @property
    def where(self) -> str:
        """Its place, for error messages."""
        ...


@contextmanager
def at(row: Placed) -> Iterator[None]:
    """Add the place of the row to an InputError raised inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from error


def jsonl(path: Path) -> Iterator[Row]:
    """A row for each line that isn't blank. Raises InputError for one that isn't a JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                values = _parsed(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} isn't JSON in UTF-8 ({error}). Fix or remove it.") from error
            if not isinstance(values, dict):
                raise InputError(f"{where} holds {quoted(values)}; expected one JSON object per line.")
            yield Row(where, values)


def _parsed(text: bytes) -> Any:
    values = json.loads(text)
    if b"\\ud" in text.lower():
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair isn't text
    return values


def json_of(path: Path) -> Any:
    """What a JSON file holds. Raises InputError."""
    try:
        return _parsed(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} isn't JSON in UTF-8 ({error}). Fix it, or write one object per line as .jsonl."
        ) from error


def listed(path: Path, objects: Any) -> Iterator[Row]:
    """A row for each object of a list in a JSON file. Raises InputError for anything else."""
    if not isinstance(objects, list):
        raise InputError(f"{path} holds {quoted(objects)}; expected a list of JSON objects, one per row.")
    for number, values in enumerate(objects, 1):
        where = f"{path}, row {number}"
        if not isinstance(values, dict):
            raise InputError(f"{where} holds {quoted(values)}; expected a JSON object.")
        yield Row(where, values)


def _json(path: Path) -> Iterator[Row]:
    return listed(path, json_of(path))


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a long response is one field
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                if None in values:
                    raise csv.Error("more cells than columns")
                if "response_ids" in values:  # as `export` writes it
                    values = {name: unguarded(cell) if cell else cell for name, cell in values.items()}
                yield Row(f"{path}, line {reader.line_num}", values)
        except (csv.Error, UnicodeDecodeError) as error:
            number = reader.line_num
            if isinstance(error, UnicodeDecodeError):  # Python decodes thousands of bytes ahead
                lines = enumerate(path.read_bytes().split(b"\n"), 1)
                number = next(n for n, line in lines if line.decode(errors="ignore").encode() != line)
            raise InputError(f"{path}, line {number} isn't CSV in UTF-8 ({error}). Fix or remove it.") from error


def parquet(path: Path) -> Iterator[Row]:
    """A row for each row of a Parquet file. Raises InputError."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for index in range(batch.num_rows):
                    number += 1
                    where = f"{path}, row {number}"
                    cells = zip(batch.schema, batch.columns, strict=True)
                    yield Row(where, {field.name: _cell(where, field, column[index]) for field, column in cells})
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} isn't a complete Parquet file ({first_line(error)}). Write or copy it again."
        ) from error


def _cell(where: str, field: "pyarrow.Field", cell: "pyarrow.Scalar") -> Any:
    """A cell as a Python value. Raises InputError for bytes that aren't text and for dates that Python can't hold."""
    try:
        return shortest(cell.as_py(), field.type)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: '{field.name}' can't be read as {field.type} ({first_line(error)}). Fix or remove the row."
        ) from error


def shortest(value: Any, kind: "pyarrow.DataType") -> Any:
    """`value` with floats as they were written: the float32 3.299999952316284 is 3.3.

    Nulls that Arrow adds to records for the keys of other records are dropped.
    """
    from pyarrow import types

    if value is None or not any(name in str(kind) for name in ("float", "struct")):  # Python floats are doubles already
        return value
    if types.is_floating(kind):
        return float(str(kind.to_pandas_dtype()(value)))
    if types.is_struct(kind):
        return {f.name: shortest(value[f.name], f.type) for f in kind if value[f.name] is not None}
    return [shortest(item, kind.value_type) for item in value] if types.is_list(kind) else value


READERS = {".jsonl": jsonl, ".json": _json, ".csv": _csv, ".parquet": parquet, ".txt": lines}


def from_hub(source: str) -> bool:
    """Whether `source` names a hub data set `name[:config]@split` rather than a file."""
    path = Path(source)
    _, mark, split = source.rpartition("@")
    return mark == "@" and "/" not in split and path.suffix.lower() not in READERS and not os.path.exists(path)  # noqa: PTH110


def hub_rows(source: str, limit: int | None) -> list[Row]:
    """The first `limit` rows of a data set `name[:config]@split` of the hub. Raises InputError.

    With a limit, rows are streamed, so that the rest isn't downloaded. A sliced split such as train[:10%] can't be
    streamed.
    """
    import datasets

    path, config, split = _parts(source)
    streamed = limit is not None and "[" not in split
    with _reachable(source):
        loaded: Any = datasets.load_dataset(path, config, split=split, streaming=streamed)
        kinds = loaded.features.arrow_schema if loaded.features else ()
        rows = (
            Row(f"{source}, row {number}", values | {k.name: shortest(values.get(k.name), k.type) for k in kinds})
            for number, values in enumerate(loaded, 1)
        )
        return _some(rows, limit, source)


def hub_revision(source: str) -> str:
    """The current commit of a hub data set, or offline that of its last download. Raises InputError."""
    import datasets

    path, config, _ = _parts(source)
    with _reachable(source):
        return str(datasets.load_dataset_builder(path, config).hash)


def _parts(source: str) -> tuple[str, str | None, str]:
    """The name, the configuration and the split in `name[:config]@split`."""
    name, _, split = source.rpartition("@")
    path, _, config = name.partition(":")
    return path, config or None, split


@contextmanager
def _reachable(source: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the hub, the network, the cache and the data set's own files fail in a dozen ways
        raise InputError(
            f"Can't load the data set {source} ({first_line(error)}). Check NAME[:CONFIG]@SPLIT and the network, "
            "log in with `hf auth login` if it is gated, or use a local .jsonl, .json, .csv or .parquet file."
        ) from error


def _some(rows: Iterator[Row], limit: int | None, source: str) -> list[Row]:
    if limit is not None and limit < 1:
        raise InputError(f"The limit is {limit}; it must be 1 or more.")
    some = list(islice(rows, limit if limit is None else min(limit, sys.maxsize)))
    if not some:
        raise InputError(f"{source} is empty. It needs one row for each problem or rollout.")
    return some
