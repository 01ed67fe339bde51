"""Start a command, break it, and let it go on."""

import gc
import importlib
import importlib.util
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.commands import Command

from internal_policy.errors import InputError
from internal_policy.scans import store

HERE = Path(__file__).parent
PATIENCE = 600.0
"""Seconds after which a command hangs."""
FORKS = "FAULTS_FORK"
"""Variable that makes commands forks of this process, which saves the seconds in which they import PyTorch."""

QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Variables of commands: no network, and one thread, because waiting for a second takes longer than a tiny model."""
PRELOADED = ("torch", "internal_policy.cli.main", "internal_policy.lenses.held_out", "internal_policy.train.run")
"""Modules that bring most of what commands import."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    """Its exit code; negative for the number of the signal that killed it."""
    said: str
    """What it wrote to stderr."""
    seconds: float
    """How long it ran."""

    @property
    def last(self) -> str:
        """The last line of stderr."""
        return (self.said.splitlines() or [""])[-1]


@dataclass(frozen=True)
class Reference:
    """A command that nothing disturbed."""

    result: Any
    """What it wrote."""
    seconds: float
    """How long it ran."""
    operations: list[str] = field(repr=False)
    """Its operations on files, in order."""


@dataclass(frozen=True)
class Trial:
    """A command that was broken once and went on."""

    moment: str
    """When it was broken."""
    phase: str
    """How far it was then."""
    failure: str
    """What went wrong; nothing if it ended as an undisturbed one."""


NOTHING = {"at": 0, "like": "", "act": "nothing", "target": "", "log": None}
"""A fault that doesn't happen."""


def preload() -> None:
    """Import what commands need, so that forks have it."""
    os.environ.update(QUIET)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy all of this memory


class Fork:
    """A command in a fork of this process, with the methods of `Popen` that are needed here."""

    def __init__(self, words: Sequence[str], room: Path, env: Mapping[str, str]) -> None:
        """Start it."""
        preload()
        self.process = multiprocessing.get_context("fork").Process(target=_forked, args=(words, room, env))
        self.process.start()

    def wait(self, timeout: float) -> int:
        """Wait for its end. Raises TimeoutExpired."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("internal-policy", timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid or 0, number)


def _forked(words: Sequence[str], room: Path, env: Mapping[str, str]) -> None:
    from internal_policy.cli.main import main

    os.chdir(room / "work")
    os.environ.clear()
    os.environ.update(env)
    with Path(os.devnull).open("w") as out, said(room).open("w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    sys.argv, sys.orig_argv = ["internal-policy", *words], [sys.executable, "-m", "internal_policy"]
    spec = importlib.util.spec_from_file_location("injected", HERE / "injected" / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    sys.exit(main(words))


def said(room: Path) -> Path:
    """The file with what the last command in a room wrote to stderr."""
    return room / "stderr"


def environment(room: Path, fault: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The environment of a command in a room, with what breaks it."""
    paths = [*([str(HERE / "injected")] if fault else []), str(HERE.parents[1])]
    folders = [str(room / name) for name in ("work", "cache")]
    more = {"FAULT": json.dumps({"folders": folders, **NOTHING, **fault})} if fault else {}
    own = {"INTERNAL_POLICY_CACHE": str(room / "cache"), "PYTHONPATH": os.pathsep.join(paths)}
    return {**os.environ, **QUIET, **own, **more}


def started(words: Sequence[str], room: Path, fault: Mapping[str, Any] | None = None) -> Any:
    """Start a command in the folder `work` of a room."""
    (room / "work").mkdir(parents=True, exist_ok=True)
    said(room).write_text("")
    env = environment(room, fault)
    if FORKS in os.environ:
        return Fork(words, room, env)
    command = [sys.executable, "-m", "internal_policy", *words]
    with said(room).open("w") as err:
        return subprocess.Popen(command, cwd=room / "work", env=env, stdout=subprocess.DEVNULL, stderr=err)


def ended(child: Any, room: Path, begun: float) -> Ended:
    """Wait for a command."""
    try:
        code = child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        return Ended(child.wait(PATIENCE), f"It hung for {PATIENCE:.0f} s.", PATIENCE)
    return Ended(code, said(room).read_text(encoding="utf-8"), time.monotonic() - begun)


def finished(words: Sequence[str], room: Path, fault: Mapping[str, Any] | None = None) -> Ended:
    """Run a command to its end."""
    begun = time.monotonic()
    return ended(started(words, room, fault), room, begun)


def undisturbed(command: Command, room: Path) -> Reference:
    """Run a command that nothing disturbs."""
    log = room.parent / f"{room.name}.log"
    done = finished(command.words, room, {"log": str(log)})
    assert done.code == 0, done.said
    return Reference(command.result(room), done.seconds, log.read_text().splitlines())


def moments(reference: Reference, kills: int, seed: int) -> Iterator[dict[str, Any]]:
    """When to break a command and how: by turns before one of its file operations and at any time; every third SIGTERM.

    The operations are those that an undisturbed run does, the times are spread over how long it takes.
    """
    drawn = random.Random(seed)
    for number in range(kills):
        act = "terminate" if number % 3 == 2 else "kill"
        if number % 2 == 0:
            yield {"act": act, "at": drawn.randint(1, len(reference.operations))}
        else:
            yield {"act": act, "after": drawn.uniform(0, reference.seconds)}


def broken(words: Sequence[str], room: Path, moment: Mapping[str, Any]) -> Ended:
    """Run a command until it is broken at a moment."""
    begun = time.monotonic()
    if "after" not in moment:
        return finished(words, room, moment)
    child = started(words, room)
    try:
        child.wait(moment["after"])
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL if moment["act"] == "kill" else signal.SIGTERM)
    return ended(child, room, begun)


def in_words(moment: Mapping[str, Any]) -> str:
    """A moment in words."""
    how = "SIGTERM" if moment["act"] == "terminate" else "kill -9"
    return f"{how} at operation {moment['at']}" if "at" in moment else f"{how} after {moment['after']:.1f} s"


def tried(command: Command, reference: Reference, room: Path, moment: Mapping[str, Any]) -> Trial:
    """Break a command at a moment, let it go on, and compare."""
    stopped = broken(command.words, room, moment)
    phase = command.phase(room)

    def trial(failure: str = "") -> Trial:
        return Trial(in_words(moment), phase, failure)

    if "Traceback" in stopped.said and not _is_importing(stopped.said):
        return trial(f"it printed a traceback: {stopped.last}")
    if (wrong := taken_for_whole(room)) is not None:
        return trial(wrong)
    if phase != "finished" or not command.refuses:
        again = finished(command.again(room), room)
        if again.code != 0:
            return trial(f"continuing ended with {again.code}: {again.last}")
        if "Traceback" in again.said:
            return trial(f"continuing printed a traceback: {again.last}")
    return trial("" if command.result(room) == reference.result else difference(command.result(room), reference.result))


def _is_importing(said: str) -> bool:
    """Whether SIGTERM or Ctrl-C came while Python still imported the program."""
    return re.search(r"^KeyboardInterrupt", said, re.MULTILINE) is not None and "cli/main.py" not in said


def taken_for_whole(room: Path) -> str | None:
    """What is wrong if half a scan counts as a whole one, or a whole one has a damaged file."""
    folder = room / "work" / "out"
    if not (folder / store.ASKED).exists():
        return None
    try:
        store.record(folder)
    except InputError:
        return None if not (folder / store.RECORD).exists() else "scan.json is there and damaged"
    return f"{bad[0]} of a whole scan is damaged" if (bad := store.damaged(folder)) else None


def difference(one: Any, other: Any) -> str:
    """Which parts of two results differ."""
    places = [f"part {n}" for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    names = [
        name
        for a, b in zip(one, other, strict=True)
        if isinstance(a, dict)
        for name in {*a, *b}
        if a.get(name) != b.get(name)
    ]
    return f"the results differ in {', '.join(places)}: {', '.join(sorted(names))} {one[-1]}"
