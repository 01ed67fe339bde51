"""Break a command at one of its file operations: Python runs this first if its folder is on PYTHONPATH."""

import json
import os
import re
import resource
import shutil
import signal
import sys
import time

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
"""Flags of a file that is opened to be written."""
EVENTS = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
"""Audit events of operations that change a folder; their last path is the first or second argument."""

STEPS = {"back": -3600, "forward": 2 * 24 * 3600}
"""What is done to the clock -> by how many seconds it is set."""


class Fault:
    """What happens at which operation."""

    def __init__(self, at: int, like: str, folders: list[str], act: str, target: str, log: str | None) -> None:
        """Do `act` to `target` at operation number `at`, from 1, of those in `folders` that match `like`."""
        self.at, self.like, self.folders, self.act, self.target = at, re.compile(like), tuple(folders), act, target
        self.log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.count, self.acting, self.late = 0, False, 0.0

    def __call__(self, event: str, given: tuple) -> None:
        """Called by Python before each operation."""
        if self.acting or not (event in EVENTS or event == "open") or not isinstance(given[0], str):
            return
        if event == "open" and not (given[2] or 0) & WRITES:
            return
        path = os.path.abspath(given[1] if event in ("os.rename", "os.link") else given[0])  # noqa: PTH100
        if not path.startswith(self.folders):
            return
        operation = f"{event.removeprefix('os.')} {path}"
        if self.log is not None:
            os.write(self.log, f"{operation}\n".encode())
        if self.like.search(operation) is None:
            return
        self.count += 1
        if self.act in STEPS:  # the clock is set at every operation
            self.late += STEPS[self.act]
        elif self.count == self.at:
            self.acting = True
            getattr(self, self.act)()
            self.acting = False

    def nothing(self) -> None:
        """Only log."""

    def kill(self) -> None:
        """End at once, as with kill -9 or by the kernel when memory runs out."""
        os.kill(os.getpid(), signal.SIGKILL)

    def terminate(self) -> None:
        """Ask to end, as a batch system does."""
        os.kill(os.getpid(), signal.SIGTERM)

    def fill(self) -> None:
        """Write to the file `target` until its disk is full."""
        with open(self.target, "ab", buffering=0) as file:  # noqa: PTH123
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def remove(self) -> None:
        """Remove the folder `target`."""
        os.rename(self.target, f"{self.target}.gone")  # noqa: PTH104
        shutil.rmtree(f"{self.target}.gone", ignore_errors=True)


if "FAULT" in os.environ and sys.orig_argv[1:3] == ["-m", "internal_policy"]:  # not in processes that it starts
    asked = json.loads(os.environ["FAULT"])
    if limit := asked.pop("memory", None):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fault = Fault(**asked)
    if fault.act in STEPS:
        now = time.time
        time.time = lambda: now() + fault.late
    sys.addaudithook(fault)
