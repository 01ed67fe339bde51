"""Share the parts of some work with other processes: each process claims a part before it begins it."""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

from internal_policy import files
from internal_policy.errors import InputError

Part = TypeVar("Part", int, str)
BEAT = 15.0
"""Seconds between the signs of life of a process that has claimed a part."""
SILENCE = 120.0
"""Seconds without a sign of life after which a claim from another machine counts as abandoned; disks may stall."""
ABSENCE = 600.0
"""Seconds that processes wait for the one that leads them, which may still be loading its model."""
OWNER = re.compile("([0-9a-f]{8}) ([0-9]+)(?: ([0-9]+))?")
"""Text of a claim: which process made it, as `files.gone` takes it."""
GLANCE = 0.5
"""Seconds between looks at parts that others have claimed."""


@dataclass(frozen=True)
class Claims:
    """The parts in a folder that this process works on; while they are claimed, other processes leave them alone.

    A claim is a hidden file, which only one process can create. A process on this machine loses its claims when it
    ends, and one on another machine after SILENCE seconds. Then another process creates the next file of the part.
    """

    folder: Path
    """Folder with the parts."""
    mark: Path
    """This process's mark in it, as from `files.held`."""
    mine: dict[str, list[Path]] = field(default_factory=dict)
    """Each claimed part -> its file, and the files of processes that abandoned it."""
    begun: list[Path] = field(default_factory=list)
    """The file that is being made for a claim, if a signal came in between."""

    def take(self, part: int | str) -> bool:
        """Claim a part, unless a running process has it."""
        abandoned: list[Path] = []
        while True:
            path = self.folder / f".{part}-{len(abandoned)}.claim"
            self.begun.append(path)
            if created := files.created(path, " ".join(files.myself())):
                self.mine[str(part)] = [path, *abandoned]
            self.begun.remove(path)
            if created:
                return True
            if not self._is_abandoned(path):
                return False
            abandoned.append(path)

    def release(self, part: int | str) -> None:
        """Give up a claim, because the part is done or is left to other processes."""
        for path in self.mine.get(str(part), ()):
            path.unlink(missing_ok=True)
        self.mine.pop(str(part), None)

    def end(self) -> None:
        """Give up every claim of this process, also one during whose making a signal came."""
        for part in [*self.mine]:
            self.release(part)
        for path in self.begun:
            with suppress(OSError):
                if path.read_text() == " ".join(files.myself()):
                    path.unlink()

    def sweep(self) -> None:
        """Remove what ended processes left in the folder. Only once all parts are done, because claims are counted."""
        files.sweep(self.folder)
        counted = {path for paths in self.mine.values() for path in paths}
        for path in {*self.folder.glob(".*.claim")} - counted:
            if files.CLAIM.fullmatch(path.name) and self._is_abandoned(path):
                path.unlink(missing_ok=True)

    def beat(self, over: Callable[[float], bool]) -> None:
        """Give signs of life until the work is over. `over` waits up to so many seconds for that."""
        while not over(BEAT):
            for path in (self.mark, *(paths[0] for paths in [*self.mine.values()])):
                with suppress(OSError):  # released a moment ago; a disk that fails fails the next write too
                    os.utime(path)

    def _is_abandoned(self, path: Path) -> bool:
        """Whether the process with a claim has ended. A claim that was released just now counts as in use.

        Raises InputError for a folder in the claim's place.
        """
        try:
            with path.open(encoding="utf-8", errors="replace") as file:  # makes a network disk look up its time again
                owner = OWNER.fullmatch(file.read(80))
                last = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return False
        except IsADirectoryError as error:
            raise InputError(f"{path} is a folder, but a file of that name is needed. Remove it.") from error
        if owner and files.gone(*owner.groups()):
            return True
        self.mark.touch()  # asks for the time of the disk, whose clock may differ from ours
        return abs(self.mark.stat().st_mtime - last) > SILENCE  # a restored file may even be from the future


def sweep(folder: Path) -> None:
    """Remove what ended processes of this machine left in a folder in which all is done."""
    files.sweep(folder)
    for path in folder.glob(".*.claim"):
        with suppress(OSError):  # another process removed it first, or the folder can't be written
            owner = OWNER.fullmatch(path.read_text(encoding="utf-8", errors="replace"))
            if files.CLAIM.fullmatch(path.name) and owner and files.gone(*owner.groups()):
                path.unlink()


def meet(claims: Claims, is_closed: Callable[[], bool]) -> None:
    """Wait until another process is in the folder too, or all is done.

    Raises InputError if none comes within ABSENCE seconds, because then the others don't share this folder.
    """
    own, until = f"process {os.getpid()}", time.monotonic() + ABSENCE
    while not is_closed() and not {*files.writers(claims.folder)} - {own}:
        if time.monotonic() > until:
            raise InputError(
                f"No other process is working in {claims.folder} on this machine. Processes on several machines must "
                "share one folder: choose an --output on a disk that all of them see."
            )
        time.sleep(GLANCE)


@contextmanager
def claiming(folder: Path) -> Iterator[Claims]:
    """While open, this process can claim parts in a folder, and is marked as writing to it. All claims end with it."""
    over = Event()
    with files.held(folder) as mark:
        claims = Claims(folder, mark)
        Thread(target=claims.beat, args=(over.wait,), daemon=True).start()
        try:
            yield claims
        finally:
            over.set()
            try:
                claims.end()
            except KeyboardInterrupt:  # a signal in the middle
                claims.end()
                raise


def turns(
    parts: Sequence[Part], claims: Claims, is_done: Callable[[Part], bool], *, waits: bool
) -> Iterator[tuple[Part, bool]]:
    """Yield each part once: with True if this process has claimed it and must do it, with False if it is done.

    The caller releases each claim. If `waits`, this ends when every part was yielded, which may mean waiting for other
    processes and doing parts that they abandoned. Otherwise it ends when other processes have claimed all parts left.
    """
    left = [*parts]
    while left:
        for part in [*left]:
            done = is_done(part)
            mine = not done and claims.take(part)
            if mine and is_done(part):  # another process finished it a moment ago
                claims.release(part)
                done, mine = True, False
            if done or mine:
                left.remove(part)
                yield part, mine
            if mine:
                break  # first look again at what others had
        else:
            if left and not waits:
                return
            if left:
                time.sleep(GLANCE)
