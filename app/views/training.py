"""A training run: how the policies of all layers change while one of them is trained."""

import pandas as pd
import show
import streamlit as st

from internal_policy.look import run_catalogue, runs
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.runs import RunTables

COMMAND = "internal-policy train"
HOLDS = (
    f"There are no training runs yet. A run is a folder with {runs.METRICS} (one row per step: reward, entropy, ...) "
    f"and {runs.DYNAMICS} (one row per scan, layer and site: entropy, cosine with and KL from the trained layer). "
    "This command trains the bundled model:"
)
MEANINGS = {
    "cosine": "Cosine between the hidden state here and at the layer trained first (with GRPO, the one watched).",
    "kl": "KL(policy of the layer trained first ‖ policy here) in nats (with GRPO, the one watched).",
    "change": "Entropy here minus entropy at the input of the layer, attention or FFN (Eqs. 11 to 13), in nats.",
    "change_direction": "The entropy change that remains when the output is rescaled to the norm of its input.",
    "change_norm": "The rest of the entropy change, which is due to the norm of the output alone.",
    "logprob": "Mean log probability of the actual tokens.",
    "entropy_at_input_norm": "The entropy of the output rescaled to the norm of its input.",
}
"""Explanations of the measures whose names aren't enough."""


def page() -> None:
    """Draw the page."""
    st.markdown(
        "What training does to the policy of every layer, step by step, with the reward below (Figs. 5 to 7 of the "
        "paper). The dotted line is the switch from the internal to the whole policy. Step 0 is before training."
    )
    chosen = choose()
    if chosen is None:
        with st.container(key="no-run"):
            st.text(HOLDS)
            st.code(COMMAND, language="bash")
        return
    metrics = chosen.metrics()
    with show.refusing():
        layers(chosen, metrics)
    drawn = ["training", *(["pass-at-k"] if (chosen.folder / runs.PASS_AT_K).exists() else [])]
    for name in drawn:
        show_figure(name, chosen, RunChoice())


def show_figure(name: str, run: RunTables, choice: RunChoice) -> None:
    """Draw a figure of the catalogue with its numbers, or say why the run lacks them."""
    with show.refusing():
        show.figure(name, run_catalogue.draw(name, run, choice), run_catalogue.data(name, run, choice))


def choose() -> RunTables | None:
    """The run from the URL or the list; None if none was named and there are none."""
    found = runs.listed()
    above = st.container()
    typed = st.text_input("Folder or name of a training run", key="run", bind="query-params")
    if not typed and not found:
        return None
    name = typed or next(iter(found))
    folder = runs.find(name)
    if found:
        st.session_state["listed_run"] = next((known for known, path in found.items() if path == folder), None)
        above.selectbox("Run", [*found], index=None, key="listed_run", on_change=open_listed)
    return RunTables(folder, name if name in found else folder.name)


def open_listed() -> None:
    """Choose the run picked in the list."""
    st.session_state["run"] = st.session_state["listed_run"] or ""


def layers(run: RunTables, metrics: pd.DataFrame) -> None:
    """Draw the heatmap of layers and steps, and the trained layer compared with later ones."""
    frame = run.dynamics()
    left, right = st.columns(2)
    measure = left.selectbox("Measure", runs.measures(frame), key="training_measure", bind="query-params")
    sites = [] if measure is None else runs.sites(frame, measure)
    site = right.selectbox("Site", sites, key="training_site", bind="query-params")
    if measure in MEANINGS:
        st.caption(MEANINGS[measure])
    show_figure("dynamics", run, RunChoice(measure, site))
    if runs.trained(metrics, frame) is not None:
        show_figure("trained", run, RunChoice())


if __name__ == "__main__":
    page()
