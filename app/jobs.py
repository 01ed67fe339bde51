"""Ask a model about a prompt in a process of its own that keeps the model loaded, one at a time."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import streamlit as st

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.scans import store

GRACE = 2.0
"""Seconds that the worker has to stop by itself. After that it is killed, and the next prompt loads the model again."""
BUSY = "Another tab is measuring a prompt. Wait for it to finish, or stop it there."
TEMPLATE = re.compile(r"(?:[Uu]se|[Tt]ry) --chat-template (?:FILE to give one, or --chat-template none|FILE|none)")
"""A remedy of the command line, for which the page has a switch."""
Task = Literal["answer", "read"]
"""Whether the model answers a prompt, or reads a text."""


@dataclass(frozen=True)
class Request:
    """The values of the form."""

    task: Task
    model: str
    """Name of a bundled model, or a model folder."""
    text: str
    readouts: tuple[str, ...] = ("norm", "raw")
    new_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0
    template: bool = True
    """Whether a prompt goes through the chat template."""

    def words(self) -> list[str]:
        """The words of the scan command. They name a file with the text, because a text can look like an option."""
        readout = self.readouts[0] if len(self.readouts) == 1 else "both"
        options = {"--model": self.model, "--readout": readout, "--batch-size": "1"}
        if self.task == "read":
            return ["scan", *_flat({**options, "--rollouts": str(self.file)})]
        options |= {"--problems": str(self.file), "--max-new-tokens": str(self.new_tokens)}
        options |= {"--temperature": f"{self.temperature:g}", "--seed": str(self.seed)}
        return ["scan", *_flat(options | ({} if self.template else {"--chat-template": "none"}))]

    @property
    def row(self) -> dict[str, str]:
        """The text as a row of a file that the scan command reads."""
        return {"text" if self.task == "read" else "problem": self.text}

    @property
    def file(self) -> Path:
        """The file with the text."""
        return store.root() / "prompts" / f"{store.digest(self.row)}.jsonl"

    def command(self) -> str:
        """The command to type in a terminal."""
        return shlex.join(["internal-policy", *self.words()])

    def write(self) -> None:
        """Write the file with the text."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(self.file) as temporary:
            temporary.write_text(json.dumps(self.row) + "\n")


def on_screen(job: "Job") -> str:
    """Why a prompt failed, with the page's controls instead of options of the command line."""
    said = TEMPLATE.sub(lambda found: f"{'T' if found[0][0].isupper() else 't'}urn off “Chat template”", job.error)
    return f"{said} The options are those of this command: {job.request.command()}" if "--" in said else said


def _flat(options: dict[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


@dataclass
class Job:
    """A prompt that is being measured or has been."""

    request: Request
    state: str = "starting"
    """starting, loading, answering or measuring; then done, stopped or failed."""
    response: str = ""
    """The text so far."""
    tokens: int = 0
    """How many tokens the response has so far."""
    grid: dict[str, Any] | None = None
    """The payload of the lens grid so far."""
    share: float = 0.0
    """How much is measured, from 0 to 1."""
    scan: str = ""
    """The scan's folder, once it is done."""
    cached: bool = False
    """Whether the scan was there already."""
    seconds: float = 0.0
    """How long it took."""
    error: str = ""
    """Why it failed."""
    started: float = field(default_factory=time.monotonic)
    """When it began."""
    stopping: float | None = None
    """When it was told to stop."""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "stopped", "failed")

    def update(self, event: dict[str, Any]) -> None:
        """Apply an event of the worker."""
        for name in ("response", "tokens", "grid", "share", "scan", "cached", "seconds", "error"):
            if name in event:
                setattr(self, name, event[name])
        if event.get("state") not in (None, "ready"):
            self.state = event["state"]  # last, because another thread reads it first


class Worker:
    """The process that keeps a model loaded."""

    def __init__(self, request: Request) -> None:
        """Start the process, offline, with its first prompt."""
        self.job = Job(request)
        """The latest prompt."""
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", "internal_policy.cli.worker"],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=subprocess.PIPE,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self.owner: Any = None
        """The tab of the latest prompt."""
        self.memory = 0
        """Bytes that it uses."""
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        self._begin()

    @property
    def busy(self) -> bool:
        """Whether it is working on a prompt."""
        return self.running and not self.job.over

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def ask(self, request: Request) -> None:
        """Start another prompt."""
        self.job = Job(request)
        self._begin()

    def _begin(self) -> None:
        self._send({"words": self.job.request.words(), "text": self.job.request.text})
        if not self.running:  # it ended because it was idle, or another one is running
            self.thread.join()
            self._settle()

    def stop(self) -> None:
        """Ask it to stop, and kill it if it doesn't."""
        if self.job.over:
            return
        self.job.stopping = self.job.stopping or time.monotonic()
        if time.monotonic() > self.job.stopping + GRACE:
            self.end()
        else:
            self._send({"stop": True})

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _send(self, request: dict[str, Any]) -> None:
        with suppress(OSError, ValueError):  # it has ended, which `_listen` notices
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def _listen(self) -> None:
        """Apply the events of the worker until it ends, in a thread of its own."""
        for line in self.process.stdout:
            if line.startswith(b"{"):  # an interpreter may print other lines when it starts
                event = json.loads(line)
                self.memory = event["memory"]
                if not self.job.over:
                    self.job.update(event)
        self.process.wait()
        self._settle()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # a request that it never read
                pipe.close()

    def _settle(self) -> None:
        """Mark a prompt that the ended process can't finish as failed or stopped."""
        if self.job.over:
            return
        if self.job.stopping is None:
            self.job.error = f"The worker ended (exit code {self.process.poll()}). Ask again to start a new one."
        self.job.state = "failed" if self.job.error else "stopped"


_lock = threading.Lock()
_latest: list[Worker] = []
"""The worker that was started last, if any. It serves all tabs, one after the other."""


def _release(tab: list[str]) -> None:
    with _lock:
        for worker in _latest:
            if worker.owner is tab and worker.running:
                worker.end()


@st.cache_resource(scope="session", on_release=_release, show_spinner=False)
def _tab() -> list[str]:
    """A token for this tab, which Streamlit releases when the tab is closed or reloaded."""
    return []


def ask(request: Request) -> Job:
    """Start a prompt, and the worker if none runs. Raises InputError if another tab is using it."""
    tab = _tab()
    with _lock:
        worker = next((worker for worker in _latest if worker.running), None)
        if worker is not None and worker.busy:
            raise InputError(BUSY)
        request.write()
        if worker is None:
            worker = Worker(request)
            _latest[:] = [worker]
        else:
            worker.ask(request)
        worker.owner = tab
        return worker.job


def worker_of(job: Job) -> Worker | None:
    """The running worker whose latest prompt is this job, if there is one."""
    return next((worker for worker in _latest if worker.job is job and worker.running), None)


def loaded() -> Worker | None:
    """The running worker of this tab, if there is one."""
    tab = _tab()
    return next((worker for worker in _latest if worker.owner is tab and worker.running), None)
