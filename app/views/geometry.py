"""Directions and norms of hidden states, and how much of an entropy change is due to each."""

import scans
import show
import streamlit as st

from internal_policy.look.catalogue import Choice
from internal_policy.look.statistics import Average
from internal_policy.look.view import View


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "Cosine between what attention or FFN writes and the residual stream it writes to (Fig. 12 of the paper): near "
        "0 it adds something new, below 0 it suppresses, above 0 it amplifies. The lower panel shows their norms."
    )
    choice = Choice(average=average)
    with show.refusing():
        show.catalogued("residual", scans.data("residual", [looked], choice))
    st.subheader("Direction and norm")
    st.markdown(
        "With the raw readout, a longer hidden state has a lower entropy whatever its direction. This norm control "
        "splits each entropy change into a part due to direction and a part due to norm. It isn't in the paper."
    )
    changes = scans.data("norm-control", [looked], choice)
    with show.refusing():
        show.catalogued("norm-control", changes)
    st.subheader("Target layer by direction and by norm")
    with show.refusing():
        show.targets(changes.frames)


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
