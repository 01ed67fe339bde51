"""An alignment: how well each layer's gradient agrees with GRPO's, before training."""

import alignments
import streamlit as st


def page() -> None:
    """Draw the page."""
    st.markdown(
        "BuPO trains the policy of one layer first, and that only helps if its gradient points the way of GRPO's own. "
        "Here is the first-order gain of one such step, as a share of GRPO's: on the prompts that the step was taken "
        "from, whose order by layer is surer, and on others, which has no bias. The dotted line is what a step costs. "
        "A gain below it is less for its cost than GRPO's."
    )
    if folder := alignments.chosen():
        alignments.draw(folder)
    st.markdown("Measure your own model, then reload this page.")
    st.code(alignments.OWN, language="bash")


if __name__ == "__main__":
    page()
