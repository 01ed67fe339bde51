"""The address of a scan or a lens on the Hugging Face Hub, such as hf://datasets/org/name@revision."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from internal_policy.errors import InputError

Kind = Literal["dataset", "model"]
"""What a repository of the Hub is; scans are in data sets, lenses in models."""
PREFIX: dict[Kind, str] = {"dataset": "datasets/", "model": ""}
"""How the path of each kind of repository begins on the Hub."""
MAIN = "main"
NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
REPOSITORY = re.compile(NAME, re.ASCII)
"""The name of a repository: org/name."""
ADDRESS = re.compile(
    rf"hf:/{{1,2}}(?P<datasets>datasets/)?(?P<repository>{NAME})(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
"""An address; paths join the two slashes."""
SNAPSHOT = re.compile(r"(?P<kind>dataset|model)s--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)", re.ASCII)
"""Name of a repository's folder in the Hub's cache, which holds snapshots/<commit>."""
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """A repository of the Hub at a revision."""

    kind: Kind
    repository: str
    """Its name: org/name."""
    revision: str = MAIN
    """A branch, a tag or a commit."""
    file: str | None = None
    """A file in it; None for the repository."""

    def __str__(self) -> str:
        """Return the address as it is typed."""
        file = "" if self.file is None else f"/{self.file}"
        at = "" if self.revision == MAIN else f"@{self.revision}"
        return f"hf://{PREFIX[self.kind]}{self.repository}{file}{at}"

    @property
    def page(self) -> str:
        """The address of its page."""
        return f"https://huggingface.co/{PREFIX[self.kind]}{self.repository}"


def is_address(name: str) -> bool:
    """Whether a name is meant as an address on the Hub, valid or not."""
    return name.startswith("hf:/")


def is_of_data_set(name: str) -> bool:
    """Whether an address, valid or not, is that of a data set."""
    return name.removeprefix("hf:").lstrip("/").startswith(PREFIX["dataset"])


def scan(text: str) -> Address:
    """The address of a scan: hf://datasets/org/name[@revision]. Raises InputError for any other text."""
    match = ADDRESS.fullmatch(text)
    if match is None or not match["datasets"] or match["file"] or not _is_safe(match["revision"]):
        raise InputError(
            f"'{text:.200}' isn't the address of a scan. Write hf://datasets/org/name or hf://datasets/org/name@revision."
        )
    return Address("dataset", match["repository"], match["revision"] or MAIN)


def lens(text: str) -> Address:
    """The address of a lens: hf://org/name[/file][@revision]. Raises InputError for any other text."""
    match = ADDRESS.fullmatch(text)
    if match is None or is_of_data_set(text) or not (_is_safe(match["file"]) and _is_safe(match["revision"])):
        raise InputError(
            f"'{text:.200}' isn't the address of a lens. Write hf://org/name, hf://org/name/file.safetensors or "
            "hf://org/name/file.safetensors@revision."
        )
    return Address("model", match["repository"], match["revision"] or MAIN, match["file"])


def _is_safe(path: str | None) -> bool:
    """Whether a file's path or a revision, which becomes one, stays in its folder; None counts as safe."""
    if path is None:
        return True
    parts = path.split("/")
    return not {"", ".", ".."} & {*parts} and "\\" not in path and str(PurePosixPath(path)) == path


def of_folder(folder: Path) -> Address | None:
    """The address of the copy in a folder of the Hub's cache, at its commit; None for any other folder."""
    *_, repository, snapshots, commit = ("", "", *folder.absolute().parts)[-3:]
    match = SNAPSHOT.fullmatch(repository)
    if match is None or snapshots != "snapshots" or not COMMIT.fullmatch(commit):
        return None
    return Address("dataset" if match["kind"] == "dataset" else "model", f"{match['org']}/{match['name']}", commit)


def called(source: object) -> str:
    """What to call a scan: its address if it is a copy from the Hub, else its folder."""
    return str((of_folder(source) if isinstance(source, Path) else None) or source)
