"""Keep a forward pass independent of compilation, training mode, batch mates and earlier passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_lock = Lock()
_stances: list[Any] = []
"""One for each `eager` that is open, in any thread; the first knows what the stance was before them all."""


@contextmanager
def eager() -> Iterator[None]:
    """Inside, compiled modules run uncompiled, in every thread: compiled code may leave hooks out."""
    with _lock:
        _stances.append(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            stance = _stances.pop()
            if not _stances:
                stance.__exit__(None, None, None)
