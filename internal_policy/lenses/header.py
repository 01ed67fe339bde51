"""Read from the header of a lens file which kind of lens it holds and what it was fitted to, without torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.errors import InputError, check_path

ABOUT = "internal_policy"
"""Key in the file's metadata; its JSON value describes the lens."""
SHA256 = "sha256"
"""Key of the lens's digest in the header."""
KIND_OF = {"weight": "tuned", "bias": "tuned", "jacobian": "jacobian"}
"""Last word of a tensor's key -> the kind of lens that it is a part of."""
MOST = 100_000_000
"""Bytes of a header at most, as in the safetensors library."""


@dataclass(frozen=True)
class Header:
    """What is known of a lens before its maps are read."""

    kind: str
    """tuned or jacobian: that of the first tensor, since `file.read` refuses a file with several kinds."""
    about: Mapping[str, Any]
    """What its file says about it: model, identity, d_model, what it was fitted on, kl."""
    sha256: str | None = None
    """The digest that it was written with, as from `digest.of`; None if there is none."""


def unknown(called: str, about: Mapping[str, Any], identity: str | None = "") -> str | None:
    """A note if the lens or the model has no identity, because they can't be matched then; None if both have one."""
    fitted = about.get("identity")
    if fitted is not None and identity is not None:
        return None
    why = "doesn't record which model it was fitted to" if fitted is None else "can't be matched with this model"
    return f"{called} {why}, so only its shapes were checked."


def check_model(called: str, about: Mapping[str, Any], identity: str, model: str) -> None:
    """Raise InputError for a lens that was fitted to another model than `model`, which has that identity."""
    fitted = str(about.get("identity"))
    if unknown(called, about, identity) is not None or fitted == identity:
        return
    raise InputError(
        f"{called} was fitted to another model, {about.get('model')} ({fitted:.60}), but this is {model} "
        f"({identity:.60}). Fit a lens to this model with fit-lens, or read through this one all the same with "
        "--lens-of-another-model (of_another_model=True in Python)."
    )


def is_file(path: Path) -> bool:
    """Whether a path is a file; False for a name that isn't a valid path."""
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises for a long name


def header(path: Path, called: str | Path | None = None) -> Header:
    """The header of a safetensors file. Raises InputError for any other file, and for one without a lens.

    Errors name the file as it was `called`, by default by its path.
    """
    name = called or path
    check_path(path)
    if not is_file(path):
        what = "is a folder" if files.is_folder(path) else "doesn't exist"
        raise InputError(f"The lens {name} {what}. Use a .safetensors file written by `internal-policy fit-lens`.")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MOST, path.stat().st_size):
                raise ValueError("its header is longer than the file")
            tensors = json.loads(file.read(length))
        if not isinstance(tensors, dict):
            raise ValueError("its header isn't a JSON object")
        about = dict(json.loads((tensors.pop("__metadata__", None) or {}).get(ABOUT, "{}")))
        sha256 = about.pop(SHA256, None)
        if type(sha256) not in (str, type(None)):
            raise ValueError("its digest isn't a text")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"Can't read {name} as safetensors ({error}). Get a complete copy of the lens.") from error
    if not tensors:
        raise InputError(f"{name} contains no lens. Fit one with `internal-policy fit-lens`.")
    first = next(iter(tensors))
    if first.rpartition(".")[2] not in KIND_OF:
        raise InputError(
            f"{name} has the key '{first:.60}', but a lens has keys such as 5.resid_post.weight and "
            "5.resid_post.bias, 5.resid_post.jacobian, or 5.weight and 5.bias in the tuned-lens library's files."
        )
    return Header(KIND_OF[first.rpartition(".")[2]], about, sha256)
