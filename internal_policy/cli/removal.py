"""Remove the files that internal-policy wrote into a folder, and nothing else."""

import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from internal_policy import files
from internal_policy.cli.inventory import EVALUATION, Item
from internal_policy.errors import InputError

WRITTEN = {
    "scan": r"asked\.json|scan\.json|vocabulary\.parquet|(rollouts|policies|layers)-\d{5,}\.parquet|part-\d{5,}\.json",
    "evaluation": r"evaluation\.json|rollouts\.parquet|pass_at_k\.parquet",
    "sample": r"(\d+/)?(rollouts-\d{5,}\.parquet|part-\d{5,}\.json)",
    "run": r"run\.json|stages\.json|(rollouts|metrics|dynamics|pass_at_k)\.parquet|README\.md|\.partial/.*"
    r"|(.*/)?events\.out\.tfevents\.[^/]*",
}
"""Kind -> the files that it consists of, by their paths below its folder; a run also has checkpoints and a model."""
SAVED = re.compile(r"model|checkpoint-\d+")
"""Folders in a run that hold weights, and a list of their files."""
SETTINGS = {"scan": ("asked.json", "scan.json"), "evaluation": (EVALUATION,), "run": ("run.json",), "sample": ()}
"""Kind -> the files that tell a folder of internal-policy from any other."""
LOCK = re.compile(r"\..*\.lock")


def contents_of(item: Item) -> tuple[list[Path], list[Path]]:
    """The files below an item's folder that internal-policy wrote, and all others, which are the user's own."""
    written: list[Path] = []
    others: list[Path] = []
    saved = [path for path in item.folder.iterdir() if item.kind == "run" and SAVED.fullmatch(path.name)]
    listed = {f"{path.name}/{name}" for path in saved for name in _listed(path)}
    for path in item.folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        below = path.relative_to(item.folder).as_posix()
        temporary = files.TEMPORARY.fullmatch(path.name) or LOCK.fullmatch(path.name)
        mine = temporary or below in listed or re.fullmatch(WRITTEN[item.kind], below)
        (written if mine else others).append(path)
    return written, others


def _listed(saved: Path) -> set[str]:
    """Names of the files that a checkpoint or model was written with; if unfinished, those that exist."""
    from internal_policy.train.checkpoints import MANIFEST

    try:
        return {*json.loads((saved / MANIFEST).read_text(encoding="utf-8")), MANIFEST}
    except (OSError, ValueError, TypeError):
        return {path.relative_to(saved).as_posix() for path in saved.rglob("*")}


def check(item: Item) -> None:
    """Raise InputError for an item that is bundled, may not be from internal-policy, or is being written to."""
    from internal_policy.scans import store

    if item.bundled:
        raise InputError(f"{item.name} comes with the package and can't be removed.")
    cached = item.kind != "run" and item.folder.resolve().is_relative_to(store.root().resolve())
    if not cached and not any(_has_settings(item.folder / name) for name in SETTINGS[item.kind]):
        raise InputError(
            f"{item.folder} has no readable {SETTINGS[item.kind][0]}, so it may not be from internal-policy. Remove it "
            "by hand if you don't need it."
        )
    if found := files.writers(item.folder):
        raise InputError(f"{item.name} is being written by {', '.join(found)}. Stop that first.")


def _has_settings(path: Path) -> bool:
    """Whether a JSON file holds what internal-policy writes into it."""
    from internal_policy.scans import records

    try:
        return bool({"digest", "identity"} & records.read(path).keys())
    except records.DAMAGE:
        return False


def remove(item: Item) -> Sequence[Path]:
    """Remove what internal-policy wrote of an item; return the files of others, which stay.

    A process that begins the same work in the meantime finds either all of it or nothing. Raises InputError as `check`
    does.
    """
    check(item)
    folder = item.folder.resolve()
    written, others = contents_of(item)
    if others:
        for path in written:
            path.unlink(missing_ok=True)
        _remove_empty(folder)
        return others
    aside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    folder.rename(aside)
    if files.writers(aside):  # another process began to write a moment ago
        aside.rename(folder)
        check(item)
    for path in written:
        (aside / path.relative_to(item.folder)).unlink(missing_ok=True)
    _remove_empty(aside)
    return ()


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those below it as far as they are empty, and a model's folder in the cache without scans."""
    from internal_policy.scans import store

    below = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    above = [folder.parent] if folder.parent.parent == store.root().resolve() else []
    for parent in [*sorted(below, reverse=True), folder, *above]:  # a folder before the one that it is in
        if not any(parent.iterdir()):
            parent.rmdir()
