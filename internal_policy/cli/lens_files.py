"""Resolve --lens: which files hold lenses, and what their readouts are called."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.lenses import header
from internal_policy.lenses.header import KIND_OF, Header
from internal_policy.lenses.source import Source, find

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}")
"""Names that a readout may have on the command line."""
TAKEN = ("raw", "norm", "both")
"""Names with a meaning of their own for --readout."""


@dataclass(frozen=True)
class LensFile:
    """A lens that --lens names."""

    name: str
    """The name of its readout."""
    given: str
    """The file as it was typed."""
    path: Path
    """Its safetensors file."""
    header: Header
    """What is known of it."""
    content: Mapping[str, Any] | None
    """What identifies its content: the commit on the hub, or size and SHA-256."""


def split(word: str) -> tuple[str | None, str]:
    """The name of the readout and the file in NAME=FILE; None without a name."""
    name, equals, file = word.partition("=")
    return (name, file) if equals and NAME.fullmatch(name) else (None, word)


def resolve(words: Sequence[str]) -> tuple[LensFile, ...]:
    """The lenses that --lens names, each with its readout: NAME, by default the kind of the lens.

    Raises InputError for a file without a lens, a name that is taken, and two readouts of one name.
    """
    found: dict[str, LensFile] = {}
    for word in words:
        name, given = split(word)
        source = find(given)
        about = header.header(source.path, given)
        called = name or about.kind
        if called in TAKEN or (called in KIND_OF.values() and called != about.kind):
            raise InputError(f"--lens {word}: a {about.kind} lens can't be called '{called}'. Choose another name.")
        if called in found:
            raise InputError(
                f"The readouts of {found[called].given} and {given} are both called '{called}'. Give one of them a "
                f"name of its own, such as --lens other={given}."
            )
        found[called] = LensFile(called, given, source.path, about, _content(given, source))
    return tuple(found.values())


def _content(given: str, source: Source) -> dict[str, Any] | None:
    return {"revision": source.commit} if source.commit else files.fingerprint(Path(given))


def check_model(lenses: Sequence[LensFile], identity: str, model: str) -> None:
    """Raise InputError for a lens that was fitted to another model."""
    for lens in lenses:
        header.check_model(f"The lens {lens.given}", lens.header.about, identity, model)


def recorded(lens: LensFile) -> dict[str, Any]:
    """What the record of a scan tells of a lens: its kind, and the model that it was fitted to if its file knows it."""
    return {"kind": lens.header.kind, **{name: lens.header.about.get(name) for name in ("model", "identity")}}


def asked(lenses: Sequence[LensFile]) -> Any:
    """What a question records of its lenses; `records.lenses` reads it.

    A single tuned lens is recorded by its file alone, as in earlier versions, whose scans stay valid.
    """
    if [lens.name for lens in lenses] == ["tuned"]:
        return lenses[0].given
    return [[lens.name, lens.given] for lens in lenses]
