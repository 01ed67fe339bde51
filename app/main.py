"""The dashboard, which only this machine can reach: `streamlit run app/main.py`."""

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

VIEWS = {
    "overview": "Overview",
    "flow": "Distributions",
    "tokens": "Tokens",
    "compare": "Compare",
    "training": "Training",
    "geometry": "Geometry",
    "prompt": "Try a prompt",
}
"""Address -> title. No icons, because Streamlit would fetch them from the network for the browser's tab."""
WITHOUT_A_SCAN = ("training", "prompt")


def dashboard() -> None:
    """Draw the sidebar and the page named in the address."""
    import scans  # imported here, because their caches need a runtime that only starts after this import
    import show

    st.set_page_config(page_title="internal-policy", layout="wide", initial_sidebar_state=340)
    page = st.navigation(
        [
            st.Page(f"views/{name}.py", title=title, url_path=name, default=name == "overview")
            for name, title in VIEWS.items()
        ]
    )
    scans.choose()
    st.title(page.title)
    with show.refusing():
        if scans.none() and page.url_path not in WITHOUT_A_SCAN:
            show.nothing_yet()
        else:
            page.run()


if __name__ == "__main__":  # Streamlit runs this file for every page,
    dashboard()
else:  # and imports it once for the server, which by itself refuses a foreign Host on its websocket alone
    app = st.App(__file__, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1"])])
