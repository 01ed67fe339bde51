"""Let a model answer a prompt or read a text, and watch every layer while it is measured."""

import time
from pathlib import Path
from typing import Any

import confined
import jobs
import lens_grid
import scans
import show
import streamlit as st

from internal_policy import bundle, files
from internal_policy.errors import MODELS, InputError, counted, joined, require
from internal_policy.look import legend, view
from internal_policy.look.lens_grid import payload
from internal_policy.look.lens_grid.page import data
from internal_policy.look.view import View
from internal_policy.models import naming

LONGEST = 20_000
"""Longest prompt in characters."""
NEW_TOKENS = 1024
"""Largest number of tokens that the form accepts."""
EVERY = 0.4
"""Seconds between updates while something is measured."""
REMEMBERED = 30
"""How many earlier prompts are listed."""
TASKS: dict[jobs.Task, str] = {"answer": "Answer", "read": "Read my text"}
STATES = {
    "starting": "Starting a worker process",
    "loading": "Loading the model",
    "answering": "The model is answering",
    "measuring": "Measuring every layer",
}
"""State of a job -> its text on screen."""


def page() -> None:
    """Draw the page."""
    st.markdown(
        "A model on this machine answers your prompt or reads your text, and every layer's policy is measured at every "
        "token. Nothing is downloaded, and nothing leaves this machine."
    )
    require("models", *MODELS)
    # always the same containers, because Streamlit keeps a fragment at its place among them
    above, refused, result, below = st.container(), st.container(), st.container(), st.container()
    with above:
        request = form()
    with refused, show.refusing():
        if failure := st.session_state.pop("failure", None):
            raise failure
        if request is not None:
            begin(request)
    if (job := st.session_state.get("prompt_job")) is not None:
        with result:
            st.fragment(draw, run_every=None if job.over else EVERY)(job)
    with below:
        history()
        memory()


def form() -> jobs.Request | None:
    """Ask for a prompt or text; None unless it was just submitted. Raises InputError."""
    task: jobs.Task = st.segmented_control(  # pyright: ignore[reportAssignmentType] one of its options
        "What the model does",
        [*TASKS],
        format_func=lambda task: TASKS[task],
        default="answer",
        required=True,
        key="prompt_task",
        label_visibility="collapsed",
    )
    answers = task == "answer"
    with st.form("ask"):
        left, right = st.columns([3, 2])
        text = left.text_area(
            "Prompt" if answers else "Text",
            "What is 47 + 385?" if answers else "The capital of France is Paris, and the river there is the Seine.",
            max_chars=LONGEST,
            height=122,
            key=f"prompt_{task}",
        )
        model = right.selectbox(
            "Model",
            [*confined.of_models()],
            accept_new_options=True,
            key="prompt_model",
            help="Start the dashboard with the folder of another model: internal-policy dashboard FOLDER.",
        )
        readouts = right.multiselect(
            "Readouts",
            [*reversed(view.WORDS)],
            default=[*reversed(view.WORDS)],
            key="prompt_readouts",
            help=f"norm: {view.WORDS['norm']}. raw: {view.WORDS['raw']}. Both take twice as long as one.",
        )
        given = sampling() if answers else {}
        begun = st.form_submit_button(TASKS[task], type="primary", key="prompt_ask")
    if not begun:
        return None
    with show.refusing():
        if not text.strip():
            raise InputError(f"The {'prompt' if answers else 'text'} is empty. Type one.")
        if not readouts:
            raise InputError("No readout is selected. Choose norm or raw.")
        return jobs.Request(task, checked(model or ""), text, tuple(sorted(readouts)), **given)
    return None


def sampling() -> dict[str, Any]:
    """How a response is sampled, as fields of a request."""
    temperature, tokens, seed, template = st.columns(4, vertical_alignment="bottom")
    return {
        "temperature": float(
            temperature.number_input(
                "Temperature", 0.0, 10.0, 1.0, 0.1, key="prompt_temperature", help="0 takes the most likely token."
            )
        ),
        "new_tokens": int(tokens.number_input("Maximum tokens", 1, NEW_TOKENS, 64, key="prompt_tokens")),
        "seed": int(
            seed.number_input("Seed", 0, 2**31 - 1, 0, key="prompt_seed", help="The same seed gives the same response.")
        ),
        "template": template.toggle(
            "Chat template",
            value=True,
            key="prompt_template",
            help="Turn it off for a base model, which then continues your prompt.",
        ),
    }


def begin(request: jobs.Request) -> None:
    """Send a request to the worker. Raises InputError while another tab uses it."""
    current: jobs.Job | None = st.session_state.get("prompt_job")
    if current is not None and not current.over:
        raise InputError("Your last prompt is still being measured. Wait for it to finish, or stop it.")
    job = jobs.ask(request)
    st.session_state["prompt_job"] = job
    st.session_state["prompt_jobs"] = [job, *st.session_state.get("prompt_jobs", [])][:REMEMBERED]
    st.rerun()


def checked(model: str) -> str:
    """A bundled model's name, or the path of a folder that may be opened. Raises InputError for anything else."""
    known = confined.of_models()
    if bundle.model(model) and model in known:
        return model
    folder = known.get(model, Path(model or "?"))
    found = folder.expanduser().resolve() if confined.holds(folder) else None
    if found and files.is_folder(found) and any((found / name).is_file() for name in confined.MODEL):
        return str(found)
    raise InputError(
        f"'{model[:200]}' isn't a model folder with a config.json that may be opened. Choose {joined([*known])}, or "
        "start the dashboard with the folder: internal-policy dashboard FOLDER"
    )


def memory() -> None:
    """Show how much memory the loaded model takes, with a button that frees it."""
    worker = jobs.loaded()
    if worker is None or worker.busy:
        return
    left, right = st.columns([4, 1], vertical_alignment="center")
    name = show.unmarked(naming.title(worker.job.request.model))
    left.caption(
        f"{name} stays loaded for your next prompt: its process uses {worker.memory / 1e6:,.0f} MB. It ends with this "
        "tab, or after 10 minutes without a prompt."
    )
    right.button("Free the memory", key="prompt_free", on_click=worker.end, type="tertiary")


def draw(job: jobs.Job) -> None:
    """Show a prompt, its response, and the grid of what is measured so far."""
    if job.over and st.session_state.get("prompt_busy") is job:
        del st.session_state["prompt_busy"]
        st.rerun()  # all of the page, which then no longer asks for updates
    if not job.over:
        st.session_state["prompt_busy"] = job
    with st.container(key="prompt_state"):
        outcome(job) if job.over else progress(job)
    with st.container(key="prompt_response"):
        if job.state == "answering" or not (job.grid or job.scan):  # later the grid shows the text
            st.caption(show.unmarked(show.line(job.request.text[: show.LONGEST])))
            show.long_text(job.response)
    with st.container(key="prompt_grid_place"), show.refusing():
        grid(job)


def progress(job: jobs.Job) -> None:
    """Show what the worker is doing, with a button that stops it."""
    worker = jobs.worker_of(job)
    left, right = st.columns([5, 1], vertical_alignment="center")
    said = [STATES.get(job.state, job.state), f"{time.monotonic() - job.started:.0f} s"]
    if job.tokens:
        said.insert(1, counted(job.tokens, "token"))
    if worker is not None and worker.memory:
        said.append(f"{worker.memory / 1e6:,.0f} MB")
    left.progress(job.share, " · ".join(said))
    if (right.button("Stop", key="prompt_stop") or job.stopping) and worker is not None:
        worker.stop()


def outcome(job: jobs.Job) -> None:
    """Show how the prompt ended, with a button that opens its scan on the other pages."""
    if job.state == "failed":
        show.refuse(InputError(jobs.on_screen(job)))
        return
    if job.state == "stopped":
        st.text("Stopped. Ask the same again to start over.")
        return
    left, right = st.columns([4, 1], vertical_alignment="center")
    took = "measured earlier" if job.cached else f"{job.seconds:.1f} s"
    how = joined([view.how(readout) for readout in job.request.readouts])
    about = [naming.title(job.request.model), counted(job.tokens, "token"), how, took]
    left.text(" · ".join(map(show.line, about)))
    if right.button(
        "Open the scan", key="prompt_open", help="Opens the scan on the Tokens page, and on the other pages."
    ):
        st.session_state["opened"] = scans.name_of(Path(job.scan))
        st.switch_page("views/tokens.py")


def grid(job: jobs.Job) -> None:
    """Draw the lens grid: what is measured so far, or the finished scan."""
    if job.state == "done":
        folder, readouts = Path(job.scan), list(job.request.readouts)
        sites = list(dict.fromkeys([*payload.PANEL, st.session_state.get("prompt_site") or payload.PANEL[0]]))
        found = lens_grid.numbers(View(folder, readouts[0]), 0, readouts, sites, 0, scans.name_of(folder))
        if job.tokens > payload.MOST:
            st.caption(f"These are the first {payload.MOST:,} tokens. Open the scan to see the others.")
    elif job.grid is not None:
        found = job.grid
    else:
        return
    lens_grid.show("prompt_grid", data([found], readout=job.request.readouts[0]), {"wanted": want})


def want(plane: dict[str, Any]) -> None:
    """Send another site of the scan to the grid."""
    if plane.get("site") in legend.SITES:
        st.session_state["prompt_site"] = plane["site"]


def history() -> None:
    """List the prompts of this tab, to see them again."""
    known: list[jobs.Job] = st.session_state.get("prompt_jobs", [])
    if len(known) < 2:
        return
    st.subheader("Earlier prompts")
    for number, job in enumerate(known):
        words = show.line(" ".join(job.request.text.split())[:70])
        label = f"{words} · {TASKS[job.request.task].lower()} · {naming.title(job.request.model)}"
        st.button(
            show.unmarked(label),
            key=f"prompt_past_{number}",
            on_click=see,
            args=[job],
            disabled=job is st.session_state.get("prompt_job"),
            type="tertiary",
        )


def see(job: jobs.Job) -> None:
    """Show an earlier prompt again."""
    current: jobs.Job | None = st.session_state.get("prompt_job")
    if current is not None and not current.over:
        st.session_state["failure"] = InputError(
            "Your last prompt is still being measured. Wait for it to finish, or stop it."
        )
    else:
        st.session_state["prompt_job"] = job


if __name__ == "__main__":
    page()
