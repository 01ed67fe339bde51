"""Whether the pattern is real: each claim about the entropies under every control."""

import scans
import show
import streamlit as st

from internal_policy.look import check
from internal_policy.look.check import Check
from internal_policy.look.view import View

COLOURS = {check.HOLDS: "green", check.DOES_NOT_HOLD: "red", check.UNTESTED: "gray"}
"""Verdict -> the colour of its badge; that of the others is orange."""


def page(looked: View) -> None:
    """Draw the page."""
    st.markdown(
        "Is the pattern real? Each claim is judged by 95% intervals over rollouts that hold for all layers at once, as "
        "measured and under every control that this scan has."
    )
    with show.refusing():
        found = checked(looked)
        for row in found.verdicts.to_dict("records"):
            badge = f":{COLOURS.get(row['verdict'], 'orange')}-badge[{show.unmarked(row['verdict'])}]"
            st.markdown(f"**{row['title']}** {badge}  \n{show.unmarked(row['reason'])}")
        st.subheader("What survives which control")
        show.table("check", found.matrix.rename(columns={"control": ""}))
        st.caption(show.unmarked(check.LEGEND))
        with st.expander("What each control does", key="controls"):
            said = [f"{row['title']}: {row['rule']} {_note(row['note'])}" for row in found.controls.to_dict("records")]
            st.markdown("\n".join(f"- {show.unmarked(line.rstrip())}" for line in said))
        if found.options:
            st.markdown("Some controls need more than this scan has. Scan again with:")
            st.code(found.command or " ".join(found.options), language="bash", wrap_lines=True)


def _note(note: str) -> str:
    return f"Here: {note}." if note else ""


@scans.kept(20)
def checked(looked: View) -> Check:
    """The verdicts about a view."""
    return check.check(looked)


if __name__ == "__main__":
    page(scans.chosen())
