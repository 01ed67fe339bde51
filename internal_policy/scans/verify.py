"""Check the files of a scan or of other results against the digests that were recorded when they were written."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from internal_policy import files
from internal_policy.errors import InputError, counted
from internal_policy.scans import address, digests, effects, records, store
from internal_policy.scans.records import ASKED, RECORD

Wrong = Literal["missing", "cut short", "altered", "extra"]
"""What can be wrong with a file; extra: it is named like a file of the scan, but doesn't belong to it."""
NOTES = "part-*.json"
"""The notes on the parts of a scan."""
ELSEWHERE = "it belongs to another scan"


@dataclass(frozen=True)
class Fault:
    """A file that isn't as it was written."""

    file: str
    """Its name."""
    problem: Wrong
    """What is wrong with it."""
    detail: str
    """The same in words, such as `1,000 of 13,245 bytes`; may be empty."""
    copy_of: str | None = None
    """The file of the same scan that it is a copy of."""


@dataclass(frozen=True)
class Verdict:
    """What was found in a folder."""

    files: int
    """How many files were checked."""
    bytes: int
    """How many bytes they have."""
    rollouts: int | None
    """How many rollouts were measured; None if the record can't be read, or doesn't tell."""
    faults: tuple[Fault, ...]
    """The files that aren't as they were written."""


UNRECORDED = "it is unfinished, or an earlier version wrote it, so there is nothing to compare it with."
Progress = Callable[[int, int], None]
"""Called with how many files of how many were read."""


def scan(folder: Path, progress: Progress = lambda *_: None) -> Verdict:
    """Check a scan, reading each of its files from end to end.

    What scan.json lists is compared with it, and everything else that is named like a file of a scan. Without a
    readable scan.json the notes on each part tell what was written. A copy of a scan on the Hub has scan.json and the
    tables only. Raises InputError for a record of another version.
    """
    record, found = _record(folder)
    if address.of_folder(folder) and record is not None:
        found += [*_tables(folder, record["files"], progress), *_extra(folder, record["files"])]
        return _verdict(folder, [RECORD, *record["files"]], record, found)
    notes = {path.name: records.notes(path) for path in sorted(folder.glob(NOTES)) if path.is_file()}
    expected = _listed(notes) if record is None else record["files"]
    found += _asked(folder, record)
    found += _tables(folder, expected, progress)
    found += _notes(folder, record, notes)
    found += [] if record is None else _extra(folder, expected)  # an unfinished scan may have unlisted parts
    named = [RECORD, ASKED, *expected, *notes]
    return _verdict(folder, named, record, found)


def ablation(folder: Path, progress: Progress = lambda *_: None) -> Verdict:
    """Check an ablation, reading each of its files from end to end. Raises InputError for an unfinished one."""
    record = effects.record(folder)
    found = list(_tables(folder, record["files"], progress))
    try:
        if records.read(folder / effects.ASKED).get("digest") != record["digest"]:
            found.insert(0, Fault(effects.ASKED, "altered", "it belongs to another ablation"))
    except records.DAMAGE as error:
        found.insert(0, _unreadable(folder / effects.ASKED, error))
    return _verdict(folder, [effects.RECORD, effects.ASKED, *record["files"]], record, found)


def recorded(folder: Path, progress: Progress = lambda *_: None) -> Verdict:
    """Check an alignment, an evaluation or a training run. Raises InputError if it has no record of digests."""
    try:
        listed = digests.known(folder)
    except records.DAMAGE as error:
        if not (folder / digests.DIGESTS).exists():
            raise InputError(f"{folder} has no {digests.DIGESTS}: {UNRECORDED}") from error
        return _verdict(folder, [], None, [_unreadable(folder / digests.DIGESTS, error)])
    return _verdict(folder, [digests.DIGESTS, *listed], None, list(_tables(folder, listed, progress)))


def _verdict(folder: Path, named: list[str], record: Mapping[str, Any] | None, found: list[Fault]) -> Verdict:
    sizes = [path.stat().st_size for path in (folder / name for name in dict.fromkeys(named)) if path.is_file()]
    return Verdict(len(sizes), sum(sizes), None if record is None else record["rollouts"], tuple(found))


def _record(folder: Path) -> tuple[Mapping[str, Any] | None, list[Fault]]:
    """The record of a scan, or None and what is wrong with it."""
    path = folder / RECORD
    try:
        found = records.read(path)
    except records.DAMAGE as error:
        return None, [_unreadable(path, error, "the scan is unfinished, or it was removed")]
    if found.get("schema") != records.SCHEMA:
        store.record(folder)  # raises
    if wrong := records.complaint(found):
        return None, [Fault(RECORD, "altered", wrong)]
    return found, []


def _unreadable(path: Path, error: Exception, missing: str = "") -> Fault:
    """What is wrong with a JSON file that `records.read` refused."""
    if not path.exists():
        return Fault(path.name, "missing", missing)
    return Fault(path.name, "altered", "it is a folder" if path.is_dir() else str(error).partition("\n")[0])


def _asked(folder: Path, record: Mapping[str, Any] | None) -> Iterator[Fault]:
    try:
        found = records.read(folder / ASKED)
    except records.DAMAGE as error:
        yield _unreadable(folder / ASKED, error)
        return
    if type(found.get("digest")) is not str or type(found.get("product")) is not str:
        yield Fault(ASKED, "altered", "it contains no settings")
    elif record is not None and found["digest"] != record["digest"]:
        yield Fault(ASKED, "altered", ELSEWHERE)


def _listed(notes: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """The files that the notes on parts list; the vocabulary is listed in scan.json alone."""
    return {
        name: known for about in notes.values() if about for name, known in about["files"].items() if _is_part(name)
    }


def _is_part(name: str) -> bool:
    part = records.PART.fullmatch(name)
    return part is not None and name == records.part_name(part[1], int(part[2]))


def _tables(folder: Path, expected: Mapping[str, Any], progress: Progress) -> Iterator[Fault]:
    owners = {known["sha256"]: name for name, known in expected.items()}
    for done, (name, known) in enumerate(expected.items(), 1):
        path = folder / name
        if path.is_dir():
            yield Fault(name, "altered", "it is a folder")
        elif (found := files.fingerprint(path)) is None:
            yield Fault(name, "missing", "")
        elif found != known:
            yield _changed(name, known, found, owners.get(found["sha256"]))
        progress(done, len(expected))


def _changed(name: str, known: Mapping[str, Any], found: Mapping[str, Any], owner: str | None) -> Fault:
    if owner is not None:
        return Fault(name, "altered", f"it is a copy of {owner}", owner)
    if found["bytes"] < known["bytes"]:
        return Fault(name, "cut short", f"{found['bytes']:,} of {known['bytes']:,} bytes")
    more = found["bytes"] - known["bytes"]
    return Fault(name, "altered", f"{counted(more, 'byte')} too long" if more else "its SHA-256 differs")


def _notes(
    folder: Path, record: Mapping[str, Any] | None, notes: Mapping[str, Mapping[str, Any] | None]
) -> Iterator[Fault]:
    """What is wrong with the notes on parts. A scan without any, such as a bundled one, has lost nothing."""
    numbers = range(len(notes) if record is None else records.count(record))
    paths = {records.about_part(folder, number).name: number for number in numbers}
    for name, number in paths.items():
        if name not in notes:
            if notes:
                yield Fault(name, "missing", "")
            continue
        about = notes[name]
        if about is None:
            yield Fault(name, "altered", "it was changed after it was written")
        elif record is not None and about["files"] != records.files_of(record, number):
            yield Fault(name, "altered", "it lists other files than scan.json")
    if record is not None:
        for name in notes:
            if name not in paths:
                yield Fault(name, "extra", "scan.json doesn't list this part")


def _extra(folder: Path, expected: Mapping[str, Any]) -> Iterator[Fault]:
    owners = {known["sha256"]: name for name, known in expected.items()}
    for path in sorted(folder.glob("*.parquet")):
        if records.PART.fullmatch(path.name) and path.name not in expected:
            owner = owners.get((files.fingerprint(path) or {"sha256": ""})["sha256"])
            detail = f"it is a copy of {owner}" if owner else "no record lists it"
            yield Fault(path.name, "extra", detail, owner)
