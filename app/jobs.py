"""Scan a prompt in a separate process that ends with its browser tab, one at a time."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.scans import store

WRITES_TO = re.compile(r"^Writing the scan to (.+)\.$", re.MULTILINE)
"""The line that the command prints before it starts to measure."""
_start_lock = threading.Lock()
_latest: list["Job"] = []
"""The job started last, in any tab."""


@dataclass(frozen=True)
class Request:
    """The values of the form."""

    model: str
    """Name of a bundled model, or a model folder."""
    prompt: str
    responses: int
    new_tokens: int

    def options(self) -> list[str]:
        """Arguments of the scan command. It chooses the folder itself, because that depends on the model too."""
        options = {
            "--model": self.model,
            "--problems": str(problems(self.prompt)),
            "--samples": str(self.responses),
            "--max-new-tokens": str(self.new_tokens),
            "--batch-size": "1",
            "--readout": "both",
        }
        return ["scan", *(text for pair in options.items() for text in pair)]

    def command(self) -> str:
        """The command to type in a terminal."""
        return shlex.join(["internal-policy", *self.options()])


def problems(prompt: str) -> Path:
    """The problem file of a prompt."""
    return store.root() / "prompts" / f"{store.digest({'prompt': prompt})}.jsonl"


def write(prompt: str) -> None:
    """Write the problem file of a prompt."""
    with files.replacing(problems(prompt)) as temporary:
        temporary.write_text(json.dumps({"problem": prompt}) + "\n")


@dataclass(frozen=True)
class Job:
    """A running or finished scan."""

    request: Request
    process: subprocess.Popen
    output: tempfile.TemporaryDirectory
    """Holds its stdout and stderr."""
    started: float

    def read(self, name: str) -> str:
        """What it has printed to `stdout` or `stderr` so far; empty after `end`."""
        path = Path(self.output.name) / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def measured(self) -> int:
        """How many responses have been measured so far."""
        found = WRITES_TO.search(self.read("stderr"))
        return len(list(Path(found[1]).glob("layers-*.parquet"))) if found else 0

    def result(self) -> Path:
        """The scan's folder, once it has finished. Raises InputError with the reason if it failed."""
        if self.process.returncode:
            raise InputError(reason(self.read("stderr"), self.process.returncode))
        return Path(json.loads(self.read("stdout"))["scan"])

    def end(self) -> None:
        """Stop the scan if it is running. Scanning the same prompt again continues where it stopped."""
        self.process.terminate()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self.output.cleanup()


def reason(stderr: str, code: int) -> str:
    """Why a scan failed: its last line starting with `error:`, or else its last line, unless it was killed."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if not errors and (code < 0 or not lines):
        return f"The scan was stopped (exit code {code}). Scan the same prompt again to continue."
    return (errors or lines)[-1]


def _end_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.end()


@st.cache_resource(scope="session", on_release=_end_all, show_spinner=False)
def _jobs_of_tab() -> list[Job]:
    """The jobs of this tab, which Streamlit ends when the tab is closed or reloaded."""
    return []


def start(request: Request) -> Job:
    """Start a scan, offline. Raises InputError while another one is running, because a scan uses the whole machine."""
    with _start_lock:
        if any(job.process.poll() is None for job in _latest):
            raise InputError("Another tab is scanning a prompt. Wait for it to finish, or stop it there.")
        write(request.prompt)
        output = tempfile.TemporaryDirectory(prefix="internal-policy-")
        with (Path(output.name) / "stdout").open("wb") as out, (Path(output.name) / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "internal_policy.cli.attached", *request.options(), "--remeasure", "--json"],
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends
                stdout=out,
                stderr=errors,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        job = Job(request, process, output, time.monotonic())
        _latest[:] = [job]
    _jobs_of_tab().append(job)
    return job
