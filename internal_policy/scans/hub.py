"""Download a scan from the Hugging Face Hub, checked as untrusted input, and find a lens there."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.errors import DamageError, InputError, require
from internal_policy.scans.address import Address, of_folder
from internal_policy.scans.hub_errors import explaining
from internal_policy.scans.records import RECORD

LARGEST_RECORD = 2**26
"""Bytes of a scan.json at most; that of a scan with 100,000 parts is smaller."""
LARGEST = 50 * 2**30
"""Bytes of a scan at most; a larger one is downloaded knowingly."""
LISTED = 5
"""Lenses that an error message lists."""
AT_ONCE = 8
"""Files to download at the same time."""


def scan(address: Address, read: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The folder with a copy of a scan in the Hub's own cache, complete and as its scan.json lists it.

    The revision is resolved to a commit once, which the folder is named after. Only scan.json and the tables that it
    lists are downloaded, none of another size than listed, and each new file is compared with its SHA-256. Without a
    network, an earlier copy is used. `read` reads the record in a folder, and raises InputError for one that isn't
    valid. Raises InputError.
    """
    require("hub", "huggingface_hub")
    quieten()
    with explaining(address):
        folder = _record(address)
    found = read(folder)["files"]
    pinned = of_folder(folder) or address
    missing = [name for name, known in found.items() if _size(folder / name) != known["bytes"]]
    if missing:
        with explaining(pinned):
            _check_room(pinned, sum(found[name]["bytes"] for name in missing), folder)
            _download(pinned, found, missing)
    return folder


def lens(address: Address, endings: tuple[str, ...]) -> Address:
    """The address of a lens with its file, by default the only one in the repository that ends in one of `endings`.

    Raises InputError, also for a file that is too large for the disk.
    """
    require("hub", "huggingface_hub")
    from huggingface_hub import HfApi, constants

    quieten()
    with explaining(address):
        if address.file is None:
            kind, at = address.kind, address.revision
            names = HfApi().list_repo_files(address.repository, repo_type=kind, revision=at)
            address = _only(address, sorted(name for name in names if name.endswith(endings)))
        _check_room(address, _look(address, str(address.file)) or 0, Path(constants.HF_HUB_CACHE))
    return address


def _only(address: Address, names: Sequence[str]) -> Address:
    """The address of the only file. Raises InputError if there are none or several."""
    if len(names) == 1:
        return replace(address, file=names[0])
    if not names:
        raise InputError(f"{address} has no lens. Name a repository with a .safetensors file.")
    raise InputError(
        f"{address} has {len(names)} lenses: {', '.join(names[:LISTED])}{' and more' if len(names) > LISTED else ''}. "
        f"Name one, such as {replace(address, file=names[0])}."
    )


def quieten() -> None:
    """Turn off what huggingface_hub prints: every retry, and progress bars unless stderr is a terminal."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


def _record(address: Address) -> Path:
    """Download scan.json, and return its folder. Raises InputError, and the errors of huggingface_hub."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        size = _look(address, RECORD)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError as error:
        raise InputError(
            f"The data set {address.repository} has no {RECORD} at {address.revision}, so it isn't a scan. Only what "
            "`internal-policy push` uploaded can be opened; use `datasets.load_dataset` for other data sets."
        ) from error
    if size is None or size > LARGEST_RECORD:
        large = "an unknown size" if size is None else f"{size:,} bytes"
        raise InputError(f"{address} has a {RECORD} of {large}, so it isn't opened. Use another revision.")
    return _get(address, RECORD).parent  # which is named after the commit


def _look(address: Address, name: str) -> int | None:
    """The size of a file on the Hub, or without a network in the cache; None if the Hub doesn't tell."""
    from huggingface_hub import hf_hub_download

    about: Any = hf_hub_download(
        address.repository, name, repo_type=address.kind, revision=address.revision, dry_run=True
    )
    return about.file_size


def _get(address: Address, name: str) -> Path:
    """Download a file, unless the cache has it."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(address.repository, name, repo_type=address.kind, revision=address.revision))


def _check_room(address: Address, size: int, folder: Path) -> None:
    """Raise InputError for what is too large to download without a thought, or for the disk of a folder."""
    folder = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    if size > min(LARGEST, free):
        why = f"the disk of {folder} has {free / 2**30:,.1f} GB" if size > free else "that may be a mistake"
        kind = f" --repo-type {address.kind}" if address.kind == "dataset" else ""
        raise InputError(
            f"{address} has {size / 2**30:,.1f} GB to download, but {why}. To download it all the same, run `hf "
            f"download {address.repository}{kind} --revision {address.revision} --local-dir FOLDER`, and name that."
        )


def _download(address: Address, listed: Mapping[str, Any], names: Sequence[str]) -> None:
    """Download files and compare each with what scan.json lists. Raises InputError for the first that differs."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(name: str) -> None:
        try:
            size = _look(address, name)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise DamageError(
                f"{address} lacks {name}, which its {RECORD} lists, so the scan isn't opened. Use another revision, or "
                "tell its owner."
            ) from error
        if size != listed[name]["bytes"]:
            raise _other(address, name, f"it has {size or 0:,} bytes instead of {listed[name]['bytes']:,}")
        path = _get(address, name)
        if files.fingerprint(path) != listed[name]:
            path.unlink()  # so that the next command compares it again
            raise _other(address, name, "its SHA-256 differs")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(fetch, names):
            pass


def _other(address: Address, name: str, why: str) -> DamageError:
    return DamageError(
        f"{address} has another {name} than its {RECORD} lists ({why}), so the scan isn't opened. Use another "
        "revision, or tell its owner."
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
