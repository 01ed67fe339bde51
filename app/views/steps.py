"""A series of checkpoints: the layers of a model at each step of its training, played with a slider."""

from pathlib import Path

import choices
import confined
import show
import streamlit as st

from internal_policy.look import differences, recipe, run_catalogue, studies, theme, view
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.study import Study, open_study

COMMAND = "internal-policy scan --checkpoints ./my-run --rollouts responses.jsonl"


def page() -> None:
    """Draw the page."""
    st.markdown(
        "The layers of one model at several steps of its training, read over the same responses. Press ▶ or move the "
        "slider below the figure. The dotted lines are the first step, and the lower panel is the change since then, "
        "with 95% intervals over responses that are compared in pairs. Training runs have no intervals."
    )
    if (study := chosen()) is not None:
        with show.refusing():
            draw(study)
    st.markdown("Scan your own checkpoints, then reload this page.")
    st.code(COMMAND, language="bash")


def chosen() -> Study | None:
    """The study or training run from the URL or the list; None if none was named and there are none."""
    found = confined.of_studies()
    above = st.container()
    typed = st.text_input("Folder or name of a study", key="study", bind="query-params")
    if not typed and not found:
        return None
    name = typed or next(iter(found))
    folder = found[name] if name in found else confined.allowed(Path(name)).expanduser()
    if found:
        shown = next((known for known, path in found.items() if path == folder), name)
        st.session_state["listed_study"] = shown
        names = list(dict.fromkeys([*found, shown]))
        above.selectbox("Study or run", names, format_func=theme.short, key="listed_study", on_change=open_listed)
    opened = open_study(folder)
    return Study(folder, name if name in found else folder.name, opened.readout)


def open_listed() -> None:
    """Choose the study picked in the list."""
    st.session_state["study"] = st.session_state["listed_study"] or ""


def draw(study: Study) -> None:
    """Draw the figure that plays the steps, what changed, and the heatmap of all steps."""
    left, right = st.columns(2)
    known = studies.readouts(study.folder)
    readout = choices.choose(left, "Readout", known, key="steps_readout", name=view.how) if len(known) > 1 else known[0]
    study = study.view(readout)
    frame = study.layers()
    measures = studies.measures(frame)
    measure = choices.choose(right, "Measure", measures, key="steps_measure", name=theme.label)
    choice = RunChoice(None if measure == measures[0] else measure, readout=None if readout == known[0] else readout)
    numbers = run_catalogue.data("steps", [study], choice)
    drawn = run_catalogue.draw("steps", [study], choice)
    show.figure("steps", drawn, numbers, recipe=recipe.of_runs("steps", [study], choice))
    steps = study.steps
    last = studies.changes_since(frame[frame["step"].isin([steps[0], steps[-1]])], measure)
    if last["low"].notna().any():
        renamed = last.rename(columns={"mean": "difference"})
        where = f"at step {steps[-1]:,} against step {steps[0]:,}"
        st.text(f"• {show.line(differences.in_words(renamed, measure, where))}")
    with show.refusing():
        heat = RunChoice(measure, difference=True)
        numbers, drawn = run_catalogue.data("dynamics", [study], heat), run_catalogue.draw("dynamics", [study], heat)
        show.figure("steps-heatmap", drawn, numbers, recipe=recipe.of_runs("dynamics", [study], heat))
    with st.expander("Checkpoints"):
        show.table("checkpoints", study.checkpoints)


if __name__ == "__main__":
    page()
