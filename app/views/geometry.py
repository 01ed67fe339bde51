"""Directions and lengths of the hidden states, and how much of an entropy change comes from length."""

import scans
import show
import streamlit as st

from internal_policy.look import summary
from internal_policy.look.catalogue import Choice
from internal_policy.look.statistics import Average
from internal_policy.look.view import View


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "The cosine of what attention and FFN add with the stream they add it to: around 0 it is new, below 0 it "
        "suppresses, above 0 it amplifies (Fig. 12 of the paper). Below, the lengths of these vectors."
    )
    choice = Choice(average=average)
    with show.refusing():
        show.catalogued("residual", scans.data("residual", [looked], choice))
    st.subheader("The norm control")
    st.markdown(
        "A longer hidden state has a lower entropy, whatever it points at. The change is split into what comes from "
        "the direction, and what from the length, of the hidden state; the paper has no such control."
    )
    changes = scans.data("norm-control", [looked], choice)
    with show.refusing():
        show.catalogued("norm-control", changes)
    st.subheader("The layer to train, under each part")
    with show.refusing():
        show.table("targets", summary.targets(changes.frames["change"]))


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
