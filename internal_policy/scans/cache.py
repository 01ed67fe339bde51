"""The folder of all scans, and how a command names one of them."""

import os
import shlex
from pathlib import Path

from internal_policy import bundle
from internal_policy.errors import InputError, check_path
from internal_policy.scans.address import of_folder


def root() -> Path:
    """The folder of all scans: $INTERNAL_POLICY_CACHE, else internal-policy in the user's cache folder."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        named = os.environ.get("INTERNAL_POLICY_CACHE")
        if named:
            check_path(named)
            return Path(named).expanduser()
        # an empty or relative XDG_CACHE_HOME counts as unset, as its specification says
        return (caches if caches.is_absolute() else Path.home() / ".cache") / "internal-policy"
    except RuntimeError as error:
        raise InputError(
            f"Can't find a home folder for the cache ({error}). Set INTERNAL_POLICY_CACHE to a folder."
        ) from error


def repair(folder: Path) -> str:
    """How to repair a damaged scan, in a sentence."""
    if folder.resolve().is_relative_to(bundle.DATA.resolve()):
        return "It comes with the package; install that again."
    if copied := of_folder(folder):
        return f"It is a copy of {copied}. Remove it with `hf cache rm {copied.revision}` and download it again."
    name = folder.name if folder.resolve().parent.parent == root().resolve() else str(folder)
    return f"Repair it with `{shlex.join(['internal-policy', 'verify', name, '--repair'])}`."
