"""A figure that plays the layers of a model through the steps of its training."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from internal_policy.errors import InputError, counted
from internal_policy.look import layer_figures, legend, theme, view
from internal_policy.look.legend import GREY, Mark
from internal_policy.look.theme import Style

SITES = ("resid_post", "attn_out", "mlp_out", "final")
"""Sites that are drawn, as far as they were measured."""
HEIGHT, BELOW = 620, 118
"""Height of the figure on screen, and of the part of it below the axes with the slider, in pixels."""
PAUSE = 500
"""Milliseconds between two steps while they are played."""
AT_ONCE: dict[str, Any] = {"frame": {"duration": 0, "redraw": True}, "mode": "immediate", "transition": {"duration": 0}}
"""How plotly.js jumps to a frame."""


def steps(
    values: pd.DataFrame,
    since: pd.DataFrame,
    name: str,
    about: Mapping[str, Any],
    step: int | None = None,
    style: Style = "screen",
) -> go.Figure:
    """A measure of layer, attention and FFN by layer at one step, and its change since the first step below.

    `values` and `since` have step, layer, site, mean, low and high, as from `studies`. On screen a slider and a button
    play the steps; the figure begins at `step`, by default the last. Raises InputError for a step without numbers.
    """
    known = [int(each) for each in sorted(values["step"].unique())]
    shown = known[-1] if step is None else step
    if shown not in known:
        raise InputError(f"There is no step {shown}. Choose one of {', '.join(map(str, known))}.")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.58, 0.42])
    sites = [site for site in SITES if site in {*values["site"]}]
    for trace, row in _traces(values, since, shown, known[0], sites, style):
        figure.add_trace(trace, row=row, col=1)
    _axes(figure, values, since, about, style)
    measure = legend.MEASURES[about["measure"]][0]
    figure.add_hline(0, line={"color": GREY, "width": 1, "dash": "dash"}, row=2, col=1)  # pyright: ignore
    theme.layout(figure, f"{measure} by layer while training", _caption(name, about, known), style, height=HEIGHT)
    if style == "screen":
        _play(figure, values, since, known, shown, sites)
    return figure


def _caption(name: str, about: Mapping[str, Any], known: Sequence[int]) -> str:
    """The study, readout, counts and steps on one plain line."""
    counts = [
        counted(about[each], noun) for each, noun in (("rollouts", "rollout"), ("tokens", "token")) if about[each]
    ]
    span = f"{counted(len(known), 'step')} from {known[0]:,} to {known[-1]:,}"
    said = [theme.short(name), view.how(about["readout"]), ", ".join(counts), f"{span}, the first dotted"]
    return " · ".join(part for part in said if part)


def _traces(
    values: pd.DataFrame, since: pd.DataFrame, step: int, first: int, sites: Sequence[str], style: Style
) -> list[tuple[go.Scatter, int]]:
    """The lines of one step with their rows: for each site its band and line above, and the same of its change below.

    At the end come faint lines of the first step, which stay while the others are played.
    """
    found = []
    for row, frame in ((1, values), (2, _with_first(since, values, first))):
        for site in sites:
            rows, mark = _at(frame, step, site, style), legend.SITES[site]
            shade = GREY if mark.colour == legend.INK else mark.colour
            band = _area(rows, mark)
            found.append((go.Scatter(**{**_filled(shade), **band, "legendgroup": mark.name}), row))
            found.append((_line(rows, mark, style, legend=row == 1), row))
    at_first = [(_at(values, first, site, style), legend.SITES[site]) for site in sites]
    return [*found, *((_line(rows, mark, style, faint=True), 1) for rows, mark in at_first)]


def _with_first(since: pd.DataFrame, values: pd.DataFrame, first: int) -> pd.DataFrame:
    """The changes, and those of the first step since itself, which are 0."""
    zero = values[values["step"] == first].assign(mean=0.0, low=np.nan, high=np.nan)
    return pd.concat([zero, since[zero.columns]], ignore_index=True)


def _at(frame: pd.DataFrame, step: int, site: str, style: Style) -> pd.DataFrame:
    rows = frame[(frame["step"] == step) & (frame["site"] == site)]
    return rows.assign(at=rows["layer"] + theme.first_layer(style))


def _area(rows: pd.DataFrame, mark: Mark) -> dict[str, Any]:
    """The outline of the intervals; empty without any."""
    if not rows["low"].notna().any():
        return {"x": [], "y": []}
    band = theme.band(rows, mark.colour, 0.2)
    return {"x": band.x, "y": band.y}


def _filled(colour: str) -> dict[str, Any]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    fill = {"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.2)", "line": {"width": 0}}
    return {**fill, "mode": "lines", "hoverinfo": "skip", "showlegend": False}


def _points(rows: pd.DataFrame) -> dict[str, Any]:
    """What changes of a line from step to step: the means, and the intervals for hovering."""
    ends = zip(rows["low"], rows["high"], strict=True)
    between = ["" if np.isnan(low) else f" ({low:.3f} to {high:.3f})" for low, high in ends]
    return {"x": rows["at"].to_numpy(), "y": rows["mean"].to_numpy(dtype=float), "customdata": between}


def _line(rows: pd.DataFrame, mark: Mark, style: Style, *, faint: bool = False, legend: bool = False) -> go.Scatter:
    places = [theme.place(int(layer), site, style) for layer, site in zip(rows["layer"], rows["site"], strict=True)]
    size = 4 if faint else 12 if mark.symbol == "star" else 6
    return go.Scatter(
        **_points(rows),
        mode="lines+markers",
        name=mark.name,
        line={"color": mark.colour, "width": 1 if faint else 2, "dash": "dot" if faint else "solid"},
        marker={"symbol": mark.symbol, "size": size, "color": mark.colour},
        opacity=0.5 if faint else 1,
        text=places,
        hovertemplate=None if faint else "%{text}<br>%{y:.3f}%{customdata}<extra></extra>",
        hoverinfo="skip" if faint else None,
        legendgroup=mark.name,
        showlegend=legend,
        cliponaxis=mark.symbol != "star",
    )


def _axes(figure: go.Figure, values: pd.DataFrame, since: pd.DataFrame, about: Mapping[str, Any], style: Style) -> None:
    """Axes that stay the same at every step: from 0 for an entropy, and around 0 for a change."""
    n_layers = int(about["n_layers"])
    first = theme.first_layer(style)
    figure.update_xaxes(range=[first - 0.5, first + n_layers + 0.4])
    layer_figures.ends(figure, n_layers, style)
    figure.update_xaxes(title={"text": theme.layer_title(style)}, row=2, col=1)
    drawn = values[values["site"].isin(SITES)]
    low, high = _span(drawn)
    low = 0.0 if about["measure"].startswith("entropy") else low
    if about["measure"] == "entropy" and about.get("d_vocab"):
        high = min(high, 1.05 * log(about["d_vocab"]))
    figure.update_yaxes(title={"text": theme.label(about["measure"])}, range=[low, high], row=1, col=1)
    changed = since[since["site"].isin(SITES)]
    ends = _span(changed)
    _, unit = legend.MEASURES[about["measure"]]
    start = int(values["step"].min())
    title = f"Δ since step {start:,}{f' ({unit})' if unit else ''}"
    figure.update_yaxes(title={"text": title}, range=[min(ends[0], 0.0), max(ends[1], 0.0)], row=2, col=1)


def _span(rows: pd.DataFrame) -> tuple[float, float]:
    """The lowest and highest number of some rows with their intervals, and a margin."""
    found = rows[["mean", "low", "high"]].to_numpy(dtype=float)
    found = found[np.isfinite(found)]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _moved(rows: pd.DataFrame, site: str) -> list[dict[str, Any]]:
    """The band and the line of a site at another step: only what changes of them."""
    return [{"type": "scatter", **each} for each in (_area(rows, legend.SITES[site]), _points(rows))]


def _play(
    figure: go.Figure, values: pd.DataFrame, since: pd.DataFrame, known: Sequence[int], shown: int, sites: Sequence[str]
) -> None:
    """Add a frame for each step, with a slider and buttons that play and stop them."""
    frames = (values, _with_first(since, values, known[0]))
    figure.frames = [
        go.Frame(
            name=str(step),
            data=[
                each for frame in frames for site in sites for each in _moved(_at(frame, step, site, "screen"), site)
            ],
            traces=list(range(4 * len(sites))),  # all but the faint lines
        )
        for step in known
    ]
    soft: Any = {"color": legend.SOFT}
    marks = [{"args": [[str(step)], AT_ONCE], "label": f"{step:,}", "method": "animate"} for step in known]
    slider: Any = {
        "active": known.index(shown),
        "steps": marks,
        "currentvalue": {"prefix": "Step ", "font": {"size": 13, **soft}, "xanchor": "left"},
        "x": 0.12,
        "len": 0.88,
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 58, "b": 0},
        "font": {"size": 11, **soft},
        "bgcolor": legend.FAINT,
        "activebgcolor": GREY,
        "bordercolor": GREY,
        "tickcolor": GREY,
        "minorticklen": 0,
        "transition": {"duration": 0},
    }
    playing = {"frame": {"duration": PAUSE, "redraw": True}, "fromcurrent": True, "transition": {"duration": 0}}
    buttons: Any = {
        "type": "buttons",
        "direction": "left",
        "showactive": False,
        "x": 0,
        "xanchor": "left",
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 76, "r": 0},
        "font": {"size": 12, **soft},
        "bgcolor": "rgba(0,0,0,0)",
        "bordercolor": GREY,
        "buttons": [
            {"label": "▶", "method": "animate", "args": [None, playing]},
            {"label": "❚❚", "method": "animate", "args": [[None], AT_ONCE]},
        ],
    }
    margin: Any = figure.layout["margin"]
    figure.update_layout(sliders=[slider], updatemenus=[buttons], margin={"b": margin.b + BELOW - 20})
