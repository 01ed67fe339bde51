"""Record the digests of the files of a finished alignment, evaluation or training run, in a file beside them."""

from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from internal_policy import files
from internal_policy.errors import quoted
from internal_policy.scans import records

DIGESTS = "digests.json"
"""The file with the size and SHA-256 of the others."""

SUFFIXES = (".json", ".yaml", ".parquet", ".md")
"""Endings of the files of a run."""


def record(folder: Path, names: Iterable[str], changed: Collection[str] | None = None) -> None:
    """Record the files `names` of a folder, those that exist. What was recorded before stays, except for `changed`.

    Without `changed` all are recorded anew.
    """
    try:
        before = {} if changed is None else known(folder)
    except records.DAMAGE:
        before = {}
    kept = {name: about for name, about in before.items() if name not in (changed or ())}
    found = {name: kept.get(name) or files.fingerprint(folder / name) for name in names}
    records.write(folder / DIGESTS, {"files": {name: about for name, about in found.items() if about}})


def below(folder: Path, *subfolders: str) -> list[str]:
    """The files of a run in a folder and in some of its subfolders, by their paths below it."""
    paths = [
        *(path for path in folder.glob("*") if path.suffix in SUFFIXES),
        *(path for name in subfolders for path in (folder / name).rglob("*")),
    ]
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return sorted(name for name in names if not files.is_hidden(PurePosixPath(name).name) and name != DIGESTS)


def known(folder: Path) -> dict[str, Any]:
    """Path of each recorded file below its folder -> its size and SHA-256. Raises one of `records.DAMAGE`."""
    listed = records.read(folder / DIGESTS).get("files")
    if type(listed) is not dict or not all(map(records.is_fingerprint, listed.values())):
        raise ValueError("it lists no sizes and digests")
    if outside := [name for name in listed if not _is_below(name)]:
        raise ValueError(f"it lists {quoted(outside[0])}, which isn't in its folder")
    return listed


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    )
