"""Write a folder of a training run whole or not at all, and find the newest checkpoint that is whole."""

import json
import os
import re
import shutil
from pathlib import Path

from internal_policy import files

PARTIAL = ".partial"
"""Folder beside the checkpoints of a run where the next one is written."""
MANIFEST = ".files.json"
"""In a folder that was written whole: the size in bytes of each of its files."""


def put(written: Path, path: Path) -> None:
    """Give a folder that has been written its name, with all of it on the disk; one of that name is replaced."""
    seal(written)
    if path.exists():
        shutil.rmtree(path)
    written.rename(path)


def seal(folder: Path) -> None:
    """Bring a folder that has been written to the disk, and note the sizes of its files in it."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    files.write_json(folder / MANIFEST, sizes)


def is_whole(folder: Path) -> bool:
    """Whether a folder has every file that was written into it, none of them cut short."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def found(run: Path) -> dict[int, Path]:
    """The checkpoints of a run, whole or not, by the update that they were written after; the newest first."""
    named = {re.fullmatch(r"checkpoint-(\d+)", path.name): path for path in run.glob("checkpoint-*") if path.is_dir()}
    return dict(sorted(((int(match[1]), path) for match, path in named.items() if match), reverse=True))
