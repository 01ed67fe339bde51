"""A training run: how the policies of all layers change while one of them is trained."""

import alignments
import choices
import confined
import pandas as pd
import samples
import show
import streamlit as st

from internal_policy.errors import InputError
from internal_policy.look import recipe, run_catalogue, run_summary, runs, seeds, theme
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.runs import RunTables

COMMAND = "internal-policy train"
HOLDS = (
    f"There are no training runs yet. A run is a folder with {runs.METRICS} (one row per step: reward, entropy, ...) "
    f"and {runs.DYNAMICS} (one row per scan, layer and site: entropy, cosine with and KL from the trained layer). "
    "This command trains the bundled model:"
)
MEANINGS = {
    "cosine": "Cosine between the hidden state here and at the layer trained first (with GRPO, the layer watched).",
    "kl": "KL(policy of the layer trained first ‖ policy here) in nats (with GRPO, the layer watched).",
    "change": "Entropy here minus entropy at the input of the layer, attention or FFN (Eqs. 11 to 13), in nats.",
    "change_direction": "The entropy change that remains when the output is rescaled to the norm of its input.",
    "change_norm": "The rest of the entropy change, which is due to the norm of the output alone.",
    "logprob": "Mean log probability of the actual tokens.",
    "entropy_at_input_norm": "The entropy of the output rescaled to the norm of its input.",
}
"""Explanations of the measures whose names aren't enough."""
WINDOWS = (1, 5, 10, 20, 50)
"""Steps that a point of the curves can average."""


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
    metrics, frame = chosen.metrics(), None
    with show.refusing():
        frame = chosen.dynamics()
    exams = None
    with show.refusing():
        exams = run_summary.exams(chosen)
    for sentence in run_summary.sentences(metrics, frame, exams):
        st.text(show.line(sentence))
    others = beside(chosen)
    if frame is not None:
        with show.refusing():
            layers([chosen, *others], metrics, frame)
    if exams is not None:
        show_figure("exam", [run for run in (chosen, *others) if (run.folder / runs.EXAMS).exists()], RunChoice())
    curves([chosen, *others])
    over_seeds([chosen, *others])
    if (chosen.folder / runs.PASS_AT_K).exists():
        show_figure("pass-at-k", [chosen], RunChoice())
    samples.draw(chosen.folder)
    alignments.of_run(chosen.folder)


def show_figure(name: str, chosen: list[RunTables], choice: RunChoice) -> None:
    """Draw a figure of the catalogue with its numbers, or say why the run lacks them."""
    with show.refusing():
        numbers, made = run_catalogue.data(name, chosen, choice), recipe.of_runs(name, chosen, choice)
        show.figure(name, run_catalogue.draw(name, chosen, choice), numbers, recipe=made)


def choose() -> RunTables | None:
    """The run from the URL or the list; None if none was named and there are none."""
    picked = choices.folder(confined.of_runs(), "Run", "Folder or name of a training run", key="run")
    if picked is None:
        return None
    name, folder = picked
    return RunTables(folder, name)


def beside(chosen: RunTables) -> list[RunTables]:
    """Other runs to draw in the same figures, from the URL or the list."""
    found = {name: folder for name, folder in confined.of_runs().items() if folder.resolve() != chosen.folder.resolve()}
    if not found:
        return []
    names = st.multiselect(
        "Compare with",
        [*found],
        key="training_against",
        max_selections=run_catalogue.MOST - 1,
        placeholder=f"Choose up to {run_catalogue.MOST - 1} other runs",
        bind="query-params",
    )
    return [RunTables(found[name], name) for name in names]


def measure_label(name: str) -> str:
    """What the list calls a measure."""
    return theme.label(name, theme.WHILE_TRAINING) if name in theme.WHILE_TRAINING else name


def layers(chosen: list[RunTables], metrics: pd.DataFrame, frame: pd.DataFrame) -> None:
    """Draw the heatmap of layers and steps, and the trained layer compared with later ones."""
    run = chosen[0]
    left, right = st.columns(2)
    measures = runs.measures(frame)
    measure = (
        choices.choose(left, "Measure", measures, key="training_measure", name=measure_label) if measures else None
    )
    sites = [] if measure is None else runs.sites(frame, measure)
    site = choices.choose(right, "Site", sites, key="training_site", name=theme.site_label) if sites else None
    difference = st.toggle(
        "Difference from step 0",
        key="training_difference",
        bind="query-params",
        help="Subtract the values before training, so that only what training changed is left.",
    )
    if measure in MEANINGS:
        st.caption(MEANINGS[measure])
    show_figure("dynamics", [run], RunChoice(measure, site, difference=difference))
    if len(chosen) > 1:
        show_figure("layer", chosen, RunChoice(measure, site, watched(frame, runs.trained(metrics, frame)), difference))
    if runs.trained(metrics, frame) is not None:
        show_figure("trained", [run], RunChoice(difference=difference))


def watched(frame: pd.DataFrame, trained: int | None) -> int | None:
    """The layer at which runs are compared, from the URL or the box; None for the trained layer."""
    last = int(frame.loc[frame["site"] != "final", "layer"].max())
    layer = show.number(st.columns(4)[0], "Layer to compare", key="training_layer", value=trained)
    if layer is not None and layer > last:
        raise InputError(f"There is no layer {layer}. Choose one from 0 to {last}.")
    return None if layer == trained else layer


def curves(chosen: list[RunTables]) -> None:
    """Draw the numbers of each step, smoothed if asked to be."""
    smooth = st.select_slider(
        "Steps to average",
        WINDOWS,
        key="training_smooth",
        bind="query-params",
        help="Each point is the mean of the last steps. The values themselves are drawn faintly.",
    )
    show_figure("training", chosen, RunChoice(smooth=smooth))


def over_seeds(chosen: list[RunTables]) -> None:
    """Draw a method against GRPO over seeds, if the chosen runs or those recorded beside the first have several."""
    if not (seeds.seeds_known(chosen) or confined.holds(chosen[0].folder.parent)) or not seeds.available(chosen):
        return
    with show.refusing():
        known = seeds.groups(seeds.read(chosen))
        group = known[0] if known else None
        if len(known) > 1:
            group = st.selectbox("Method to compare with GRPO", known, key="training_group", bind="query-params")
        curves, difference, _ = seeds.compared(seeds.read(chosen), group, run_catalogue.WINDOW)
        st.text(seeds.verdict(curves, difference))
        show_figure("seeds", chosen, RunChoice(method=group))


if __name__ == "__main__":
    page()
