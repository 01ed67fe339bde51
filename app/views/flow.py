"""How measures are spread over tokens, and how far each policy is from the model's own."""

import choices
import scans
import show
import streamlit as st

from internal_policy.look import catalogue, theme, view
from internal_policy.look.catalogue import Choice
from internal_policy.look.statistics import Average
from internal_policy.look.view import CONTROLS, View
from internal_policy.measure.sites import SITES


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "A mean can hide two groups of tokens. The dark band holds half of the tokens, the light band 90%. The "
        "Overview page has the mean entropy of each layer."
    )
    left, right = st.columns(2)
    site = choices.choose(left, "Site", SITES, key="spread", name=theme.site_label, first="resid_post")
    lacking = {*CONTROLS} - {*view.check(looked)["selection"]["measures"]}
    measures = [name for name in catalogue.CHOICES["distribution"] if name not in lacking]
    measure = choices.choose(right, "Measure", measures, key="spread_measure", name=theme.label)
    with show.refusing():
        show.catalogued("distribution", scans.data("distribution", [looked], Choice(site=site, measure=measure)))
    st.subheader("Convergence to the model's own policy")
    st.markdown(
        "How far each policy is from the model's own, and the share of tokens whose top token no longer changes."
    )
    with show.refusing():
        show.catalogued("convergence", scans.data("convergence", [looked], Choice(average=average)))
    st.subheader("The same through each readout")
    st.markdown("The readout whose policies are closer to the model's own says more about what a layer knows.")
    with show.refusing():
        show.catalogued("readouts", scans.data("readouts", [looked], Choice(average=average, measure="kl")))


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
