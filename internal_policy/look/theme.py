"""How every figure looks, wherever it is shown."""

import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from internal_policy.look.legend import BLUE, CHANGES, FAINT, GREY, INK, MEASURES, ORANGE, PURPLE, SITES, SOFT, Mark
from internal_policy.look.texts import Style, inert, n, seen, short
from internal_policy.look.view import About, how

CURVES = (
    (INK, "circle"),
    (ORANGE, "square"),
    (BLUE, "diamond"),
    (PURPLE, "triangle-up"),
    ("#009E73", "triangle-down"),
    ("#E69F00", "x"),
)
"""Colours and symbols of lines that only differ by name, in order."""
WHILE_TRAINING = {
    **MEASURES,
    "change_direction": ("Entropy change by direction", "nats"),
    "change_norm": ("Entropy change by norm", "nats"),
    "cosine": ("Cosine with the trained layer", ""),
    "kl": ("KL from the trained layer", "nats"),
}
"""The same during training, where layers are compared with the trained one."""

COLUMN, PAGE = 312, 648
"""Widths in print: 3.25 and 6.75 inches at 96 pixels per inch."""

TITLED = 58
"""Height in pixels of a figure's title and caption on screen."""
_TITLE = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "yref": "container", "pad": {"t": 10, "l": 4}}
_CLEAR = "rgba(0,0,0,0)"
_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "bgcolor": _CLEAR, "tracegroupgap": 2}
_SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def glyphs(token: str, most: int | None = None) -> str:
    """A token's text for plotly, with visible symbols for white space and invisible characters, and without markup.

    It is cut to `most` characters. An empty text becomes `∅`.
    """
    cut = token if most is None or len(token) <= most else token[: most - 1] + "…"
    seat = (
        "◌" if unicodedata.category(cut[:1] or "x").startswith("M") else ""
    )  # a combining mark would sit on the character before it
    return inert(seat + "".join(_SHOWN.get(char) or seen(char) for char in cut)) or "∅"


def caption(about: About | str) -> str:
    """The model, readout, counts and filter on one plain line."""
    if isinstance(about, str):
        return about
    said = [short(about.model), how(about.readout), n(about), about.which, about.modules]
    return " · ".join(part for part in said if part)


def label(measure: str, names: Mapping[str, tuple[str, str]] = MEASURES) -> str:
    """The title of an axis: the name and unit of its measure."""
    text, unit = names[measure]
    return f"{text} ({unit})" if unit else text


def first_layer(style: Style) -> int:
    """The number that a figure gives the first layer: 0, but 1 in the paper's style.

    Every figure adds it to its layers, and nothing else decides how layers are counted on screen.
    """
    return 1 if style == "paper" else 0


def layer_title(style: Style) -> str:
    """Title of an axis of layers; it says so where they don't count from 0."""
    return f"Layer (from {first_layer(style)})" if first_layer(style) else "Layer"


def site_label(name: str) -> str:
    """What a list of choices calls a site, such as `layer output (resid_post)`."""
    return f"{SITES[name].name} ({name})"


def place(layer: int, site: str, style: Style) -> str:
    """What hovering calls a site or an entropy change, such as `layer 5 · attention (5.attn_out)`."""
    if site == "final":
        return "final · the model's own policy"
    number = f"layer {layer + first_layer(style)}"
    if site in CHANGES:
        return number if site == "layer" else f"{number} · {CHANGES[site].name}"
    return f"{number} · {SITES[site].name} ({layer}.{site})"


def ticks(first: int, last: int, room: int) -> list[int]:
    """At most about `room` round numbers from `first` to `last`, and `last` itself."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if (last - first) <= room * step)
    return [*(number for number in range(first, last - step + 1) if number % step == 0), last]


def layout(
    figure: go.Figure,
    title: str,
    about: About | str,
    style: Style = "screen",
    *,
    height: int = 420,
    wide: bool = False,
    above: int = 0,
) -> go.Figure:
    """Give a figure the common layout, in place, and return it.

    `height` is the height on screen in pixels. `wide` figures are as wide as the page in print. `above` pixels stay
    free between the axes and the legend. `figure.layout.meta` keeps title and caption as plain text, because a figure
    in print shows neither.
    """
    named = sum(trace.type in ("scatter", "bar") and trace.showlegend is not False for trace in traces(figure))
    if style == "screen":
        _screen(figure, inert(title), inert(caption(about)), height, above, named)
    else:
        _paper(figure, height, wide, above)
    meta = {"title": title, "caption": caption(about)}
    return figure.update_layout(meta=meta, template="none", showlegend=named > 1, hovermode="closest")


def _screen(figure: go.Figure, title: str, said: str, height: int, above: int, named: int) -> None:
    if two := len(said) > 60:  # in two lines
        parts = said.split(" · ")
        said = " · ".join(parts[:-2]) + "<br>" + " · ".join(parts[-2:]) if len(parts) > 2 else said
    begin = TITLED + (22 if two else 6)  # below the caption
    rows = 0 if named < 2 else -(-named // 3) if above else 1  # plotly makes room for more, but not above the axes
    top = begin + 24 * rows + above
    soft, ink = {"color": SOFT}, {"color": INK}
    below = {"text": said, "font": {"size": 12, **soft}}
    figure.update_layout(
        title={**_TITLE, "text": title, "font": {"size": 17, **ink}, "subtitle": below},
        height=height,
        margin={"l": 64, "r": 20, "t": top, "b": 52},
        paper_bgcolor="white",
        plot_bgcolor="white",
        font=soft,
        legend={**_LEGEND, "yref": "container", "y": 1 - begin / height, "yanchor": "top", "font": ink},
        hoverlabel={"bgcolor": "white", "bordercolor": GREY, "font": ink},
    )
    axis = {"gridcolor": FAINT, "linecolor": GREY, "zeroline": False, "automargin": True, "tickfont": soft}
    axis |= {"title": {"standoff": 14, "font": soft}}
    figure.update_xaxes(**axis, showgrid=False).update_yaxes(**axis)


def on_page(figure: go.Figure) -> go.Figure:
    """The figure without its white background, for a page that has its own and replaces `INK` and `SOFT`."""
    return go.Figure(figure).update_layout(paper_bgcolor=_CLEAR, plot_bgcolor=_CLEAR, modebar={"bgcolor": _CLEAR})


def untitled(figure: go.Figure) -> go.Figure:
    """The figure without its title and caption, for a page that writes them itself."""
    top, height = figure.layout.margin.t, figure.layout.height  # pyright: ignore[reportAttributeAccessIssue]
    shown = go.Figure(figure).update_layout(title=None, margin={"t": top - TITLED}, height=height - TITLED)
    above = (1 - figure.layout.legend.y) * height  # pyright: ignore[reportAttributeAccessIssue]
    return shown.update_layout(legend={"y": 1 - (above - TITLED) / (height - TITLED)})


def _paper(figure: go.Figure, height: int, wide: bool, above: int) -> None:
    tall, top, bottom = round(height * 0.58), 8 + above, 42
    small = {"font": {"size": 11}, "indentation": -6, "tracegroupgap": 10}
    figure.update_layout(
        title=None,
        width=PAGE if wide else COLUMN,
        height=tall,
        margin={"l": 52, "r": 8, "t": top, "b": bottom},
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": "Times New Roman, Times, serif", "size": 12, "color": "black"},
        legend={**_LEGEND, "y": 1 + (above + 2) / (tall - top - bottom), "yanchor": "bottom", **small},
    )
    frame = {"showline": True, "mirror": True, "linecolor": "black", "linewidth": 0.75, "zeroline": False}
    marks = {"ticks": "outside", "ticklen": 3, "tickwidth": 0.75, "tickfont": {"size": 11}, "showgrid": False}
    axis = {**frame, **marks, "automargin": True, "title": {"standoff": 4, "font": {"size": 12}}}
    figure.update_xaxes(**axis).update_yaxes(**axis)
    for trace in (trace for trace in traces(figure) if trace.type == "scatter"):
        small = 8 if trace.marker.symbol == "star" else 4 if len(trace.y) <= 45 else 2.5
        black = {"color": "black"} if trace.line.color == INK else {}
        line = {"width": 0 if trace.fill else 1.2, **black}
        trace.update(marker={"size": small, **black}, line=line, error_y={"thickness": 0.8})


def traces(figure: go.Figure) -> list[Any]:
    """The traces of a figure, as a list (plotly's own type is wrong)."""
    return list(figure.data)  # pyright: ignore[reportReturnType]


def line(
    figure: go.Figure,
    rows: pd.DataFrame,
    mark: Mark,
    *,
    x: str = "at",
    legend: bool = True,
    visible: bool | str = True,
    thin: bool = False,
    **place: Any,
) -> None:
    """Draw a line with its interval, broken where layers were not measured. No rows draw nothing.

    Rows may have a `symbol` of their own, such as an open one.
    """
    if not len(rows):
        return
    if rows["low"].notna().any() and not thin:
        shade = GREY if mark.colour == INK else mark.colour  # ink would hide the lines below it
        figure.add_trace(band(rows, shade, 0.2, x, legendgroup=mark.name, visible=visible), **place)
    gaps = pd.concat([pd.concat([run, run.iloc[:1].assign(mean=np.nan)]) for run in runs(rows)]).iloc[:-1]
    points = gaps["layer"] if "layer" in gaps else gaps["at"]
    figure.add_scatter(
        x=gaps[x].to_numpy(),
        y=gaps["mean"].to_numpy(),
        mode="lines+markers",
        name=mark.name,
        line={"color": mark.colour, "width": 1 if thin else 2.5 if mark.colour == INK else 2},
        marker={
            "symbol": gaps["symbol"].tolist() if "symbol" in gaps else mark.symbol,
            "size": 12 if mark.symbol == "star" else 5 if thin else 6,
            "color": mark.colour,
        },
        selected={"marker": {"opacity": 1, "size": 11}},
        unselected={"marker": {"opacity": 1}},
        customdata=[
            [layer] for layer in points.tolist()
        ],  # a list, because plotly reports no customdata from an array on a click
        hovertext=gaps["hover"].tolist(),
        hoverinfo="text",
        legendgroup=mark.name,
        showlegend=legend,
        visible=visible,
        cliponaxis=mark.symbol != "star",
        **place,
    )


def name_steps(figure: go.Figure, row: int | None = None) -> None:
    """Name the axis of training steps. Where steps are few, ticks are at each of them and not between."""
    traces: Any = figure.data
    steps = [step for trace in traces for step in trace.x]
    few: dict[str, Any] = {"dtick": 1} if steps and max(steps) - min(steps) < 8 else {}
    figure.update_xaxes(title={"text": "Step"}, row=row, **few)


def runs(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Split rows where a layer is missing. Neighbours are 1 apart, or 2 where every second layer was measured, ..."""
    steps = np.diff(rows["at"].to_numpy())
    usual = int(np.median(steps)) if len(steps) else 1
    ends = [0, *(np.flatnonzero(steps > usual) + 1).tolist(), len(rows)]
    return [rows.iloc[start:end] for start, end in pairwise(ends)]


def band(rows: pd.DataFrame, colour: str, opacity: float, x: str = "at", **named: Any) -> go.Scatter:
    """The area between `low` and `high`: an outline for each run of layers, and a short bar for a single layer."""
    outline: list[np.ndarray] = []
    for run in runs(rows):
        at, low, high = (run[name].to_numpy(dtype=float) for name in (x, "low", "high"))
        if len(run) == 1:
            width = 0.1 if x == "at" else 0.005
            at, low, high = np.array([at[0] - width, at[0] + width]), low.repeat(2), high.repeat(2)
        outline.append(np.array([[*at, *at[::-1], np.nan], [*high, *low[::-1], np.nan]]))
    area = np.concatenate(outline, axis=1)[:, :-1]
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    fill = {"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},{opacity})", "line": {"width": 0}}
    return go.Scatter(x=area[0], y=area[1], mode="lines", hoverinfo="skip", **{"showlegend": False, **fill, **named})


def maximum(figure: go.Figure, about: About, brief: bool = False, **place: Any) -> None:
    """Draw the largest possible entropy, ln V, as a dotted line near the top of the axis."""
    most = log(about.d_vocab)
    figure.add_hline(
        most,
        line={"color": GREY, "width": 1, "dash": "dot"},
        annotation={"text": "ln V" if brief else f"ln V = {most:.2f}", "font": {"size": 11}},
        annotation_position="top right",
        exclude_empty_subplots=False,
        **place,
    )
    figure.update_yaxes(range=[0, 1.12 * most], row=place.get("row"), col=place.get("col"))
