"""The command that made a scan, changed so that it can be run again."""

from pathlib import Path
from typing import Any

STARTED_AS = ("internal-policy", "internal-policy.exe", "__main__.py")
"""Names of the program in a recorded command."""


def repeated(command: Any, *dropped: str) -> list[str]:
    """The words of a scan's command, without its folder and without the `dropped` options; empty if unknown."""
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        return []
    if len(command) < 2 or Path(command[0]).name not in STARTED_AS or command[1] != "scan":
        return []
    valued = ("--output", "-o", *dropped)
    kept, words = ["internal-policy"], iter(command[1:])
    for word in words:
        if word in valued:
            next(words, None)
        elif word.partition("=")[0] not in valued and word not in ("--json", "--force"):
            kept.append(word)
    return kept
