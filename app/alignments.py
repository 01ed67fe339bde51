"""Draw how well each layer's gradient agrees with GRPO's, or say how to measure it."""

import shlex
from pathlib import Path

import choices
import confined
import show
import streamlit as st

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import alignment, alignment_catalogue, recipe, runs, theme
from internal_policy.look.alignment_catalogue import AlignmentChoice
from internal_policy.scans import records

EXPLAINED = (
    "How well the gradient of each layer's policy agrees with GRPO's in the model that this run starts from. The "
    "Alignment page explains the figure."
)
OWN = "internal-policy align --model ./my-model --problems problems.jsonl"


def chosen() -> Path | None:
    """The alignment from the list, kept in the address; None if there are none."""
    known = {folder.name: folder for folder in reversed(alignment.whole()) if confined.holds(folder)}
    if not known:
        return None
    names, place = [*reversed(known)], st.columns(2)[0]
    return known[choices.choose(place, "Alignment", names, key="alignment", name=lambda name: label(known[name]))]


def label(folder: Path) -> str:
    """What the list calls an alignment: its model, its size and its folder."""
    about = alignment.record(folder)
    return f"{theme.short(str(about['model']))} · {about['prompts']} prompts · {theme.short(folder.name)}"


def draw(folder: Path) -> None:
    """Draw an alignment with its sentences and numbers."""
    found = alignment.read(folder)
    sites = alignment_catalogue.sites(found)
    site = sites[0]
    if len(sites) > 1:
        site = choices.choose(st.columns(2)[0], "Site", sites, key="alignment_site", name=theme.site_label)
    choice = AlignmentChoice(None if site == sites[0] else site)
    numbers = alignment_catalogue.data("alignment", [found], choice)
    drawn = alignment_catalogue.draw("alignment", [found], choice)
    show.figure("alignment-figure", drawn, numbers, recipe=recipe.of_alignment("alignment", folder, choice))
    for sentence in (*alignment.sentences(found.table, found.about["n_layers"]), alignment.facts(found.about)):
        st.text(f"• {show.line(sentence)}")


def of_run(folder: Path) -> None:
    """Draw the alignment of the model that a run starts from, or the command that measures it.

    A run without a record doesn't say which model that is, and nothing is drawn.
    """
    if not (folder / runs.RECORD).is_file():
        return
    st.subheader("Alignment before training")
    with show.refusing():
        model, identity = started_from(folder)
        if known := [*filter(confined.holds, alignment.of_model(identity))]:
            st.caption(EXPLAINED)
            draw(known[0])
            return
        st.text(f"{show.line(model)} has no alignment. This command measures it:")
        st.code(command(model), language="bash")


def started_from(folder: Path) -> tuple[str, str]:
    """The name of the model that a run starts from, and what identifies its weights. Raises InputError."""
    try:
        record = records.read(folder / runs.RECORD)
    except records.DAMAGE as error:
        raise InputError(f"{folder / runs.RECORD} is damaged ({error}).") from error
    return str(record.get("model")), str(record.get("identity"))


def command(model: str) -> str:
    """The command that measures the alignment of a model."""
    named = "" if model == "demo-qwen3" else f" --model {shlex.quote(model)}"
    return f"internal-policy align{named}{'' if bundle.model(model) else ' --problems problems.jsonl'}"
