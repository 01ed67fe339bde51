"""Scans of prompts, each in a process of its own: one at a time, and no longer than its tab is open."""

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

from internal_policy import cache, files
from internal_policy.errors import InputError

WRITES_TO = re.compile(r"^Writing the scan to (.+)\.$", re.MULTILINE)
"""What the command says when it begins to measure."""
_begin = threading.Lock()
_begun: list["Job"] = []
"""The one that was begun last, of all tabs."""


@dataclass(frozen=True)
class Asked:
    """What is typed into the form."""

    model: str
    """A bundled model, or the folder of one."""
    prompt: str
    responses: int
    new_tokens: int

    def options(self) -> list[str]:
        """The command that scans it. Where the scan is written is for the command to find: the model decides too."""
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
        """The same as one types it."""
        return shlex.join(["internal-policy", *self.options()])


def problems(prompt: str) -> Path:
    """The file that holds a prompt."""
    return cache.root() / "prompts" / f"{cache.digest({'prompt': prompt})}.jsonl"


def write(prompt: str) -> None:
    """Write the file of a prompt."""
    with files.replacing(problems(prompt)) as temporary:
        temporary.write_text(json.dumps({"problem": prompt}) + "\n")


@dataclass(frozen=True)
class Job:
    """A scan that runs, or has run."""

    asked: Asked
    process: subprocess.Popen
    said: tempfile.TemporaryDirectory
    """What it says on stdout and stderr."""
    started: float

    def read(self, name: str) -> str:
        """What it has said on `stdout` or `stderr` by now; nothing once it was ended."""
        path = Path(self.said.name) / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def measured(self) -> int:
        """How many responses are measured by now."""
        found = WRITES_TO.search(self.read("stderr"))
        return len(list(Path(found[1]).glob("layers-*.parquet"))) if found else 0

    def result(self) -> Path:
        """The folder of its scan when it has ended. Raises InputError with the reason where it has none."""
        if self.process.returncode:
            raise InputError(reason(self.read("stderr"), self.process.returncode))
        return Path(json.loads(self.read("stdout"))["scan"])

    def end(self) -> None:
        """Stop it where it runs; what it has measured is kept, and the same question goes on from there."""
        self.process.terminate()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self.said.cleanup()


def reason(said: str, code: int) -> str:
    """Why a scan ended: the last line that begins with `error:`, else the last line; a killed one says nothing."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if not errors and (code < 0 or not lines):
        return f"The scan was stopped (exit code {code}). Scan the same prompt to continue where it was."
    return (errors or lines)[-1]


def _end_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.end()


@st.cache_resource(scope="session", on_release=_end_all, show_spinner=False)
def _of_this_tab() -> list[Job]:
    """What Streamlit ends when the tab is closed or reloaded."""
    return []


def start(asked: Asked) -> Job:
    """Begin a scan, without the network. Raises InputError while another one runs: one takes the whole machine."""
    with _begin:
        if any(job.process.poll() is None for job in _begun):
            raise InputError("Another tab is scanning a prompt; wait until it is done, or stop it there.")
        write(asked.prompt)
        said = tempfile.TemporaryDirectory(prefix="internal-policy-")
        with (Path(said.name) / "stdout").open("wb") as out, (Path(said.name) / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "internal_policy.attached", *asked.options(), "--remeasure", "--json"],
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends
                stdout=out,
                stderr=errors,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        job = Job(asked, process, said, time.monotonic())
        _begun[:] = [job]
    _of_this_tab().append(job)
    return job
