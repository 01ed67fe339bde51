"""Find the safetensors file of a lens: a file, the copy of a published one, or a download from the hub."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.lenses.header import is_file
from internal_policy.models.failures import explained
from internal_policy.scans import address, hub

HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+):(?P<path>[^@]+)(?:@(?P<revision>.+))?")
"""A lens on the hub: org/repo:path/in/repo[@revision]."""
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
"""How the names of files end that torch.save wrote."""
ENDINGS = (".safetensors", *PICKLES)
"""How the names of lenses end."""
FOLDER = "lenses"
"""Folder of the cache with a safetensors copy of each published lens, named after its SHA-256."""


@dataclass(frozen=True)
class Source:
    """Where a lens is."""

    path: Path
    """Its safetensors file."""
    commit: str | None = None
    """The commit on the hub that it comes from."""


def is_lens(given: str | Path) -> bool:
    """Whether a name can only be that of a lens: a file, the name of one, or the address of one on the hub."""
    if address.is_address(str(given)):
        return not address.is_of_data_set(str(given))
    return is_file(Path(given)) or Path(given).suffix in ENDINGS or HUB.fullmatch(str(given)) is not None


def find(given: str | Path) -> Source:
    """The file of a lens: a path, or on the hub hf://org/repo[/path/in/repo][@revision] or org/repo:path[@revision].

    A published Jacobian lens (.pt) is copied once to a safetensors file in the cache. Raises InputError, also if the
    hub can't be reached.
    """
    if address.is_address(str(given)):
        at = hub.lens(address.lens(str(given)), ENDINGS)
        path, commit = _downloaded(at.repository, str(at.file), at.revision)
        return Source(_safe(path), commit)
    match = HUB.fullmatch(str(given))
    if match is None or is_file(Path(given)):
        return Source(_safe(Path(given)))
    path, commit = _downloaded(match["repository"], match["path"], match["revision"] or "main")
    return Source(_safe(path), commit)


def _safe(path: Path) -> Path:
    """A file itself, or the safetensors copy of one that torch.save wrote."""
    known = files.fingerprint_once(path) if path.suffix in PICKLES and is_file(path) else None
    if known is None:
        return path
    from internal_policy.scans import store  # imports pandas, which --help doesn't need

    copy = store.root() / FOLDER / f"{known['sha256']}.safetensors"
    if not copy.exists():
        from internal_policy.lenses import published

        published.copy(path, copy)
    return copy


def _downloaded(repository: str, path: str, revision: str) -> tuple[Path, str]:
    """A file of the hub in the local hub cache, and its commit. Raises InputError."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or "\\" in path or ".." in parts or PurePosixPath(path).suffix not in ENDINGS:
        raise InputError(
            f"'{path:.80}' isn't the path of a lens in {repository}. Write org/repo:path/in/repo, such as "
            "org/lenses:qwen3/jacobian.pt."
        )
    with explained(repository, revision):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from huggingface_hub.utils.logging import set_verbosity_error

        set_verbosity_error()  # otherwise it reports every retry
        try:
            found = Path(hf_hub_download(repository, path, revision=revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise InputError(
                f"{repository} has no file {path} at {revision}. Look it up at https://huggingface.co/{repository}."
            ) from error
    return found, found.parents[len(parts) - 1].name  # the folder of a commit is named after it
