"""One response token by token: what every layer predicts, and how uncertain it is."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import scans
import show
import streamlit as st

from internal_policy.errors import InputError, counted
from internal_policy.look import catalogue, tokens
from internal_policy.look.catalogue import Choice
from internal_policy.look.view import View
from internal_policy.measure.sites import SITES

WIDEST = 40
"""Characters after which a token is cut."""


def page(looked: View) -> None:
    """Draw the page."""
    st.markdown(
        "Each column is a token of the response, each row a layer: a cell measures that layer's policy predicting that "
        "token. Click a cell, or type its layer and position, to see how attention and FFN change the top tokens."
    )
    rollout = choose_rollout(looked)
    cells(looked, rollout)


def choose_rollout(looked: View) -> int:
    """The rollout from the URL, box or list, by default the first. Draws the choice, its problem and its reward."""
    known = scans.rollouts(looked).set_index("rollout")
    labels = {int(row["rollout"]): label(row) for row in known.reset_index().to_dict("records")}
    left, right = st.columns([1, 4])
    typed = show.number(left, "Rollout", key="rollout", on_change=forget_cell, placeholder=str(known.index[0]))
    rollout = int(known.index[0]) if typed is None else typed
    st.session_state["listed_rollout"] = rollout
    right.selectbox(
        "Response",
        list(dict.fromkeys([*labels, rollout])),
        format_func=lambda number: labels.get(number, str(number)),
        key="listed_rollout",
        on_change=open_rollout,
    )
    if rollout not in known.index:
        raise InputError(f"Rollout {rollout} isn't among the selected ones. Choose one from the list.")
    row = known.loc[rollout].to_dict()
    with st.container(key="problem", border=True):
        show.long_text(row["problem"])
        answer = "" if pd.isna(row["answer"]) else f"answer {show.line(str(row['answer']))} · "
        st.text(f"{answer}{marked(row['reward'])} · {counted(row['tokens'], 'token')}")
    return rollout


def label(row: dict[Any, Any]) -> str:
    """What the list calls a rollout."""
    problem = show.line(row["problem"][:80])
    return f"{row['rollout']} · {marked(row['reward'])} · {counted(row['tokens'], 'token')} · {problem}"


def marked(reward: float | None) -> str:
    """A reward in words."""
    if reward is None or pd.isna(reward):
        return "not marked"
    return {0.0: "incorrect", 1.0: "correct"}.get(reward, f"reward {reward:.3g}")


@st.fragment
def cells(looked: View, rollout: int) -> None:
    """The heatmap around the chosen cell, and the top tokens there."""
    left, right = st.columns(2)
    site = left.selectbox("Site", SITES, index=SITES.index("resid_post"), key="site", bind="query-params")
    measure = right.selectbox("Measure", catalogue.CHOICES["tokens"], key="measure", bind="query-params")
    above = st.container()
    with show.refusing():
        about, response = scans.about(looked), tokens.response(looked, rollout)
        layer, position = choose_cell(about.n_layers, response)
        shown = window(response, position)
        start = int(shown["position"].iloc[0])
        with above, show.refusing():
            choice = Choice(site=site, measure=measure, rollout=rollout, position=start)
            found = scans.data("tokens", [looked], choice)
            drawn = point_at(catalogue.heatmap(found), layer, position)
            show.figure("cells", drawn, found.frames[measure].merge(found.frames["response"]), clicked=clicked)
        strip(shown, position)
        cell = scans.data("cell", [looked], Choice(rollout=rollout, position=position, layer=layer))
        show.figure("predictions", catalogue.cell(cell), cell.frames["predictions"])


def choose_cell(n_layers: int, response: pd.DataFrame) -> tuple[int, int]:
    """The layer and position from the URL, a click or the boxes; by default the middle layer at the first token."""
    left, middle, right = st.columns([1, 1, 3], vertical_alignment="bottom")
    layer = show.number(left, "Layer", key="layer", placeholder=str(n_layers // 2))
    first = int(response["position"].iloc[0])
    position = show.number(middle, "Position", key="position", placeholder=str(first))
    layer, position = n_layers // 2 if layer is None else layer, first if position is None else position
    if layer > n_layers:
        raise InputError(
            f"There is no layer {layer}. Choose one from 0 to {n_layers - 1}, or {n_layers} for the model's own policy."
        )
    token = tokens.window(response, position).set_index("position").loc[position, "token"]
    what = "the model's own policy" if layer == n_layers else f"layer {layer}"
    right.text(f"Token “{show.glyphs(str(token), WIDEST)}” as predicted by {what}.")
    return layer, position


def window(response: pd.DataFrame, position: int) -> pd.DataFrame:
    """The tokens drawn at once, around a position, with buttons to the previous and next ones."""
    shown = tokens.window(response, position)
    if len(shown) == len(response):
        return response
    first, last = int(response["position"].iloc[0]), int(response["position"].iloc[-1])
    start, end = int(shown["position"].iloc[0]), int(shown["position"].iloc[-1])
    before, after, said = st.columns([1, 1, 3], vertical_alignment="center")
    before.button("Previous tokens", key="before", on_click=go_to, args=[start - 1], disabled=start == first)
    after.button("Next tokens", key="after", on_click=go_to, args=[end + 1], disabled=end == last)
    said.text(f"Positions {start} to {end} of {first} to {last}.")
    return shown


def strip(shown: pd.DataFrame, position: int) -> None:
    """Draw the tokens of the window as text, with the chosen one in brackets."""
    tokens = [show.glyphs(token, WIDEST) for token in shown["token"]]
    said = [f"⟦{token}⟧" if at == position else token for at, token in zip(shown["position"], tokens, strict=True)]
    with st.container(key="strip", border=True):
        st.text(" ".join(said))


def point_at(drawn: go.Figure, layer: int, position: int) -> go.Figure:
    """Frame the chosen cell, in black within white to contrast with every colour."""
    edges = {"x0": position - 0.5, "x1": position + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
    for colour, width in (("white", 5), ("black", 2)):
        drawn.add_shape(type="rect", **edges, line={"color": colour, "width": width})
    return drawn


def clicked() -> None:
    """Choose the layer and position of the clicked cell."""
    if points := st.session_state["cells"]["selection"]["points"]:
        st.session_state["layer"], st.session_state["position"] = (int(n) for n in points[0]["customdata"][:2])


def go_to(position: int) -> None:
    """Choose a position."""
    st.session_state["position"] = position


def open_rollout() -> None:
    """Choose the rollout picked in the list."""
    st.session_state["rollout"] = st.session_state["listed_rollout"]
    forget_cell()


def forget_cell() -> None:
    """Unset the position, because another response has other positions."""
    st.session_state["position"] = None


if __name__ == "__main__":
    page(scans.chosen())
