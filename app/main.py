"""The dashboard, which only this machine can reach: `streamlit run app/main.py`."""

from pathlib import Path
from typing import NamedTuple

import guard
import served
import streamlit as st


class Entry(NamedTuple):
    """A page of the dashboard."""

    title: str
    """Its heading, and its name in the browser's tab. No icon: Streamlit would fetch it from the network."""
    figures: tuple[str, ...] = ()
    """The catalogue's figures on the page. The sidebar has the choices that they use; without figures it is empty."""
    uses: tuple[str, ...] = ()
    """What else can be chosen in the sidebar."""
    of_tokens: bool = False
    """Whether the page shows single tokens. Such a page opens on the norm readout if that was measured."""


STYLE = Path(__file__).parent / "style.css"
VIEWS = {
    "overview": Entry("Overview", ("flow", "change")),
    "flow": Entry("Distributions", ("distribution", "convergence", "readouts")),
    "tokens": Entry("Tokens", ("tokens", "cell"), of_tokens=True),
    "compare": Entry("Compare", ("compare",), of_tokens=True),
    "training": Entry("Training"),
    "steps": Entry("Steps"),
    "alignment": Entry("Alignment"),
    "geometry": Entry("Geometry", ("residual", "norm-control")),
    "check": Entry("Check", uses=("readout", "outcome", "positions")),
    "ablation": Entry("Ablation", ("ablation",)),
    "prompt": Entry("Try a prompt"),
}
"""Address -> its page."""


def dashboard() -> None:
    """Draw the sidebar and the page named in the address."""
    import address
    import scans  # imported here, because their caches need a runtime that only starts after this import
    import show

    from internal_policy.look import catalogue

    st.set_page_config(page_title="internal-policy", layout="wide", initial_sidebar_state=340)
    page = st.navigation(
        [
            st.Page(f"views/{name}.py", title=entry.title, url_path=name, default=name == "overview")
            for name, entry in VIEWS.items()
        ]
    )
    entry = VIEWS[page.url_path or "overview"]
    address.entered(page.url_path)
    uses = {choice for figure in entry.figures for choice in catalogue.USES[figure]} | {*entry.uses}
    about = scans.choose(uses, of_tokens=entry.of_tokens) if uses else None
    st.set_page_config(page_title=" · ".join(filter(None, (entry.title, about, "internal-policy"))))
    st.html(STYLE)
    st.title(entry.title)
    with show.refusing():
        if uses and scans.none():
            show.nothing_yet()
        else:
            page.run()
    address.one_entry_a_page()


if __name__ == "__main__":  # Streamlit runs this file for every page,
    dashboard()
else:  # and imports it once for the server
    if risk := guard.warning(st.get_option("server.address")):
        guard.LOG.warning(risk)
    app = st.App(__file__, routes=served.ROUTES, middleware=guard.MIDDLEWARE)
