"""Errors for bad input: one sentence on what was given, what was expected and what to do."""

import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODELS = ("torch", "transformers", "accelerate", "datasets", "jaxtyping", "math_verify", "psutil")
"""Packages that are needed only to run models; the extra `models` installs them."""

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How an address begins. Paths join double slashes, and C:/ on Windows is too short to match."""


class InputError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do; the command line exits with 2."""


class DamageError(InputError):
    """A file was altered, cut short or removed after it was written: nothing may be shown in its place."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, of this machine or of a device."""
    said = ("out of memory", "allocate memory", "bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


DIGITS = 18
"""Most digits of a whole number in a text; Python refuses to read thousands, and no count has more."""


def is_count(text: str) -> bool:
    """Whether a text is a whole number from 0 that `int` can read, of at most DIGITS digits."""
    return text.isdecimal() and len(text) <= DIGITS


def first_line(error: Exception) -> str:
    """The first line of an error, as part of a sentence."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def installing(extra: str) -> str:
    """The command that brings an extra: pip's, or uvx's in an environment that uvx made for one command."""
    if "archive-v0" in Path(sys.prefix).parts:  # uv's cache
        return f"uvx --from 'internal-policy[{extra}]' internal-policy ..."
    return f"pip install 'internal-policy[{extra}]'"


def require(extra: str, *packages: str) -> None:
    """Raise InputError if one of these packages is missing, naming the extra that installs it."""
    for name in packages:
        if find_spec(name) is None:
            raise InputError(f"This needs {name}, which isn't installed. Run: {installing(extra)}")


def quoted(value: Any) -> str:
    """A value, or its beginning, as part of a sentence."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def counted(number: int, noun: str) -> str:
    """A number of things, as part of a sentence: `1 rollout`, `1,200 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def joined(parts: Sequence[str]) -> str:
    """A list of one or more, as part of a sentence: `a`, `a and b`, `a, b and c`."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def check_path(path: object) -> None:
    """Raise InputError for an address such as s3://bucket/scan, where only files and folders can be used."""
    if ADDRESS.match(str(path)):
        raise InputError(
            f"{path} is an address, but a path is needed. Copy the files, or mount the bucket as a folder."
        )
