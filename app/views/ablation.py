"""What the model says without each layer, attention block or FFN, beside the entropy change of each."""

import confined
import scans
import show
import streamlit as st

from internal_policy.look import ablation
from internal_policy.look.catalogue import Choice
from internal_policy.look.statistics import Average
from internal_policy.look.view import View


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "What each layer, attention block or FFN adds to the residual stream is left out, or replaced by its mean over "
        "tokens, one at a time. The upper panels show how far the model's own policy then is from the intact model's "
        "at the tokens of the same responses. The lowest panel shows the entropy change of each: do layers that "
        "explore matter more than layers that refine?"
    )
    with show.refusing():
        folder = confined.allowed(ablation.newest(looked))
        show.catalogued("ablation", scans.data("ablation", [looked], Choice(average=average)))
        for sentence in ablation.sentences(folder, looked, average):
            st.text(f"• {show.line(sentence)}")


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
