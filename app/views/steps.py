"""A series of checkpoints: the layers of a model at each step of its training, played with a slider."""

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
    picked = choices.folder(confined.of_studies(), "Study or run", "Folder or name of a study", key="study")
    if picked is None:
        return None
    name, folder = picked
    return Study(folder, name, open_study(folder).readout)


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
