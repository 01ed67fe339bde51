"""Scan the responses to a prompt of one's own, in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import show
import streamlit as st

from internal_policy import bundle, cache, files
from internal_policy.errors import InputError

LONGEST = 4000
"""Characters of a prompt."""
RESPONSES, NEW_TOKENS = 16, 1024
"""At most."""
EVERY = 0.5
"""Seconds between two looks at the progress."""


@dataclass(frozen=True)
class Asked:
    """What is typed into the form."""

    model: str
    """A bundled model, or the folder of one."""
    prompt: str
    responses: int
    new_tokens: int

    def folder(self) -> Path:
        """Where the scan lies: the same question is answered once."""
        return cache.root() / "prompts" / cache.digest({**vars(self), "kind": "prompt"})


@dataclass
class Job:
    """A scan that runs."""

    asked: Asked
    process: subprocess.Popen
    errors: IO[bytes]
    """What it says on stderr."""
    started: float


def page() -> None:
    """Draw the page."""
    st.markdown(
        "Let a model of this machine answer, and look at every layer's policy while it does. The scan runs in a "
        "process of its own, under both readouts, and opens under Tokens; nothing leaves this machine."
    )
    if importlib.util.find_spec("torch") is None:
        st.text("This needs torch, which is not installed here: pip install torch, then start the dashboard again.")
        return
    job: Job | None = st.session_state.get("job")
    if job is not None and (code := job.process.poll()) is not None:
        finish(job, code)
    if "job" in st.session_state:
        watch()
    else:
        form()


def models() -> list[str]:
    """The bundled models."""
    found = (path.parent.name for path in (bundle.DATA / "models").glob("*/config.json"))
    return sorted(found, reverse=True)  # the one that the other commands take too comes first


def form() -> None:
    """Ask for a prompt, and begin."""
    if failure := st.session_state.pop("failure", None):
        show.refuse(failure)
    with st.form("ask", enter_to_submit=False):
        model = st.selectbox(
            "Model",
            models(),
            accept_new_options=True,
            key="prompt_model",
            help="A bundled model, or type the folder of a Llama or Qwen model of this machine.",
        )
        prompt = st.text_area("Prompt", "What is 47 + 385?", max_chars=LONGEST, key="prompt_text")
        left, right = st.columns(2)
        responses = left.number_input("Responses", 1, RESPONSES, 2, key="prompt_responses")
        new_tokens = right.number_input("Tokens of a response, at most", 1, NEW_TOKENS, 128, key="prompt_tokens")
        begun = st.form_submit_button("Scan", type="primary", key="prompt_scan")
    if begun:
        asked = Asked(checked(model or ""), prompt.strip(), int(responses), int(new_tokens))
        if not asked.prompt:
            raise InputError("The prompt is empty; type one.")
        st.session_state["job"] = start(asked)
        st.rerun()


def checked(model: str) -> str:
    """A bundled model's name, or the path of a folder. Raises InputError for anything else: nothing is downloaded."""
    if model in models():
        return model
    try:
        folder = Path(model).expanduser().resolve()
        if model and (folder / "config.json").is_file():
            return str(folder)
    except (OSError, ValueError, RuntimeError):  # a name that no file system takes, ~ of nobody
        pass
    raise InputError(
        f"'{model[:200]}' is no folder with a model (config.json); choose {' or '.join(models())}, or a folder."
    )


def command(asked: Asked, problems: Path) -> list[str]:
    """The command line of the scan."""
    options = {
        "--model": asked.model,
        "--problems": str(problems),
        "--samples": str(asked.responses),
        "--max-new-tokens": str(asked.new_tokens),
        "--batch-size": "1",
        "--readout": "both",
        "--output": str(asked.folder()),
    }
    return [
        sys.executable,
        "-m",
        "internal_policy",
        "scan",
        *(text for pair in options.items() for text in pair),
        "--json",
    ]


def start(asked: Asked) -> Job:
    """Begin the scan in a process of its own, without the network."""
    problems = asked.folder().with_suffix(".jsonl")
    if not problems.exists():
        with files.replacing(problems) as temporary:
            temporary.write_text(json.dumps({"problem": asked.prompt}) + "\n")
    errors = tempfile.TemporaryFile()  # noqa: SIM115  read when the process has ended
    process = subprocess.Popen(
        command(asked, problems),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return Job(asked, process, errors, time.monotonic())


@st.fragment(run_every=EVERY)
def watch() -> None:
    """Show how far the scan is."""
    job: Job | None = st.session_state.get("job")
    if job is None:  # a last look after the end
        return
    if job.process.poll() is not None:
        st.rerun()
    done, n = len(list(job.asked.folder().glob("layers-*.parquet"))), job.asked.responses
    st.progress(min(done / n, 1.0), f"{done} of {n} responses measured, {time.monotonic() - job.started:.0f} s")
    if st.button("Stop", key="prompt_stop"):
        stop(st.session_state.pop("job"))
        st.rerun()


def finish(job: Job, code: int) -> None:
    """Open the scan, or keep why there is none."""
    del st.session_state["job"]
    with job.errors:
        if code:
            st.session_state["failure"] = InputError(reason(job.errors, code))
            return
    st.session_state["opened"] = f"prompts/{job.asked.folder().name}"
    st.switch_page("views/tokens.py")


def reason(errors: IO[bytes], code: int) -> str:
    """Why a scan ended: the last line that begins with `error:`, else the last line."""
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (said or lines or [f"The scan ended with code {code}."])[-1]


def stop(job: Job) -> None:
    """End the scan; what it has measured is kept, and the same question goes on from there."""
    with job.errors:
        job.process.terminate()
        job.process.wait()
    st.session_state["failure"] = InputError("Stopped; the same prompt continues where it was.")


if __name__ == "__main__":
    page()
