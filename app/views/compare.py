"""Up to four scans side by side at relative depth."""

from dataclasses import replace

import pandas as pd
import scans
import show
import streamlit as st

from internal_policy.look import catalogue, comparison, summary
from internal_policy.look.catalogue import Choice
from internal_policy.look.statistics import Average
from internal_policy.look.view import View


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "Models of different depth on one scale, from before the first layer (0) to after the last (1) (Figs. 13 and "
        "14 of the paper). The readout, rollouts and positions chosen in the sidebar apply to all of them."
    )
    known = list(scans.listed())
    names = st.multiselect(
        "Scans (two to four)",
        known,
        default=known[-2:],
        key="compare",
        bind="query-params",
        max_selections=catalogue.MOST,
        accept_new_options=True,
        help="Choose from the list, or type the folder of a scan.",
    )
    if len(names) < 2:
        st.text("Choose at least two scans.")
        return
    views = [replace(looked, source=scans.find(name)) for name in names]
    for sentence in comparison.differences(comparison.comparable(views)):
        st.text(f"• {show.line(sentence)}")
    for measure in catalogue.CHOICES["compare"]:
        with show.refusing():
            found = scans.data("compare", views, Choice(average=average, measure=measure))
            frames = [frame.assign(scan=name) for frame, name in zip(found.frames.values(), names, strict=True)]
            show.figure(f"compare-{measure}", catalogue.compare(found), pd.concat(frames, ignore_index=True))
    st.subheader("Target layer")
    changes = [scans.data("change", [one], Choice(average=average)).frames["change"] for one in views]
    named = [summary.targets(found).assign(scan=name) for found, name in zip(changes, names, strict=True)]
    table = pd.concat(named, ignore_index=True)
    show.table("targets", table[["scan", *table.columns.drop("scan")]])


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
