"""Give many lies to each reader in a process of its own, and count what it does with them."""

import faulthandler
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from internal_policy.errors import InputError

from . import lies, seeds
from .lies import Content
from .readers import READERS, Reader

SECONDS = 5.0
"""Processor time that a reader may use for one input."""
PATIENCE = 15
"""Seconds after which a reader that uses no processor time counts as waiting forever."""
MEMORY = 2**30
"""Bytes that a reader may add to the address space of its process."""
KEPT = 3
"""Inputs that are kept of each failure."""
OUTSIDE = ("secret.json", "secret.parquet", "secret.safetensors", "secret.yaml")
"""Files beside each case that no reader may open or change."""


def shares(inputs: int, names: Sequence[str]) -> dict[str, int]:
    """How many of all inputs each reader gets, at least one."""
    total = sum(READERS[name].share for name in names)
    return {name: max(1, round(inputs * READERS[name].share / total)) for name in names}


def prepared(root: Path) -> Path:
    """The folder with all sound files, written by another process so that this one starts no threads."""
    process = get_context("fork").Process(target=seeds.make, args=(root,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the sound files couldn't be written")
    return root


@dataclass
class Result:
    """What a reader did with its inputs."""

    inputs: int = 0
    """How many it was given."""
    accepted: int = 0
    """How many gave a value."""
    refused: int = 0
    """How many ended in a sentence."""
    failures: dict[str, list[Path]] = field(default_factory=dict)
    """What went wrong -> the inputs that did it."""
    slowest: float = 0.0
    """Longest processor time of one input in seconds."""
    memory: int = 0
    """Bytes that its process grew by at most."""


def run(name: str, inputs: int, sound: Path, work: Path, number: int = 0) -> Result:
    """Give a reader so many lies made from `sound` files; those that break it are kept in the folder `work`/kept.

    `number` is the seed of their random numbers. Each sound folder is read first, which must succeed.
    """
    reader, result = READERS[name], Result()
    folders = [path for path in sorted(sound.iterdir()) if path.name.partition("~")[0] in reader.seeds]
    contents = {folder.name: {path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders}
    with Child(reader, work) as child:
        for started in reader.seeds:
            child.place(sound / started, {})
            outcome, what, _ = child.ask()
            if outcome == "failed" or (outcome == "refused" and not reader.refuses):
                result.failures[f"the sound {started}: {what}"] = [sound / started]

        @seed(number)
        @settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
            derandomize=False,
        )
        @given(lies.cases(contents, reader.lying))
        def give(case: tuple[str, dict[str, Content]]) -> None:
            if result.inputs < inputs:
                started, changes = case
                child.place(sound / started, changes)
                _count(result, child, f"{name}-{result.inputs + 1}")

        give()
    result.memory = child.grown
    return result


def _count(result: Result, child: "Child", called: str) -> None:
    """Let a reader read the input in place, and count what it does."""
    outcome, what, seconds = child.ask()
    result.inputs += 1
    result.slowest = max(result.slowest, seconds)
    result.accepted += outcome == "accepted"
    result.refused += outcome == "refused"
    if outcome == "failed":
        kept = result.failures.setdefault(what, [])
        kept.append(child.keep(called, what) if len(kept) < KEPT else kept[-1])


class Child:
    """A forked process that reads one input after the other, and is replaced when it breaks."""

    def __init__(self, reader: Reader, work: Path) -> None:
        """Prepare to read inputs in `work`/case; the process starts with the first."""
        self.reader, self.work, self.case = reader, work, work / "case" / "input"
        self.process: Any = None
        self.pipe: Connection | None = None
        self.grown = 0
        held = work / "case" / lies.HELD
        held.mkdir(parents=True, exist_ok=True)
        for name in OUTSIDE:
            (work / "case" / name).write_text('{"schema": 1}')

    def __enter__(self) -> "Child":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process."""
        self.stop()

    def place(self, sound: Path, changes: dict[str, Content]) -> None:
        """Write an input: links to the sound files, and the files that lie."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir(parents=True)
        for path in sound.iterdir():
            if path.name not in changes:
                (self.case / path.name).symlink_to(path)
        for name, content in changes.items():
            lies.put(self.case / name, content)
        self.before = self._listed()

    def ask(self) -> tuple[str, str, float]:
        """What the reader does with the input: accepted, refused or failed, what went wrong, and seconds."""
        if self.process is None or not self.process.is_alive():
            self.start()
        assert self.pipe is not None
        self.pipe.send("read")
        answer = ("failed", "", 0.0, 0)
        with suppress(EOFError, ConnectionResetError):
            answer = self.pipe.recv() if self._answers(self.pipe) else ("failed", "waits forever", 0.0, 0)
        outcome, what, seconds, grown = answer
        if what in ("", "waits forever") and outcome == "failed":
            process = self.process
            assert process is not None
            self.stop()
            code = process.exitcode
            slow = code in (-signal.SIGPROF, -signal.SIGKILL)
            what = what or ("takes too long" if slow else f"ended with {code}")
            self.process = None
        self.grown = max(self.grown, grown)
        if outcome != "failed" and self._listed() != self.before:
            outcome, what = "failed", f"wrote {sorted(self._listed() ^ self.before)[0]}"
        return outcome, what, seconds

    def _answers(self, pipe: Connection) -> bool:
        """Whether there is an answer, or the process ends, before it has waited for too long."""
        used, idle = -1, 0
        while idle < PATIENCE:
            if pipe.poll(1):
                return True
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            now = int(fields[11]) + int(fields[12])
            used, idle = now, idle + 1 if now == used else 0
        return False

    def _listed(self) -> set[tuple[str, int]]:
        """What is in the folders around the input, but for links to sound files."""
        around = [self.work / "case", self.work / "case" / lies.HELD, self.case]
        return {(f"{folder.name}/{path.name}", path.lstat().st_mtime_ns * (folder != around[0] or path.is_file()))
                for folder in around for path in folder.iterdir()}  # fmt: skip

    def keep(self, name: str, what: str) -> Path:
        """Copy the input to where it can be looked at, with what went wrong."""
        kept = self.work / "kept" / name.replace(" ", "-").replace("/", "-")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.case, kept, symlinks=True, copy_function=_copied)
        (kept.parent / f"{kept.name}.txt").write_text(what, errors="backslashreplace")
        return kept

    def start(self) -> None:
        """Start the process."""
        context = get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.reader.read, self.case, theirs), daemon=False)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """Stop the process if it runs."""
        if self.process is not None:
            if self.process.is_alive() and self.pipe is not None and not self.pipe.closed:
                self.process.join(0.5 if self.process.exitcode is None else 0)
                self.process.kill()
            self.process.join()


def _copied(source: str, target: str) -> str:
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy(source, target, follow_symlinks=False)
    return target


# what runs in the child

_seen: list[str] = []
"""What the audit hook found while an input was read."""


def _serve(read: Callable[[Path], Any], case: Path, pipe: Connection) -> None:
    faulthandler.disable()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.chdir(case.parent / lies.HELD)
    limit = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_audit(case.parent))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while True:
        try:
            pipe.recv()
        except EOFError:
            os._exit(0)
        _seen.clear()
        before = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        outcome, what = _outcome(read, case)
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
        pipe.send((outcome, what, time.process_time() - before, 1024 * grown))


def _outcome(read: Callable[[Path], Any], case: Path) -> tuple[str, str]:
    outcome, what = "accepted", ""
    try:
        read(case)
    except InputError as error:
        outcome, what = "refused", str(error)[:200]
    except BaseException as error:  # also a panic of Rust code, which isn't an Exception
        outcome, what = "failed", _where(error)
    if _seen:
        outcome, what = "failed", _seen[0]
    return outcome, what


def _where(error: BaseException) -> str:
    """An error with the innermost line of ours, by which failures are counted."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "internal_policy/" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {place}"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _audit(around: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """A hook that notes pickles, started programs, connections, and opened files that no reader should touch."""
    held = [str(around / name) for name in OUTSIDE]
    starting = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            _seen.append(f"unpickled {given[0]}.{given[1]}")
        elif event in starting and "internal_policy.models.templates" not in str(given):
            _seen.append(f"{event} {str(given)[:100]}")
        elif event == "open" and isinstance(given[0], str) and given[0].startswith("/etc/shadow"):
            _seen.append(f"opened {given[0]}")
        elif event == "open" and isinstance(given[0], str | Path) and ".." in str(given[0]):
            path = os.path.abspath(str(given[0]))  # noqa: PTH100  # Path.resolve would follow links
            if path in held or path.startswith(str(around / lies.HELD)):
                _seen.append(f"opened {given[0]}")

    return hook
