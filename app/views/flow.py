"""How entropy goes through the layers, on average and over the tokens."""

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
        "Entropy of the policy at each point of the residual stream, from the embeddings to the model's own policy "
        "(Fig. 2 of the paper), and how much each layer, attention block and FFN changes it (Fig. 3): E is "
        "exploration, I integration, C convergence. Bands are 95 % intervals over responses."
    )
    choice = Choice(average=average)
    for name in ("flow", "change"):
        with show.refusing():
            show.catalogued(name, scans.data(name, [looked], choice))
    st.subheader("Over the tokens")
    st.markdown(
        "Half of the tokens lie in the dark band, nine of ten in the light one. A mean can hide two groups of tokens."
    )
    site = st.selectbox("Site", SITES, index=SITES.index("resid_post"), key="spread", bind="query-params")
    with show.refusing():
        show.catalogued("distribution", scans.data("distribution", [looked], Choice(site=site)))
    st.subheader("Towards the model's own policy")
    st.markdown(
        "How far each policy is from the model's own, and the share of tokens whose likeliest token no longer changes."
    )
    with show.refusing():
        show.catalogued("convergence", scans.data("convergence", [looked], choice))


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
