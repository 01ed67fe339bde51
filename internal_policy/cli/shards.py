"""Coordinate the commands of processes that share some work: which of them writes and prints the result."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.cli import outputs, progress
from internal_policy.errors import InputError, counted
from internal_policy.scans.shard import Worker


def check_other(worker: Worker, folder: Path, other: bool) -> None:
    """Raise InputError if several processes were to replace the `other` work in a folder."""
    if other and not worker.is_alone:
        raise InputError(
            f"{folder} contains other work, which only a single process can replace. Remove it with `internal-policy "
            f"rm {folder}`, or choose another --output."
        )


def note_left(worker: Worker, left: int, total: int, folder: Path) -> None:
    """Say how many parts are left once a shard is done."""
    progress.note(
        f"Shard {worker.shard} is done; {left} of {counted(total, 'part')} {'is' if left == 1 else 'are'} left to "
        f"others in {folder}. The shard that finishes last writes the result, if all shards share this folder. To "
        "finish without them, run the same command without --shard."
    )


def remove(parts: Path) -> None:
    """Remove the folder of parts that were put together, unless another process still reads it and will remove it."""
    if not files.writers(parts):
        shutil.rmtree(parts, ignore_errors=True)


@dataclass(frozen=True)
class SharedFile:
    """A file that processes write together: each samples parts into a folder, and one puts them together."""

    worker: Worker
    """This process among them."""
    output: Path
    """The file."""
    question: Mapping[str, Any]
    """The options that decide what is in it."""
    parts: Path
    """The folder of the parts."""

    def is_written(self, force: bool, endings: Sequence[str], inputs: Sequence[str]) -> bool:
        """Whether the other processes have written the file already; otherwise this one joins them.

        Raises InputError for a file that can't be written or that something else wrote, and if processes have begun it
        with different options.
        """
        if self.worker.is_alone:
            return False
        if self.is_over():
            progress.note(f"{self.output} is already written.")
            return True
        if force and self.output.exists():
            raise InputError(f"Several processes can't replace {self.output}. Remove it, or choose another --output.")
        outputs.check_file(self.output, force, *endings, inputs=inputs)
        self._join()
        return False

    def is_over(self) -> bool:
        """Whether another process has written the file meanwhile, or is writing it at this moment."""
        note = None if self.worker.is_alone else self._noted()
        if note is None or note["digest"] != self._digest or not note.get("is_written") or not self.output.exists():
            return False
        return note["content"] in (None, files.fingerprint(self.output))

    def leave(self, left: int, total: int) -> None:
        """End without a result, because other processes still have parts, or have just finished the file."""
        if self.is_over():
            remove(self.parts)
        else:
            note_left(self.worker, left, total, self.parts)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While open, the file is written from the parts; a process that begins late learns that it has no work."""
        if not self.worker.is_alone:
            self._write({"is_written": True, "content": None})
        yield
        if not self.worker.is_alone:
            self._write({"is_written": True, "content": files.fingerprint(self.output)})

    def _join(self) -> None:
        from internal_policy.scans import claims

        before = self._noted()
        self.parts.mkdir(parents=True, exist_ok=True)
        if before and before["digest"] != self._digest and not files.is_folder(Path(before["parts"])):
            self._note.unlink(missing_ok=True)  # that work is finished, or was removed
        self._write({}, once=True)
        found = self._noted()
        if found and found["digest"] != self._digest:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in claims.changed(found["asked"], self.question))
            settings = f"different settings ({names})" if names else "different settings"
            raise InputError(
                f"Other processes have begun {self.output} with {settings}. Use the same settings, choose another "
                f"--output, or remove theirs with `internal-policy rm {found['parts']}`."
            )

    @property
    def _digest(self) -> str:
        from internal_policy.scans import store

        return store.digest(self.question)

    @property
    def _note(self) -> Path:
        """The path of the note that the processes share: which options the file has, and whether it is written."""
        from internal_policy.scans import store

        return self.parts.parent / f"{store.digest({'output': self.output.absolute()})}.json"

    def _write(self, state: Mapping[str, Any], *, once: bool = False) -> None:
        from internal_policy.scans import records

        note = {"digest": self._digest, "asked": self.question, "parts": self.parts, **state}
        records.write(self._note, note, once=once)

    def _noted(self) -> dict[str, Any] | None:
        from internal_policy.scans import records

        try:
            found = records.read(self._note)
        except records.DAMAGE:
            return None
        return found if {"digest", "asked", "parts"} <= found.keys() else None
