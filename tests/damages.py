"""Ways to damage a part of a scan."""

import shutil
from collections.abc import Callable
from pathlib import Path


def _truncated(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def _zeroed(path: Path, _: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flipped(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 50):
        content[place] ^= 1 << (place // 50 % 8)
    path.write_bytes(content)


def _swapped(path: Path, _: Path) -> None:
    mate = path.with_name(path.name.replace("00000", "00001"))
    first = path.read_bytes()
    path.write_bytes(mate.read_bytes())
    mate.write_bytes(first)


def _overwritten(path: Path, _: Path) -> None:
    shutil.copy(path.with_name(path.name.replace("00000", "00001")), path)


def _foreign(path: Path, other: Path) -> None:
    shutil.copy(other / path.name, path)


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "truncated": _truncated,
    "zeroed": _zeroed,
    "flipped": _flipped,
    "swapped": _swapped,
    "overwritten with another part": _overwritten,
    "deleted": lambda path, _: path.unlink(),
    "of another scan": _foreign,
}
"""What happens -> a function of the path of a part, `...-00000.parquet`, and of the folder of another scan."""
