"""The tables of scans, on disk or in memory."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from internal_policy import bundle, files
from internal_policy.errors import DamageError, InputError, check_path
from internal_policy.models.naming import title
from internal_policy.scans import address, hub, records, schema, settings
from internal_policy.scans.cache import repair, root
from internal_policy.scans.records import ASKED, KINDS, RECORD, SCHEMA, VOCABULARY, part_path

LISTED = 10
"""The most scans that an error message lists."""
UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What Arrow raises for a damaged file."""


@dataclass(frozen=True, eq=False)
class Tables:
    """A scan in memory: the same tables as on disk."""

    record: Mapping[str, Any]
    """The fields of scan.json that don't concern files: model, n_layers, d_model, d_vocab, dtype, selection, ..."""
    arrow: Mapping[str, pa.Table]
    """Each kind of table by its name: rollouts, policies, layers, vocabulary."""

    @cached_property
    def rollouts(self) -> pd.DataFrame:
        """One row per rollout: problem, answer, prompt_ids, response_ids, response, reward, ..."""
        return self.arrow["rollouts"].to_pandas()

    @cached_property
    def policies(self) -> pd.DataFrame:
        """One row per rollout x position x readout x layer, one column per site and measure (`attn_out.entropy`).

        The row after the last layer holds the model's own policy, `final.entropy` and so on.
        """
        return self.arrow["policies"].to_pandas()

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row per rollout x readout x layer x site: `tokens` and the means over them of each measure."""
        return self.arrow["layers"].to_pandas()

    @cached_property
    def vocabulary(self) -> pd.DataFrame:
        """Token id -> its text."""
        return self.arrow["vocabulary"].to_pandas()

    def __str__(self) -> str:
        """Return the name for error messages."""
        return "This scan"


def digest(asked: Mapping[str, Any]) -> str:
    """The digest of a question: 12 hexadecimal digits.

    A file counts by its `content`, not by how its path was typed, and a model by its `identity`.
    """
    content = asked.get("content", {})
    held = {path: [Path(path).suffix, found] for path, found in content.items() if found and "sha256" in found}

    def resolved(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [resolved(item) for item in value]
        return held.get(value, value) if isinstance(value, str) else value

    named = {"model", "revision"} if "identity" in asked else set()
    plain = {name: resolved(value) for name, value in asked.items() if name not in named}
    others = {path: found for path, found in content.items() if path not in held}
    text = json.dumps({"schema": SCHEMA, **plain, "content": others}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder_of(model: str, asked: Mapping[str, Any]) -> Path:
    """The folder of the scan that `asked` describes: <root>/<model name>/<digest>."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", title(model).rstrip("/").removeprefix("/")).lstrip(".") or "model"
    return root() / name / digest(asked)


def write_table(path: Path, table: pa.Table, group: str | None = None, *, once: bool = False) -> None:
    """Write a Parquet file, whole or not at all, with checksums; a row group for each run of values in `group`."""
    table = table.replace_schema_metadata({"internal_policy.schema": str(SCHEMA)})
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [field.name for field in table.schema if field.name not in floats]
    ends = [table.num_rows]
    if group:
        values = table[group].to_numpy()
        ends = [*((values[1:] != values[:-1]).nonzero()[0] + 1).tolist(), table.num_rows]
    with files.replacing(path, once=once) as temporary:
        writer = pq.ParquetWriter(
            temporary,
            table.schema,
            compression="zstd",
            use_dictionary=others,  # pyright: ignore[reportArgumentType]
            use_byte_stream_split=floats,  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
        )
        with writer:
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                writer.write_table(table.slice(start, end - start))


def is_whole(folder: Path, part: int) -> bool:
    """Whether every table of a part was written and hasn't changed since."""
    known = records.of_part(folder, part)
    paths = [part_path(folder, kind, part) for kind in KINDS]
    return known is not None and all(
        path.name in known["files"] and files.fingerprint_once(path) == known["files"][path.name] for path in paths
    )


def has_end(path: Path) -> bool:
    """Whether a Parquet file exists and isn't cut short."""
    try:
        return path.is_file() and pq.read_metadata(path) is not None
    except UNREADABLE:
        return False


def asked(folder: Path) -> dict[str, Any]:
    """The question of a scan, finished or not (asked.json). Raises InputError if it is damaged."""
    path = folder / ASKED
    try:
        found = records.read(path)
        if type(found.get("digest")) is not str or type(found.get("product")) is not str:
            raise ValueError("it contains no settings")
        if wrong := settings.complaint(found.get("asked", {})):
            raise ValueError(wrong)
    except records.DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}). Remove the folder {folder} and scan again.") from error
    return found


def record(source: Path | Tables) -> Mapping[str, Any]:
    """The record of a scan (scan.json in its folder). Raises InputError if the folder has no complete scan."""
    if isinstance(source, Tables):
        return source.record
    folder = source
    path = folder / RECORD
    if not path.exists():
        state = f"an unfinished scan. {_how_to_finish(folder)}" if (folder / ASKED).exists() else "not a scan."
        raise InputError(f"{folder} is {state}" if folder.is_dir() else f"There is no folder {folder}.")
    return _record(folder, files.looks(path))


@lru_cache(maxsize=16)
def _record(folder: Path, looks: tuple[int, ...]) -> Mapping[str, Any]:  # noqa: ARG001
    """The record in a folder, cached until it is written again, because every figure asks for it many times."""
    path = folder / RECORD
    try:
        found = records.read(path)
    except records.DAMAGE as error:
        raise DamageError(f"{path} is damaged ({error}). {repair(folder)}") from error
    if found.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema version {str(found.get('schema'))[:60]}, but this version of internal-policy reads "
            f"{SCHEMA}. Update internal-policy, or scan again."
        )
    if wrong := records.complaint(found):
        raise DamageError(f"{path} is damaged ({wrong}). {repair(folder)}")
    return found


def _how_to_finish(folder: Path) -> str:
    if found := files.writers(folder):
        said = f"{', '.join(found)} {'is' if len(found) == 1 else 'are'}"
        return f"{said[0].upper()}{said[1:]} still writing it. Wait until it has finished."
    return "Run its command again to finish it."


def damaged(folder: Path) -> list[str]:
    """Names of the files of a whole scan that are missing, cut short or altered since they were written."""
    return [name for name, part in record(folder)["files"].items() if files.fingerprint(folder / name) != part]


def check_sizes(folder: Path) -> None:
    """Raise InputError if a file of a whole scan is missing or has changed in size, which is quick to check."""
    if short := cut_short(folder):
        raise DamageError(f"{folder / short[0]} is missing or cut short. {repair(folder)}")


def cut_short(folder: Path) -> list[str]:
    """Names of the files of a whole scan that are missing or have changed in size, which is quick to check."""
    with os.scandir(folder) as entries:  # a stat of each of thousands of parts through pathlib takes five times as long
        sizes = {entry.name: entry.stat().st_size for entry in entries if os.path.isfile(entry)}  # noqa: PTH113
    return [name for name, part in record(folder)["files"].items() if sizes.get(name) != part["bytes"]]


def read(
    source: Path | Tables, kind: str, columns: Sequence[str] | None = None, where: ds.Expression | None = None
) -> pd.DataFrame:
    """A table of a scan, or some of its columns and rows. Raises InputError for a part that is damaged."""
    return pa.concat_tables(pieces(source, kind, columns, where)).to_pandas()


def pieces(
    source: Path | Tables, kind: str, columns: Sequence[str] | None = None, where: ds.Expression | None = None
) -> Iterator[pa.Table]:
    """A table of a scan piece by piece: a folder has a piece for each part, tables in memory are one piece."""
    if isinstance(source, Tables):
        yield _chosen(ds.dataset(source.arrow[kind]), columns, where)
    else:
        for path in [source / VOCABULARY] if kind == "vocabulary" else parts(source, kind):
            yield read_part(path, columns, where)


def of_rollout(
    source: Path | Tables,
    kind: str,
    rollout: int,
    columns: Sequence[str] | None = None,
    where: ds.Expression | None = None,
) -> pa.Table:
    """The rows of one rollout; in a folder, only its part is read. Raises InputError if no part has it."""
    if not isinstance(rollout, Integral) or isinstance(rollout, bool):
        raise InputError(f"{rollout!r:.60} isn't the number of a rollout. Use a whole number from 0.")
    mine = ds.field("rollout") == rollout
    both = mine if where is None else mine & where
    if isinstance(source, Path):
        return read_part(_part_with(source, kind, rollout), columns, both)
    if not ds.dataset(source.arrow["rollouts"]).count_rows(filter=mine):
        raise _no_rollout(source, rollout)
    return pa.concat_tables(pieces(source, kind, columns, both))


def columns(source: Path | Tables, kind: str) -> list[str]:
    """Names of the columns of a table. Raises InputError if its first part is damaged."""
    if isinstance(source, Tables):
        return source.arrow[kind].column_names
    path = parts(source, kind)[0]
    with _readable(path):
        return pq.read_schema(path).names


def _chosen(dataset: ds.Dataset, columns: Sequence[str] | None, where: ds.Expression | None) -> pa.Table:
    return dataset.to_table(columns=list(columns) if columns else None, filter=where)


def read_part(path: Path, columns: Sequence[str] | None = None, where: ds.Expression | None = None) -> pa.Table:
    """One part of a table, its checksums checked. Raises InputError if it is damaged."""
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    with _readable(path):
        part = ds.dataset(path, format=ds.ParquetFileFormat(default_fragment_scan_options=options))
        if (path.parent / RECORD).exists() and (wrong := schema.complaint(path.stem.split("-")[0], part.schema)):
            raise ValueError(wrong)
        return _chosen(part, columns, where)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Check a file before Arrow reads it, because Arrow may crash on an altered one."""
    try:
        if path.exists() and not path.is_file():  # reading from a pipe may never end
            raise ValueError("it isn't a file")
        if records.is_altered(path):
            raise ValueError("it was changed after it was written" if path.exists() else "it is missing")
        yield
    except (*UNREADABLE, *records.DAMAGE) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamageError(f"{path} is damaged ({why}). {_remedy(path.parent)}") from error


def _remedy(folder: Path) -> str:
    if (folder / RECORD).exists():
        return repair(folder)
    return "Run the scan's command again." if (folder / ASKED).exists() else "Remove it and write it again."


def _part_with(folder: Path, kind: str, rollout: int) -> Path:
    """The file of a table with this rollout. Raises InputError if there is none or a part is damaged."""
    for told, path in zip(parts(folder, "rollouts"), parts(folder, kind), strict=True):
        with _readable(told):
            found = pq.read_metadata(told)
        groups = (found.row_group(n).column(0).statistics for n in range(found.num_row_groups))  # column 0: rollout
        if any(group.min <= rollout <= group.max for group in groups):
            return path
    raise _no_rollout(folder, rollout)


def _no_rollout(source: Path | Tables, rollout: int) -> InputError:
    found = record(source)
    if "shard" in found:
        return InputError(
            f"{source} has no rollout {rollout}, because it is only shard {found['shard']}. Merge all shards."
        )
    return InputError(f"{source} has no rollout {rollout}. Choose one from 0 to {found['rollouts'] - 1}.")


def parts(folder: Path, kind: str) -> list[Path]:
    """The files of one table of a whole scan, in order. Raises InputError as `record` does."""
    named = (records.PART.fullmatch(name) for name in record(folder)["files"])
    numbers = sorted(int(part[2]) for part in named if part and part[1] == kind)
    return [part_path(folder, kind, number) for number in numbers]


def scans(*, unfinished: bool = False) -> list[Path]:
    """Folders of the complete scans under `root()`, newest first; with `unfinished`, of the others too."""
    names = (ASKED, RECORD) if unfinished else (RECORD,)
    found = {path.parent for name in names for path in root().glob(f"*/*/{name}")}
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def find(name: str) -> Path:
    """The folder of a scan, given its path, the first digits of its digest, the name of a bundled one, or its address.

    One on the Hub, hf://datasets/org/name[@revision], is downloaded. Raises InputError, listing the scans that exist.
    """
    if address.is_address(name):
        return hub.scan(address.scan(name), record)
    check_path(name)
    folder = Path(name)
    if files.is_folder(folder) and any((folder / file).exists() for file in (RECORD, ASKED)):
        return folder
    if bundled := [folder for folder in bundle.scans() if folder.name == name]:
        return bundled[0]
    found = [folder for folder in scans(unfinished=True) if folder.name.startswith(name)] if name else []
    if len({folder.name for folder in found}) == 1:
        return found[0]  # those of one digest are equal: the same weights, under several names
    if found:
        names = ", ".join(folder.name for folder in found[:LISTED])
        raise InputError(f"{len(found)} scans begin with '{name}': {names}. Give more digits.")
    if files.is_folder(folder):
        return folder
    names = [folder.name for folder in (*bundle.scans(), *scans())]
    shown = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    raise InputError(
        f"There is no scan '{name:.80}' in {root()}. Choose one of {shown}; `internal-policy ls` lists them."
    )
