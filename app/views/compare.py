"""Up to four scans side by side, at the same relative depth."""

from dataclasses import replace
from typing import Literal

import pandas as pd
import scans
import show
import streamlit as st

from internal_policy.look import comparison, layer_figures, summary
from internal_policy.look.statistics import Average
from internal_policy.look.view import View

MOST = 4


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "Models of different depth, each drawn from its first layer (0) to its last (1), on one scale (Figs. 13 and 14 "
        "of the paper). The sidebar's readout, responses and positions hold for all of them."
    )
    known = list(scans.listed())
    names = st.multiselect(
        "Scans, two to four",
        known,
        default=known[-2:],
        key="compare",
        bind="query-params",
        max_selections=MOST,
        accept_new_options=True,
        help="Choose from the list, or type the folder of a scan.",
    )
    if len(names) < 2:
        st.text("Choose at least two scans.")
        return
    views = [replace(looked, source=scans.find(name)) for name in names]
    records = comparison.comparable(views)
    for sentence in comparison.differences(records):
        st.text(f"• {show.line(sentence)}")
    abouts = [scans.about(one) for one in views]
    frames = [scans.means(one, "entropy", average) for one in views]
    changes = [scans.changes(one, average) for one in views]
    of_each: dict[Literal["entropy", "change"], list[pd.DataFrame]] = {"entropy": frames, "change": changes}
    for what, found in of_each.items():
        deep = [comparison.relative(frame, about.n_layers) for frame, about in zip(found, abouts, strict=True)]
        data = [frame.assign(scan=name) for frame, name in zip(deep, names, strict=True)]
        with show.refusing():
            drawn = layer_figures.compare(list(zip(abouts, deep, strict=True)), what)
            show.figure(f"compare-{what}", drawn, show.stacked(*data))
    st.subheader("The layer to train")
    named = [summary.targets(found).assign(scan=name) for found, name in zip(changes, names, strict=True)]
    table = pd.concat(named, ignore_index=True)
    show.table("targets", table[["scan", *table.columns.drop("scan")]])


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
