"""Upload files to a repository of the Hugging Face Hub in one commit."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internal_policy.errors import InputError
from internal_policy.scans.address import MAIN, Address
from internal_policy.scans.hub import quieten
from internal_policy.scans.hub_errors import explaining

OWN = {".gitattributes"}
"""Files that the Hub puts into a new repository."""
LISTED = 3
"""Files of others that an error message lists."""


@dataclass(frozen=True)
class Holding:
    """What a repository holds."""

    exists: bool
    private: bool
    files: frozenset[str]
    """Paths of its files at the branch, without those of the Hub."""


@dataclass(frozen=True)
class Uploaded:
    """A commit that was made."""

    commit: str
    url: str
    """Address of its page."""
    removed: tuple[str, ...]
    """Files of an earlier upload that the commit removed."""


def holding(address: Address) -> Holding:
    """What a repository holds at a branch, or at the main one if there is no such branch. Raises InputError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    quieten()
    with explaining(address):
        api, kind = HfApi(), address.kind
        try:
            found: Any = api.repo_info(address.repository, revision=address.revision, repo_type=kind)
        except RevisionNotFoundError:
            found = api.repo_info(address.repository, repo_type=kind)
        except RepositoryNotFoundError:
            return Holding(exists=False, private=False, files=frozenset())
    names = {file.rfilename for file in found.siblings or ()}
    return Holding(exists=True, private=bool(found.private), files=frozenset(names - OWN))


def check(address: Address, held: Holding, *, private: bool, force: bool) -> None:
    """Raise InputError for a repository with files, unless `force`, and for a public one if it has to be private."""
    if private and held.exists and not held.private:
        raise InputError(
            f"{address.repository} exists and is public. Make it private at {address.page}/settings first, or choose "
            "another name."
        )
    if held.files and not force:
        names = ", ".join(sorted(held.files)[:LISTED]) + (" and more" if len(held.files) > LISTED else "")
        raise InputError(
            f"{address.repository} already has files ({names}). Choose another name, or add --force to replace what "
            "was uploaded there; its earlier commits are kept."
        )


def validate(address: Address, card: str) -> None:
    """Raise InputError if the Hub doesn't take the metadata of a card, such as its licence."""
    from huggingface_hub import RepoCard

    with explaining(address, "write"):
        try:
            RepoCard(card).validate(repo_type=address.kind)
        except ValueError as error:
            raise InputError(f"The Hub refuses the card ({_messages(str(error)):.300}). Check --license.") from error


def _messages(text: str) -> str:
    """What is wrong with a card, from the Hub's answer."""
    try:
        return "; ".join(str(one["message"]) for one in json.loads(text)["errors"])
    except (ValueError, LookupError, TypeError):
        return " ".join(text.split())


def upload(
    address: Address, content: Mapping[str, Path | bytes], message: str, *, private: bool, stale: Collection[str]
) -> Uploaded:
    """Upload files to a repository, which is made if there is none, in one commit to the branch `address.revision`.

    The commit also removes the files `stale`. A branch that doesn't exist begins at the main one. Raises InputError.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    with explaining(address, "write"):
        api, kind = HfApi(library_name="internal-policy"), address.kind
        api.create_repo(address.repository, private=private or None, exist_ok=True, repo_type=kind)
        if address.revision != MAIN:
            api.create_branch(address.repository, branch=address.revision, exist_ok=True, repo_type=kind)
        operations = [
            *(CommitOperationDelete(path_in_repo=name) for name in sorted(stale)),
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in content.items()),
        ]
        made = api.create_commit(
            address.repository, operations, commit_message=message, revision=address.revision, repo_type=kind
        )
    return Uploaded(made.oid, str(made.commit_url), tuple(sorted(stale)))
