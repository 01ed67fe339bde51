"""Check where a command writes before its work begins, so that no work is lost and no file is replaced by mistake."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from internal_policy.cli import inventory, lens_files, progress, removal
from internal_policy.cli.inventory import Kind
from internal_policy.errors import InputError, check_path

T = TypeVar("T")
INPUTS = ("model", "problems", "eval_problems", "rollouts", "lens", "against", "merge", "chat_template", "config")
"""Options that name files or folders to read."""
NAMED = 5
"""Files and folders of others that are named at most."""


def check_file(path: Path, force: bool, *endings: str, inputs: Iterable[str | Path] = ()) -> None:
    """Raise InputError unless a file can be written there, with one of the endings if any are given.

    With `force` it may exist already, unless it is one of the `inputs` or in a folder among them.
    """
    check_path(path)
    if endings and path.suffix not in endings:
        raise InputError(f"Can't write {path}. Use a name that ends in {' or '.join(endings)}.")
    if _exists(path):
        if path.is_dir():
            raise InputError(f"{path} is a folder. Choose another --output.")
        if not force:
            raise InputError(f"{path} already exists. Choose another --output, or add --force to replace it.")
        if any(_same(given, path) or _same(given, path.parent) for given in inputs):
            raise InputError(f"--output is {path}, which is also an input. Choose another --output.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent}. Create it, or choose another --output.")
    check_writable(path.parent)


def inputs_of(options: object) -> list[str]:
    """The files and folders that a command reads, and names of the hub, from its options."""
    given = {name: getattr(options, name, None) for name in INPUTS}
    found = [(name, value) for name, many in given.items() for value in (many if isinstance(many, tuple) else [many])]
    return [
        lens_files.split(value)[1] if name in ("lens", "against") else value
        for name, value in found
        if value and value is not True
    ]


def _same(one: str | Path, other: Path) -> bool:
    """Whether two paths are the same file or folder; False for a name that isn't one."""
    try:
        return os.path.samefile(one, other)  # noqa: PTH121  # Path.samefile takes no text
    except (OSError, ValueError):
        return False


def check_folder(folder: Path) -> None:
    """Raise InputError for a folder that can't exist, because of its name or because a file is in its place."""
    check_path(folder)
    if not _exists(folder):
        folder = _nearest(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is a file. Choose another --output.")


def _exists(path: Path) -> bool:
    """Whether a path exists. Raises InputError for a name that no file system takes."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"Can't write {path!s:.80} ({error.strerror}). Choose another --output.") from error
    return True


def _nearest(folder: Path) -> Path:
    """The nearest folder above a folder that exists, or the file in its place."""
    return next(parent for parent in folder.absolute().parents if _exists(parent))


def check_writable(folder: Path) -> None:
    """Raise InputError unless this process may write to a folder, or to the nearest one above that exists."""
    folder = folder if _exists(folder) else _nearest(folder)
    if not _writable(folder):
        raise InputError(f"You don't have permission to write to {folder.absolute()}. Choose another --output.")


def check_cache() -> None:
    """Raise InputError unless this process may write to the cache, which keeps sampled responses for a while."""
    from internal_policy.scans import store

    root = store.root()
    if not _writable(root if _exists(root) else _nearest(root)):
        raise InputError(
            f"You don't have permission to write to the cache {root}. Set INTERNAL_POLICY_CACHE to another folder."
        )


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def claimed(
    folder: Path, kind: Kind, force: bool, claim: Callable[[], T], inputs: Iterable[str]
) -> tuple[T | None, bool]:
    """What `claim` returns for a folder, and whether the folder holds other work, which `clear` has to remove first.

    Raises InputError, also for other work without `force`, or if it may not be removed or holds one of the `inputs`.
    """
    from internal_policy.scans.claims import Occupied

    check_folder(folder)
    try:
        return claim(), False
    except Occupied:
        if not force:
            raise
    item = inventory.at(folder, kind)
    removal.check(item)
    written = {place.resolve() for path in removal.contents_of(item)[0] for place in (path, path.parent)}
    if read := [given for given in inputs if Path(given).resolve() in written]:
        raise InputError(f"--force would remove {read[0]}, which is also an input. Choose another --output.")
    return None, True


def clear(folder: Path, kind: Kind) -> None:
    """Remove the work that a folder holds, but no file that internal-policy didn't write. Raises InputError."""
    kept = removal.remove(inventory.at(folder, kind))
    progress.note(f"Removed the earlier {inventory.CALLED[kind]} from {folder}.")
    note_kept(folder, kept)


def note_kept(folder: Path, kept: Sequence[Path]) -> None:
    """Name a few of the files and folders of others that stay in a folder."""
    if kept:
        names = ", ".join(path.relative_to(folder).as_posix() for path in kept[:NAMED])
        more = f" and {len(kept) - NAMED} more" if len(kept) > NAMED else ""
        progress.note(f"Kept in {folder}, because internal-policy didn't write it: {names}{more}.")
