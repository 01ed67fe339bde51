"""The digest that is recorded in the file of a lens, by which alterations are noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from internal_policy.errors import InputError
from internal_policy.lenses.header import header


def of(tensors: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """The SHA-256 of a lens: of what its file says about it, and of the keys and digests of its `tensors`."""
    try:
        text = json.dumps([about, sorted(tensors.items())], sort_keys=True, default=str)
    except RecursionError:  # of a header that was made to lie
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def of_tensor(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's type, shape and numbers."""
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(numbers.data)
    return found.hexdigest()


def is_as_written(path: Path) -> bool:
    """Whether a lens has the recorded digest. Raises InputError if none is recorded, or it can't be read at all."""
    about = header(path)
    if about.sha256 is None:
        raise InputError(f"{path} records no digest, because an earlier version or another program wrote it.")
    try:
        with safe_open(path, "pt") as file:
            found = {key: of_tensor(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except SafetensorError:
        return False
    return of(found, about.about) == about.sha256
