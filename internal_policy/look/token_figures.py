"""Figures of the tokens of one response."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from internal_policy.look import heatmap, legend, theme
from internal_policy.look.legend import GREY
from internal_policy.look.theme import Style
from internal_policy.look.tokens import WINDOW
from internal_policy.look.view import About

SVG = 5000
"""Most markers drawn as shapes; larger numbers are drawn by WebGL."""


def tokens(
    cells: pd.DataFrame, response: pd.DataFrame, about: About, site: str, measure: str, style: Style = "screen"
) -> go.Figure:
    """A measure at every layer and token of a response.

    `cells` has layer, position and value, `response` has position and token. The row after the last layer is the
    model's own policy. Every cell has an invisible marker with customdata [layer, position], because plotly only
    reports clicks on markers. Raises ValueError for more than 512 tokens.
    """
    if len(response) > WINDOW:
        raise ValueError(f"Can't show {len(response)} tokens in one heatmap. Show a window of at most {WINDOW}.")
    grid = cells.pivot(index="layer", columns="position", values="value")
    grid = grid.reindex(index=range(int(grid.index.min()), int(grid.index.max()) + 1), columns=response["position"])
    values = grid.to_numpy(dtype=np.float32)
    colours = heatmap.scale(measure, values, about.d_vocab)
    figure = go.Figure(heatmap.draw(grid, colours, theme.label(measure), style))
    figure.add_trace(_markers(grid, response, about.n_layers, site, measure, style))
    heatmap.layer_axis(figure, grid.index, about.n_layers, style)
    room = 50 if style == "screen" else 40
    every = -(-len(response) // room)
    ticks = response.iloc[::every]
    figure.update_xaxes(
        tickvals=ticks["position"].tolist(),
        ticktext=[theme.glyphs(token, 12) for token in ticks["token"]],
        tickangle=-90,
        title={"text": "Token" if every == 1 else f"Token (one in {every} labelled)"},
        range=[response["position"].iloc[0] - 0.5, response["position"].iloc[-1] + 0.5],
    )
    title = f"{theme.MEASURES[measure][0]} by token"
    height = 220 + int(np.clip(22 * len(grid), 120 if style == "screen" else 260, 720))
    one = replace(about, rollouts=1, tokens=len(response))
    caption = f"{legend.SITES[site].name} · {theme.caption(one)}"
    theme.layout(figure, title, caption, style, height=height, wide=True, above=8)
    return figure.update_layout(hoverdistance=-1)  # hovering anywhere shows the nearest cell


def _markers(
    grid: pd.DataFrame, response: pd.DataFrame, n_layers: int, site: str, measure: str, style: Style
) -> go.Scatter | go.Scattergl:
    """An invisible marker on each cell that has a value."""
    shown = grid.reset_index().melt("layer", value_name="value").dropna(subset="value")
    names = {at: theme.glyphs(token, 100) for at, token in zip(response["position"], response["token"], strict=True)}
    unit = theme.MEASURES[measure][1]
    layers = [int(layer) for layer in shown["layer"]]
    points = {layer: theme.place(layer, "final" if layer == n_layers else site, style) for layer in set(layers)}
    kind = go.Scatter if len(shown) <= SVG else go.Scattergl
    values = [float(f"{value:.5g}") for value in shown["value"].tolist()]
    told = zip(layers, shown["position"].tolist(), map(points.get, layers), values, strict=True)
    return kind(
        x=shown["position"].to_numpy(),
        y=(shown["layer"] + theme.first_layer(style)).to_numpy(),
        mode="markers",
        marker={"size": 10, "color": "white", "opacity": 0, "line": {"color": "black", "width": 2}},
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 0}},
        customdata=np.array(list(told), dtype=object),  # plotly would validate a list item by item
        text=shown["position"].map(names).to_numpy(dtype=object),
        hovertemplate="%{customdata[2]}<br>position %{customdata[1]}: %{text}<br>%{customdata[3]} "
        + unit
        + "<extra></extra>",
        showlegend=False,
    )


def predictions(frame: pd.DataFrame, about: About, layer: int, position: int, style: Style = "screen") -> go.Figure:
    """The top tokens of one layer's policies at one position, one column per site.

    `frame` has site, rank, token, probability and before. After the probability comes how many ranks a token rose (▲)
    or fell (▼) since the layer's input, or `new` if it was not among the top tokens there.
    """
    columns = [(site, rows.sort_values("rank")) for site, rows in frame.groupby("site", sort=False)]
    most = max(len(rows) for _, rows in columns)
    heads, cells = [""], [[f"{rank}" for rank in range(1, most + 1)]]
    for site, rows in columns:
        point = "final" if site == "final" else f"{layer}.{site}"
        heads.append(f"{legend.SITES[str(site)].name}<br>{point}")
        moved = (
            [""] * len(rows)
            if site in ("resid_pre", "final")
            else [_moved(r, b) for r, b in zip(rows["rank"], rows["before"], strict=True)]
        )
        said = zip(rows["token"], rows["probability"], moved, strict=True)
        cells.append([f"{theme.glyphs(token, 16)}  {_percent(share)}  {move}".rstrip() for token, share, move in said])
    clear = {"color": "rgba(0,0,0,0)"} if style == "screen" else {"color": "white"}
    ink = {"color": theme.INK} if style == "screen" else {}
    common = {
        "font": ink,
        "fill": clear,
        "line": {"color": theme.FAINT if style == "screen" else GREY, "width": 1},
        "align": "left",
    }
    tall = 25 if style == "screen" else 22
    table = go.Table(
        header={"values": heads, "height": 2 * tall - 8, **common},
        cells={"values": cells, "height": tall, **common},
        columnwidth=[0.25, *[1] * len(columns)],
    )
    where = "the model" if layer == about.n_layers else f"layer {layer + theme.first_layer(style)}"
    margins = 84 if style == "screen" else 16
    room = tall * 3 + (tall + 7) * most  # plotly makes rows taller if they contain an entity such as &lt;
    height = round((margins + room) / (1 if style == "screen" else 0.58))
    title = f"What {where} would say at position {position}"
    one = replace(about, rollouts=1, tokens=1)
    return theme.layout(go.Figure(table), title, one, style, height=height, wide=True).update_layout(
        margin={"l": 8, "r": 8, "t": margins - 8, "b": 8}
    )


def _moved(rank: int, before: Any) -> str:
    if pd.isna(before):
        return "new"
    return "=" if before == rank else f"▲{before - rank}" if before > rank else f"▼{rank - before}"


def _percent(share: float) -> str:
    """A probability in percent, `~0%` for a tiny one."""
    return f"{100 * share:.3g}%" if share >= 1e-5 else "~0%"
