"""The buttons below a figure or lens grid: save it as PNG or SVG, and copy its address or the Python that draws it."""

from functools import cache
from pathlib import Path
from typing import Any

import plotly
import plotly.graph_objects as go
import served
import streamlit as st
from streamlit.components.v2 import component
from streamlit.components.v2.types import ComponentRenderer

from internal_policy.look import export
from internal_policy.look.recipe import Recipe

HERE = Path(__file__).parent


@cache
def _component() -> ComponentRenderer:
    style, script = ((HERE / f"figure_tools.{ending}").read_text() for ending in ("css", "js"))
    return component("figure_tools", html='<div class="figure-tools"></div>', css=style, js=script)


def buttons(key: str, drawn: go.Figure | None, recipe: Recipe) -> None:
    """Draw the buttons: those that copy, and for a plotly figure those that save it.

    Text that the browser refuses to copy is shown below them.
    """
    data: dict[str, Any] = {"python": recipe.python, "address": [list(pair) for pair in recipe.address]}
    if drawn is not None:
        picture = export.picture(drawn)
        data |= {
            "figure": picture.to_json(),
            "library": f"{served.PLOTLY}?{plotly.__version__}",
            "size": {"width": picture.layout["width"], "height": picture.layout["height"], "scale": export.SCALE},
            "file": recipe.file,
        }
    found = _component()(key=f"{key}-tools", data=data, width="content", on_refused_change=lambda: None)
    if found.refused:
        st.code(found.refused, language=None)
