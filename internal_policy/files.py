"""Write files whole or not at all, and fingerprint them."""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from internal_policy.errors import InputError
from internal_policy.secrecy import redacted

NAMESPACE = Path("/proc/self/ns/pid")
"""Link that differs between containers, because each container numbers its processes from 1; only on Linux."""
MACHINE = f"{platform.node()}{NAMESPACE.readlink() if NAMESPACE.is_symlink() else ''}"
HERE = hashlib.sha256(MACHINE.encode()).hexdigest()[:8]
"""Identifies this machine, or this container on it, among machines that share a disk."""
TEMPORARY = re.compile(r"\.internal-policy-([0-9a-f]{8})-(\d+)-(?:(\d+)-)?[0-9a-f]{8}(\.[^.]*)?")
"""Name of a temporary file: machine, process, its start, random digits, and the suffix of the final file."""
LOCK = re.compile(r"\..+\.(json|parquet|claim)\.lock")
"""Name of the lock beside a file that only the first process may write."""
CLAIM = re.compile(r"\..+-\d+\.claim")
"""Name of the hidden file with which a process claims a part."""
OLD = 24 * 3600
"""Age in seconds after which the temporary file of a process counts as abandoned if nothing tells whether it runs."""
COARSE = 2.0
"""Coarsest timestamp of a file system in seconds: FAT's."""
FOOTER_END = 8
"""Bytes at the end of a Parquet file: the length of its footer, 4 bytes little-endian, and a magic word."""
PATIENCE = 10.0
"""Seconds after which a lock counts as abandoned; its owner needs milliseconds."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a full disk, and of a user who has used up a share of it."""
SAID_FULL = re.compile(r"No space left|os error (28|122)\b|PytorchStreamWriter failed|unexpected pos \d+ vs")
"""What safetensors and PyTorch say of a full disk, in errors without a number."""


@contextmanager
def replacing(path: Path, *, once: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it, synced to disk, when the block ends without an exception.

    With `once` the first process to finish wins: an existing file isn't replaced. Permissions follow the umask,
    whatever the block does to the temporary file. The folder must exist: one that was removed isn't made again, because
    half of its files would be missing. Raises OSError with the folder's name if the disk is full.
    """
    _sweep_once(path.parent.absolute())
    temporary = _temporary(path.parent, path.suffix)
    try:
        with naming_full(path.parent):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            mode = temporary.stat().st_mode
            yield temporary
            permit(temporary, mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if once:
                _put_once(temporary, path)
            else:
                temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming_full(folder: Path) -> Iterator[None]:
    """Turn whatever is raised inside because the disk is full into an OSError with the name of the folder."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in FULL and not (number is None and SAID_FULL.search(str(error))):
            raise
        raise OSError(number or errno.ENOSPC, os.strerror(number or errno.ENOSPC), str(folder)) from error


def created(path: Path, text: str) -> bool:
    """Create a file with a text, unless there is one; whether this process did. Others see all of the text or no file.

    Raises OSError with the folder's name if the disk is full.
    """
    temporary = _temporary(path.parent, path.suffix)
    try:
        with naming_full(path.parent):
            temporary.write_text(text, encoding="utf-8")
        return _put_once(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def permit(path: Path, mode: int) -> None:
    """Give a file the permissions `mode`, which some writers, such as safetensors, narrow to its owner."""
    if path.stat().st_mode != mode:
        path.chmod(stat.S_IMODE(mode))


def write_text(path: Path, text: str, *, once: bool = False) -> None:
    """Write a text file, whole or not at all; with `once` only if there is none, as in `replacing`."""
    with replacing(path, once=once) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any], *, once: bool = False) -> None:
    """Write a JSON file, whole or not at all, with secrets hidden."""
    write_text(path, as_json(value), once=once)


def as_json(value: Mapping[str, Any]) -> str:
    """The text of a JSON file, with secrets hidden; checksums are computed from this."""
    return json.dumps(redacted(value), indent=2, ensure_ascii=False, default=str) + "\n"


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False for a name that isn't a valid path."""
    return os.path.isdir(path)  # noqa: PTH112  # Path.is_dir raises for a long name


def looks(path: Path) -> tuple[int, ...]:
    """Size, times and inode of a file; writing it changes at least one. Raises OSError if it doesn't exist."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def fingerprint(path: Path) -> dict[str, Any] | None:
    """Size and SHA-256 of a file; None if it doesn't exist."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def footer(path: Path) -> str | None:
    """The SHA-256 of the footer of a Parquet file, which tells what its pages hold; None if it has none.

    Together with the checksums of pages this finds damage without reading a large file from end to end.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - FOOTER_END, 0))
        length = int.from_bytes(file.read(4), "little") + FOOTER_END
        if length > size:
            return None
        file.seek(size - length)
        return hashlib.file_digest(file, "sha256").hexdigest()


_fingerprints: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}


def fingerprint_once(path: Path) -> dict[str, Any] | None:
    """The same, cached until the file's path, size, inode or times change."""
    try:
        seen = looks(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if path in _fingerprints and _fingerprints[path][0] == seen:
        return _fingerprints[path][1]
    known = fingerprint(path)
    if known and time.time() - seen[1] / 1e9 > COARSE:  # a newer file could change again within the same timestamp
        _fingerprints[path] = (seen, known)
    return known


def _put_once(temporary: Path, path: Path) -> bool:
    """Give a file its final name unless that exists; whether it got it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except FileNotFoundError:  # the folder was removed
        raise
    except OSError:  # exFAT, SMB and many network disks have no hard links
        return _put_under_lock(temporary, path)
    return True


def _put_under_lock(temporary: Path, path: Path) -> bool:
    """Rename `temporary` to `path` unless it exists, while a lock file keeps other processes out."""
    lock = path.with_name(f".{path.name}.lock")
    patience = time.monotonic() + PATIENCE
    while not path.exists():
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            if time.monotonic() > patience:  # its owner was killed
                lock.unlink(missing_ok=True)
                patience = time.monotonic() + PATIENCE
            time.sleep(0.02)
            continue
        try:
            if not path.exists():
                temporary.replace(path)
                return True
        finally:
            lock.unlink(missing_ok=True)
    return False


@contextmanager
def held(folder: Path) -> Iterator[Path]:
    """While open, a hidden file marks that this process is writing to a folder, for `writers` to find.

    Yields the mark. Touch it at least once a day, because on other machines an older one counts as abandoned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = _temporary(folder, ".working")
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def writers(folder: Path) -> list[str]:
    """The running processes that are writing to a folder or to one in it, in words; none for marks of killed ones."""
    found = {}
    for path in (path for depth in ("", "*/") for path in folder.glob(f"{depth}.internal-policy-*")):
        match = TEMPORARY.fullmatch(path.name)
        if match and not _abandoned(path, match):
            there = f"on another machine (it keeps {path})"
            found[match[1], match[2]] = f"process {match[2]}{'' if match[1] == HERE else f' {there}'}"
    return list(found.values())


def is_hidden(name: str) -> bool:
    """Whether a file is a temporary one, a lock or a claim, by its name."""
    return any(kind.fullmatch(name) for kind in (TEMPORARY, LOCK, CLAIM))


def _temporary(folder: Path, suffix: str) -> Path:
    return folder / f".internal-policy-{'-'.join(myself())}-{secrets.token_hex(4)}{suffix}"


def _abandoned(path: Path, match: re.Match[str]) -> bool:
    """Whether the process that wrote a temporary file has ended; a file that is gone counts as abandoned too.

    Age counts only where nothing else tells, because a clock that is set makes new files look old.
    """
    if match[3] and match[1] == HERE:
        return gone(*match.groups()[:3])
    try:
        return gone(match[1], match[2]) or time.time() - path.stat().st_mtime > OLD
    except FileNotFoundError:
        return True


def sweep(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder."""
    for path in folder.glob(".internal-policy-*"):
        match = TEMPORARY.fullmatch(path.name)
        with suppress(OSError):  # another process removed it first
            if match and _abandoned(path, match):
                path.unlink()


_sweep_once = cache(sweep)
"""The same, but only the first time in a process."""


def myself() -> tuple[str, ...]:
    """What tells this process from all others that share a disk: machine, number and, on Linux, start."""
    return HERE, str(os.getpid()), *filter(None, [_start(os.getpid())])


def gone(machine: str, process: str, start: str | None = None) -> bool:
    """Whether a process on this machine has ended, also if another one now has its number.

    False for other machines, where we can't know.
    """
    if machine != HERE or os.name != "posix":  # on Windows os.kill(process, 0) would end the process
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return start is not None and _start(int(process)) not in (None, start)


def _start(process: int) -> str | None:
    """When a running process began, in ticks since the machine started, which no change of the clock touches."""
    try:
        about = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # only Linux has it
        return None
    return about.rpartition(")")[2].split()[19]  # the 22nd field; the 2nd, a name in parentheses, may have spaces
