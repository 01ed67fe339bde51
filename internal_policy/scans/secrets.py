"""Find what looks like a password or a token in the texts of a scan, before they are published."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.types as types

from internal_policy.scans import store
from internal_policy.secrecy import SHAPED


class Place(NamedTuple):
    """A text that looks as if it held a secret."""

    rollout: int
    column: str


def places(folder: Path) -> Iterator[Place]:
    """The texts of rollouts with a part that is shaped like a key or a token. Raises InputError for a damaged part."""
    for table in store.pieces(folder, "rollouts"):
        texts = [
            field.name for field in table.schema if types.is_string(field.type) or types.is_large_string(field.type)
        ]
        numbers = table["rollout"].to_pylist()
        for name in texts:
            for number, text in zip(numbers, table[name].to_pylist(), strict=True):
                if text and SHAPED.search(text):
                    yield Place(number, name)
