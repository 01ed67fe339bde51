"""The record of a scan, checked when it is read."""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.errors import quoted
from internal_policy.measure.sites import SITES
from internal_policy.scans import settings

SCHEMA = 1
"""Version of the files of a scan; it is written into each of them."""
KINDS = ("rollouts", "policies", "layers")
"""The tables of a scan, each in numbered parts."""
ASKED, RECORD, VOCABULARY = "asked.json", "scan.json", "vocabulary.parquet"
PART = re.compile(rf"({'|'.join(KINDS)})-(\d{{5,}})\.parquet")
"""Name of a part of a table; no other files are read or removed."""
FIELDS: dict[str, type] = {
    **dict.fromkeys(("digest", "created", "model", "family", "dtype", "device"), str),
    **dict.fromkeys(("n_layers", "d_model", "d_vocab", "rollouts", "tokens"), int),
    **dict.fromkeys(("versions", "selection", "asked", "files"), dict),
    "command": list,
}
"""Field that every record has -> its type."""
MORE: dict[str, Any] = {
    "command": list[str],
    "versions": dict[str, str],
    "quantization": dict[str, Any],
    "row": dict[str, Any],
    "lenses": dict[str, dict[str, Any]],
    "lacking": dict[str, list[int]],
    "product": str,
    "shard": str,
    "footers": dict[str, Any],
}
"""Field that isn't in every record, or whose items have a type -> its type."""
MOST = {"n_layers": 10_000, "d_model": 2**31, "d_vocab": 2**31, "rollouts": 2**53, "tokens": 2**53}
"""Field with a number -> its largest value."""
SELECTED: dict[str, type] = {"layers": int, "sites": str, "readouts": str, "measures": str}
"""Name of a list in a record's selection -> the type of its items."""
DAMAGE = (OSError, ValueError, RecursionError)
"""Exceptions that `read` raises."""


def write(path: Path, value: Mapping[str, Any], *, once: bool = False) -> None:
    """Write a JSON file with a checksum, by which `read` notices alterations."""
    written = json.loads(files.as_json(value))
    files.write_json(path, {**written, "checksum": _checksum(written)}, once=once)


def read(path: Path) -> dict[str, Any]:
    """The value that `write` wrote. Raises one of DAMAGE if it is missing, altered or not a JSON object."""
    if path.exists() and not path.is_file():  # reading from a device or a pipe may never end
        raise ValueError("it isn't a file")
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it isn't a JSON object")
    checksum = value.pop("checksum", None)
    if checksum is None and "footers" in value:
        raise ValueError("it has no checksum")
    if checksum not in (None, _checksum(value)):  # earlier versions wrote none
        raise ValueError("it was changed after it was written")
    return value


def complaint(record: Mapping[str, Any]) -> str | None:
    """What is wrong with the record of a scan, in words; None if it is valid."""
    for name, kind in FIELDS.items():
        if type(record.get(name)) is not kind:
            return f"'{name}' holds {quoted(record.get(name))}; expected {_a(kind)}"
    if smallest := next((name for name in ("n_layers", "d_model", "d_vocab", "rollouts") if record[name] < 1), None):
        return f"'{smallest}' is {record[smallest]}; expected 1 or more"
    if largest := next((name for name, most in MOST.items() if record[name] > most), None):
        return f"'{largest}' is {quoted(record[largest])}; expected at most {MOST[largest]:,}"
    return (
        settings.misfit(record, MORE)
        or selection_complaint(record["selection"], record["n_layers"])
        or settings.complaint(record["asked"])
        or _files_complaint(record["files"])
    )


def selection_complaint(selection: Mapping[str, Any], n_layers: int) -> str | None:
    """What is wrong with the selection in the record of a scan, in words; None if it is valid."""
    for name, kind in SELECTED.items():
        given = selection.get(name)
        if type(given) is not list or not given or any(type(item) is not kind for item in given):
            return f"'selection.{name}' holds {quoted(given)}; expected a list of {_a(kind)}"
    if outside := [layer for layer in selection["layers"] if not 0 <= layer < n_layers]:
        return f"'selection.layers' holds {quoted(outside[0])}, but the layers are 0 to {n_layers - 1}"
    if unknown := [site for site in selection["sites"] if site not in SITES]:
        return f"'selection.sites' holds {quoted(unknown[0])}; expected some of {', '.join(SITES)}"
    positions = selection.get("positions", {})
    if type(positions) is not dict or not {*positions} <= {"first", "last", "every"}:
        return f"'selection.positions' holds {quoted(positions)}; expected first, last and every"
    return None


def _files_complaint(written: Mapping[str, Any]) -> str | None:
    parts: dict[str, set[int]] = {kind: set() for kind in KINDS}
    for name, known in written.items():
        part = PART.fullmatch(name)
        if name != (part_name(part[1], int(part[2])) if part else VOCABULARY):
            return f"'files' lists {quoted(name)}, which isn't a file of a scan"
        if not is_fingerprint(known):
            return f"'files' has no valid size and SHA-256 for {name}"
        if part:
            parts[part[1]].add(int(part[2]))
    for kind, numbers in parts.items():
        if not numbers or numbers != set(range(max(map(len, parts.values())))):
            return f"'files' doesn't list every part of the table {kind}"
    return None if VOCABULARY in written else f"'files' doesn't list {VOCABULARY}"


def is_fingerprint(known: Any) -> bool:
    """Whether a value read from a record is the size and SHA-256 of a file."""
    if type(known) is not dict or type(known.get("bytes")) is not int or type(known.get("sha256")) is not str:
        return False
    return re.fullmatch("[0-9a-f]{64}", known["sha256"]) is not None


def part_path(folder: Path, kind: str, part: int) -> Path:
    """The file of one part of a table."""
    return folder / part_name(kind, part)


def part_name(kind: str, part: int) -> str:
    """The name of the file of one part of a table."""
    return f"{kind}-{part:05d}.parquet"


def sampled(asked: Mapping[str, Any]) -> bool:
    """Whether the responses of a scan were sampled; otherwise they were given, as rollouts or as texts."""
    return asked.get("rollouts") is None and not asked.get("text")


def lenses(asked: Mapping[str, Any]) -> dict[str, str]:
    """Readout -> the file of its lens, for each lens of a scan."""
    given = asked.get("lens")
    if isinstance(given, str):  # a single tuned lens
        return {"tuned": given}
    return {str(name): str(file) for name, file in given or ()}


def about_part(folder: Path, part: int) -> Path:
    """The file with the fingerprints of one part, and what measured it."""
    return folder / f"part-{part:05d}.json"


def of_part(folder: Path, part: int) -> dict[str, Any] | None:
    """The notes on a part: `files` with their fingerprints, and `by`, what wrote them; None if missing or damaged."""
    return notes(about_part(folder, part))


def notes(path: Path) -> dict[str, Any] | None:
    """The notes in a file on one part; None if it is missing or damaged."""
    try:
        found = read(path)
    except DAMAGE:
        return None
    written, by = found.get("files"), found.get("by")
    sound = type(written) is dict and type(by) is list and all(map(is_fingerprint, written.values()))
    return found if sound else None


def count(record: Mapping[str, Any]) -> int:
    """How many parts a scan has, from its record."""
    return (len(record["files"]) - 1) // len(KINDS)  # the other file is the vocabulary


def files_of(record: Mapping[str, Any], part: int) -> dict[str, Any]:
    """The fingerprints of the files of one part, from the record of a scan."""
    return {name: record["files"][name] for name in (part_name(kind, part) for kind in KINDS)}


def fingerprint_of(path: Path) -> dict[str, Any] | None:
    """The recorded fingerprint of a scan's file; None if none was recorded. Raises one of DAMAGE."""
    record = path.parent / RECORD
    if record.exists():
        return _written(record, files.looks(record), "files").get(path.name)
    part = PART.fullmatch(path.name)
    known = of_part(path.parent, int(part[2])) if part else None
    return known["files"].get(path.name) if known else None


def is_altered(path: Path) -> bool:
    """Whether a table's size or footer differs from the record. Arrow checks the pages when it reads them.

    Scans of earlier versions have no record of footers, so their files are read from end to end, once per process.
    Raises one of DAMAGE, also for a folder or a pipe in place of a file.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it isn't a file")
    written, record = fingerprint_of(path), path.parent / RECORD
    if written is None:
        return False
    footers = _written(record, files.looks(record), "footers") if record.exists() else {}
    if path.name not in footers:
        return written != files.fingerprint_once(path)
    return footers[path.name] != files.footer(path) or written["bytes"] != path.stat().st_size


@lru_cache(maxsize=16)
def _written(record: Path, looks: tuple[int, ...], name: str) -> dict[str, Any]:  # noqa: ARG001
    """What a record holds of its files, cached because thousands of parts are looked up one by one."""
    written = read(record).get(name)
    return written if type(written) is dict else {}


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _a(kind: type) -> str:
    return {str: "text", int: "a whole number", dict: "an object", list: "a list"}[kind]
