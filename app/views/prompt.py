"""Let a model answer a prompt and scan its responses, in a separate process."""

import time
from pathlib import Path

import jobs
import scans
import show
import streamlit as st

from internal_policy import bundle
from internal_policy.errors import MODELS, InputError, require

LONGEST = 4000
"""Longest prompt in characters."""
RESPONSES, NEW_TOKENS = 16, 1024
"""Largest numbers that the form accepts."""
EVERY = 0.5
"""Seconds between updates of the progress bar."""


def page() -> None:
    """Draw the page."""
    st.markdown(
        "A model on this machine answers your prompt, and every layer's policy is measured at every token. The scan "
        "uses both readouts and opens on the Tokens page. Closing or reloading this tab stops it. Nothing leaves this "
        "machine."
    )
    require("models", *MODELS)
    job: jobs.Job | None = st.session_state.get("job")
    if job is not None and job.process.poll() is not None:
        finish(job)
    if "job" in st.session_state:
        watch()
    else:
        form()


def models() -> list[str]:
    """The bundled models."""
    found = (path.parent.name for path in (bundle.DATA / "models").glob("*/config.json"))
    return sorted(found, reverse=True)  # the default of the other commands comes first


def form() -> None:
    """Ask for a prompt and start the scan."""
    if failure := st.session_state.pop("failure", None):
        error, request = failure
        show.refuse(error)
        if request is not None:
            st.text("To try other options, run this command in a terminal:")
            st.code(show.plain(request.command()), language="bash")
    with st.form("ask", enter_to_submit=False):
        model = st.selectbox(
            "Model",
            models(),
            accept_new_options=True,
            key="prompt_model",
            help="Choose a bundled model, or type the folder of a model on this machine.",
        )
        prompt = st.text_area("Prompt", "What is 47 + 385?", max_chars=LONGEST, key="prompt_text")
        left, right = st.columns(2)
        responses = left.number_input("Responses", 1, RESPONSES, 2, key="prompt_responses")
        new_tokens = right.number_input("Maximum tokens per response", 1, NEW_TOKENS, 128, key="prompt_tokens")
        begun = st.form_submit_button("Scan", type="primary", key="prompt_scan")
    if begun:
        request = jobs.Request(checked(model or ""), prompt.strip(), int(responses), int(new_tokens))
        if not request.prompt:
            raise InputError("The prompt is empty. Type one.")
        st.session_state["job"] = jobs.start(request)
        st.rerun()


def checked(model: str) -> str:
    """A bundled model's name, or the path of a folder. Raises InputError for anything else: nothing is downloaded."""
    if model in models():
        return model
    try:
        folder = Path(model).expanduser().resolve()
        if model and (folder / "config.json").is_file():
            return str(folder)
    except (OSError, ValueError, RuntimeError):  # an impossible file name, or ~ of an unknown user
        pass
    raise InputError(
        f"'{model[:200]}' isn't a model folder with a config.json. Choose {', '.join(models())} or a folder."
    )


@st.fragment(run_every=EVERY)
def watch() -> None:
    """Show the progress of the scan."""
    job: jobs.Job | None = st.session_state.get("job")
    if job is None:  # the fragment runs once more after the job has ended
        return
    if job.process.poll() is not None:
        st.rerun()
    done, n = job.measured(), job.request.responses
    st.progress(min(done / n, 1.0), f"{done} of {n} responses measured, {time.monotonic() - job.started:.0f} s")
    if st.button("Stop", key="prompt_stop"):
        st.session_state.pop("job").end()
        st.session_state["failure"] = InputError("Stopped. Scan the same prompt again to continue."), None
        st.rerun()


def finish(job: jobs.Job) -> None:
    """Open the finished scan, or keep the reason why it failed."""
    del st.session_state["job"]
    try:
        st.session_state["opened"] = scans.name_of(job.result())
    except InputError as error:
        st.session_state["failure"] = error, job.request
        return
    finally:
        job.end()
    st.switch_page("views/tokens.py")


if __name__ == "__main__":
    page()
