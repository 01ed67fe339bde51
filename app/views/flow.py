"""Entropy from layer to layer, on average and spread over tokens."""

import scans
import show
import streamlit as st

from internal_policy.look.catalogue import Choice
from internal_policy.look.statistics import Average
from internal_policy.look.view import View
from internal_policy.measure.sites import SITES


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "The entropy of each policy along the residual stream, from the embeddings to `final`, the model's own policy "
        "(Fig. 2 of the paper), and how much each layer, attention block and FFN changes it (Fig. 3). E, I and C mark "
        "exploration, integration and convergence. Bands are 95 % intervals over rollouts."
    )
    choice = Choice(average=average)
    for name in ("flow", "change"):
        with show.refusing():
            show.catalogued(name, scans.data(name, [looked], choice))
    st.subheader("Spread over tokens")
    st.markdown("The dark band holds half of the tokens, the light band 90 %. A mean can hide two groups of tokens.")
    site = st.selectbox("Site", SITES, index=SITES.index("resid_post"), key="spread", bind="query-params")
    with show.refusing():
        show.catalogued("distribution", scans.data("distribution", [looked], Choice(site=site)))
    st.subheader("Convergence to the model's own policy")
    st.markdown(
        "How far each policy is from the model's own, and the share of tokens whose top token no longer changes."
    )
    with show.refusing():
        show.catalogued("convergence", scans.data("convergence", [looked], choice))


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
