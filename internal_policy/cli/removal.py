"""Remove the files that internal-policy wrote into a folder, and nothing else."""

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from internal_policy import files
from internal_policy.cli.inventory import EVALUATION, Item
from internal_policy.errors import InputError

WRITTEN = {
    "scan": r"asked\.json|scan\.json|vocabulary\.parquet|(rollouts|policies|layers)-\d{5,}\.parquet|part-\d{5,}\.json",
    "ablation": r"question\.json|ablation\.json|averages\.parquet|(effects|rewards)-\d{5,}\.parquet",
    "alignment": r"digests\.json|alignment\.(json|parquet)|rollouts\.parquet",
    "study": r"study\.json|rollouts\.parquet|step-\d{8,15}\.parquet",
    "evaluation": r"digests\.json|evaluation\.json|rollouts\.parquet|pass_at_k\.parquet",
    "sample": r"(\d+/)?(rollouts-\d{5,}\.parquet|part-\d{5,}\.json)|jacobian-\d+-of-\d+\.safetensors",
    "run": r"digests\.json|run\.json|stages\.json|target\.json|config\.yaml|README\.md"
    r"|(rollouts|samples|metrics|dynamics|evaluations|pass_at_k)\.parquet|\.partial/.*|runs/(.*/)?events\.out\.tfevents\.[^/]*",
}
"""Kind -> the files that it consists of, by their paths below its folder; a run also has checkpoints and a model."""
FOLDERS = {
    **dict.fromkeys(("scan", "ablation", "alignment", "study", "evaluation"), r"(?!)"),
    "sample": r"\d+",
    "run": r"model|best|checkpoint-\d+|runs|\.partial",
}
"""Kind -> the folders that it makes in its folder; no other folder is looked into."""
SAVED = re.compile(r"model|best|checkpoint-\d+")
"""Folders in a run that hold weights, and a list of their files."""
PARTIAL = ".partial"
"""Folder in a run in which everything is temporary."""
PART = re.compile(r"part-\d{5,}\.json$")
"""Name of the notes on one part of a scan, which list its files."""
RESOLVED = "# Resolved by internal-policy"
"""First words of the resolved configuration of a run."""
SETTINGS = {
    "scan": ("asked.json", "scan.json"),
    "ablation": ("question.json", "ablation.json"),
    "alignment": ("alignment.json",),
    "evaluation": (EVALUATION,),
    "run": ("run.json",),
    "study": ("study.json",),
    "sample": (),
}
"""Kind -> the files that tell a folder of internal-policy from any other."""


def contents_of(item: Item) -> tuple[list[Path], list[Path]]:
    """What is in an item's folder: the files that internal-policy wrote, and all else, which is the user's own.

    A folder of the user counts as one entry, whatever is in it. In the cache, where only internal-policy writes,
    a file is recognized by its name.
    """
    written: list[Path] = []
    others: list[Path] = []
    for entry, mine in _told_apart(item):
        (written if mine else others).append(Path(entry.path))
    return written, others


def size_of(item: Item) -> int:
    """Size of the files that internal-policy wrote into an item's folder, in bytes."""
    total = 0
    for entry, mine in _told_apart(item):
        with suppress(FileNotFoundError):  # another process just renamed or removed it
            total += entry.stat(follow_symlinks=False).st_size if mine else 0
    return total


def _told_apart(item: Item) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """The entries of an item's folder, and whether internal-policy wrote each."""
    in_cache = _in_cache(item.folder)
    listed = set() if in_cache and item.kind == "scan" else _listed(item)
    for below, entry in _entries(item.folder, re.compile(FOLDERS[item.kind])):
        named = below in listed or (
            re.fullmatch(WRITTEN[item.kind], below) and (in_cache or _is_ours(Path(entry.path), item))
        )
        yield entry, not entry.is_dir(follow_symlinks=False) and bool(named or files.is_hidden(entry.name))


def _entries(folder: Path, ours: re.Pattern[str], above: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The entries of a folder by their paths below it, with the files in those of its folders that are `ours`.

    Uses scandir, which is fast, because `ls` looks at each file of perhaps a thousand scans.
    """
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False) and ours.fullmatch(entry.name):
            yield from _entries(Path(entry.path), re.compile(".*"), f"{above}{entry.name}/")
        else:
            yield f"{above}{entry.name}", entry


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _listed(item: Item) -> set[str]:
    """The files that the records in an item's folder list, by their paths below it."""
    from internal_policy.scans import records

    if item.kind == "run":
        saved = [path for path in item.folder.iterdir() if SAVED.fullmatch(path.name) and _is_folder(path)]
        return {f"{path.name}/{name}" for path in saved for name in _saved(path)}
    if item.kind != "scan":
        return set()
    numbers = [
        int(path.stem.removeprefix("part-")) for path in item.folder.glob("part-*.json") if PART.match(path.name)
    ]
    listing: list[object] = [(records.of_part(item.folder, number) or {}).get("files") for number in numbers]
    with suppress(*records.DAMAGE):
        listing.append(records.read(item.folder / records.RECORD).get("files"))
    names = {name for found in listing if isinstance(found, dict) for name in found}
    return {name for name in names if re.fullmatch(WRITTEN["scan"], name)}


def _saved(folder: Path) -> set[str]:
    """Names of the files that a checkpoint or model was written with; if unfinished, those that exist."""
    from internal_policy.train.checkpoints import MANIFEST

    try:
        return {*json.loads((folder / MANIFEST).read_text(encoding="utf-8")), MANIFEST}
    except (OSError, ValueError, TypeError):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _is_ours(path: Path, item: Item) -> bool:
    """Whether a file with a name of ours was written by internal-policy, by what it holds.

    For settings, which `check` reads, the name is enough.
    """
    if path.name in SETTINGS[item.kind] or path.parent != item.folder:
        return True
    if not (path.is_file() or path.is_dir()):  # reading from a pipe may never end
        return False
    if path.suffix == ".parquet":
        return _has_our_columns(path)
    if path.suffix == ".yaml":  # the resolved configuration of a run
        return path.read_bytes().startswith(RESOLVED.encode())
    if path.suffix == ".md":  # the model card of TRL
        return path.read_bytes().startswith(b"---\n") and b"trl" in path.read_bytes()
    if path.name == "digests.json":
        return _has(path, {"files"})
    return _has(path, {"files", "by"} if path.name.startswith("part-") else {"target", "problems"})


def _has_our_columns(path: Path) -> bool:
    """Whether a Parquet file is a table of ours, or holds rollouts."""
    import pyarrow.parquet as pq

    from internal_policy.scans import store

    try:
        schema = pq.read_schema(path)
    except store.UNREADABLE:
        return False
    return b"internal_policy.schema" in (schema.metadata or {}) or {"prompt_ids", "response_ids"} <= {*schema.names}


def check(item: Item) -> None:
    """Raise InputError for an item that is bundled, may not be from internal-policy, or is being written to."""
    if item.bundled:
        raise InputError(f"{item.name} comes with the package and can't be removed.")
    settings = [item.folder / name for name in SETTINGS[item.kind]]
    needed = item.kind == "run" or not _in_cache(item.folder)
    if needed and not any(_has(path, {"digest"}) or _has(path, {"identity"}) for path in settings):
        raise InputError(
            f"{item.folder} has no readable {SETTINGS[item.kind][0]}, so it may not be from internal-policy. Remove it "
            "by hand if you don't need it."
        )
    if found := files.writers(item.folder):
        raise InputError(f"{item.name} is being written by {', '.join(found)}. Stop that first.")


def _in_cache(folder: Path) -> bool:
    from internal_policy.scans import store

    return folder.resolve().is_relative_to(store.root().resolve())


def _has(path: Path, keys: set[str]) -> bool:
    """Whether a JSON file has these fields, which internal-policy writes into it."""
    from internal_policy.scans import records

    try:
        return keys <= records.read(path).keys()
    except records.DAMAGE:
        return False


def remove(item: Item) -> Sequence[Path]:
    """Remove what internal-policy wrote of an item; return the files and folders of others in it, which stay.

    A process that begins the same work in the meantime finds either all of it or nothing. Raises InputError as `check`
    does.
    """
    check(item)
    written, others = contents_of(item)
    made = _made(item, written)
    if others:
        _take_away(item.folder, item.folder, written, made)
        return others
    folder = item.folder.resolve()
    aside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    folder.rename(aside)
    if files.writers(aside):  # another process began to write a moment ago
        aside.rename(folder)
        check(item)
    _take_away(item.folder, aside, written, made)
    if _remove_if_empty(aside):
        _remove_model(folder.parent)
    else:
        aside.rename(folder)  # it still holds an empty folder of the user
    return ()


def _made(item: Item, written: Sequence[Path]) -> list[Path]:
    """The folders in an item's folder that internal-policy made, each before the one that it is in."""
    own = [path for path in item.folder.iterdir() if _is_folder(path) and re.fullmatch(FOLDERS[item.kind], path.name)]
    below = [path for top in own if top.name == PARTIAL for path in top.rglob("*") if _is_folder(path)]
    around = [folder for path in written for folder in path.parents if item.folder in folder.parents]
    return sorted({*own, *below, *around}, reverse=True)


def _take_away(folder: Path, now: Path, written: Iterable[Path], made: Iterable[Path]) -> None:
    """Remove files, and then those of the folders `made` that are empty; `folder` is called `now` meanwhile."""
    for path in written:
        (now / path.relative_to(folder)).unlink(missing_ok=True)
    for path in made:
        _remove_if_empty(now / path.relative_to(folder))


def _remove_if_empty(folder: Path) -> bool:
    if any(folder.iterdir()):
        return False
    folder.rmdir()
    return True


def _remove_model(folder: Path) -> None:
    """Remove a model's folder in the cache if it has no scans."""
    from internal_policy.scans import store

    if folder.parent == store.root().resolve():
        _remove_if_empty(folder)
