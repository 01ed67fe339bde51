"""Print an error once, although a launcher started several processes that all fail alike."""

import json
import os
import time
from pathlib import Path

from internal_policy.cli.console import Terminal
from internal_policy.secrecy import printable

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable with the file from which torchrun reads why a process failed, for its summary."""


def is_first() -> bool:
    """Whether this is the first process of a launcher, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def is_shared() -> bool:
    """Whether this is one of several processes of a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def report(text: str, say: Terminal) -> None:
    """Print why this process failed, without secrets, and tell torchrun.

    Processes of torchrun but the first leave it to its summary.
    """
    text = printable(text)
    if file := os.environ.get(ERROR_FILE):
        Path(file).write_text(json.dumps({"message": text, "timestamp": int(time.time())}), encoding="utf-8")
    if not file or is_first():
        say.print(text)
