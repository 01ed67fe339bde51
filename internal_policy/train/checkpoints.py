"""Write checkpoints whole or not at all, and find the newest whole one."""

import json
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from internal_policy import files

PARTIAL = ".partial"
"""Folder in a run where the next checkpoint is written before it is renamed."""
MANIFEST = ".files.json"
"""File in a complete checkpoint with the size in bytes of every other file."""
OLD = ".old"
"""Ending of the name of a folder that is being replaced by the one of the same name without it."""
PICKLE = "training_args.bin"
"""A pickle that transformers leaves beside the weights."""
SYNCED = "rb" if os.name == "posix" else "rb+"
"""Mode to open a file in before syncing it to disk; Windows only syncs files that are open for writing."""


def put(written: Path, path: Path) -> None:
    """Sync a written folder to disk and rename it to `path`, replacing a folder of that name.

    The one that is replaced is removed last. After a kill between the renames, `clear` finishes this. If several
    processes put the same folder, only one succeeds; the others raise FileNotFoundError and change nothing.
    """
    claimed = written.with_name(f"{written.name}-{secrets.token_hex(4)}")
    written.rename(claimed)  # only one process can do this, and only it may remove what is at `path`
    seal(claimed)
    old = claimed.with_name(f"{claimed.name}{OLD}")
    with suppress(FileNotFoundError):
        path.rename(old)
    claimed.rename(path)
    if old.exists():
        shutil.rmtree(old)


def clear(run: Path) -> None:
    """Remove what a killed process of a run was writing, and rename the whole folder that it was about to rename."""
    for old in (run / PARTIAL).glob(f"*{OLD}"):
        claimed = old.with_name(old.name.removesuffix(OLD))
        path = run / claimed.name.rpartition("-")[0]
        if claimed.exists() and not path.exists():
            claimed.rename(path)
    shutil.rmtree(run / PARTIAL, ignore_errors=True)


def seal(folder: Path) -> None:
    """Sync a written folder to disk, and record the sizes of its files in it. Raises FileNotFoundError.

    Permissions of the files follow the umask.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    for path in paths:
        with path.open(SYNCED) as file:
            os.fsync(file.fileno())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    files.write_json(folder / MANIFEST, sizes)
    for path in paths:
        files.permit(path, (folder / MANIFEST).stat().st_mode)


def is_whole(folder: Path) -> bool:
    """Whether a folder still has every file that was written into it, at full size; False for an empty folder."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def found(run: Path) -> dict[int, Path]:
    """The checkpoints of a run, whole or not, by the update after which they were written; newest first."""
    named = {re.fullmatch(r"checkpoint-(\d+)", path.name): path for path in run.glob("checkpoint-*") if path.is_dir()}
    return dict(sorted(((int(match[1]), path) for match, path in named.items() if match), reverse=True))
