"""Draw how much of GRPO's first-order gain a step on each layer's policy has, beside what the step costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from internal_policy.errors import counted, joined
from internal_policy.look import alignment as alignments
from internal_policy.look import layer_figures, legend, theme
from internal_policy.look.alignment import READOUTS, AlignmentTable
from internal_policy.look.legend import BLUE, GREY, ORANGE, Mark
from internal_policy.look.theme import Style

IN_BATCH = Mark("on the same prompts", BLUE, "circle")
HELD_OUT = Mark("on other prompts", BLUE, "circle-open")
COST = Mark("cost of the step", GREY, "line-ew")
SUGGESTED = Mark("suggested layer", ORANGE, "star")
GAINS = {"gain": HELD_OUT, "gain_in_batch": IN_BATCH}
"""Measure -> how it is drawn; the last one is on top."""


def rows(found: AlignmentTable, site: str) -> pd.DataFrame:
    """The gains at one site by layer and readout: layer, site, readout, cost, measure, mean, low, high, gain_per_cost.

    All but the layer are shares of GRPO's.
    """
    table = found.table
    kept = table[(table["site"] == site) & table["measure"].isin([*GAINS])].drop(columns="left_out")
    return kept.assign(gain_per_cost=kept["mean"] / kept["cost"]).reset_index(drop=True)


def alignment(found: AlignmentTable, site: str, style: Style = "screen") -> go.Figure:
    """Share of GRPO's first-order gain by layer, on the same prompts and on others, with the cost of a step.

    A panel for each readout; a star is the layer that `alignment.best` suggests.
    """
    numbers, n_layers = rows(found, site), int(found.about["n_layers"])
    readouts = [name for name in READOUTS if (numbers["readout"] == name).any()]
    figure = make_subplots(rows=len(readouts), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, readout in enumerate(readouts, start=1):
        place: Any = {"row": row, "col": 1}
        mine, first = numbers[numbers["readout"] == readout], row == 1
        layer_figures.zero(figure, **place)
        _cost(figure, mine, style, legend=first, **place)
        for measure, mark in GAINS.items():
            line = _placed(mine[mine["measure"] == measure], mark, style)
            if faint := measure == "gain":
                figure.add_trace(theme.band(line, mark.colour, 0.12, legendgroup=mark.name), **place)
            theme.line(figure, line, mark, thin=faint, legend=first, **place)
        _star(figure, alignments.best(found.table, n_layers, site, readout), style, **place)
        figure.update_yaxes(title={"text": f"{readout}<br>(share of GRPO's)"}, **place)
    _once(figure, SUGGESTED.name)
    layer_figures.by_layer(figure, style, bottom=len(readouts))
    said = caption(found, site, readouts)
    return theme.layout(
        figure, "Gain of a first step by layer", said, style, height=130 + 215 * len(readouts), above=10
    )


def caption(found: AlignmentTable, site: str, readouts: Sequence[str]) -> str:
    """The model, the site, the readouts, and how many prompts and responses, on one plain line."""
    about = found.about
    each, left = divmod(about["responses"], about["prompts"])
    size = counted(about["prompts"], "prompt")
    size = f"{counted(about['responses'], 'response')} to {size}" if left else f"{size} x {counted(each, 'response')}"
    where = "" if site == "resid_post" else legend.SITES[site].name
    read = joined([READOUTS[name] for name in readouts])
    said = [theme.short(str(about["model"])), where, read, f"{size}, {about['with_spread']} with spread", "bands 95%"]
    return " · ".join(part for part in said if part)


def _placed(line: pd.DataFrame, mark: Mark, style: Style) -> pd.DataFrame:
    """Rows for `theme.line`: where they are drawn, and what hovering shows."""
    line = line.dropna(subset="mean").sort_values("layer")
    said = [
        f"{theme.place(row['layer'], row['site'], style)}<br>{mark.name}: {row['mean']:.2f} ({row['low']:.2f} to "
        f"{row['high']:.2f}) of GRPO's gain<br>at {row['cost']:.2f} of its cost, gain/cost {row['gain_per_cost']:.2f}"
        for row in line.to_dict("records")
    ]
    at = line["layer"].to_numpy(dtype=int) + theme.first_layer(style)
    return line.assign(at=at, hover=np.array(said, dtype=object))


def _cost(figure: go.Figure, mine: pd.DataFrame, style: Style, **drawn: Any) -> None:
    """Draw the cost of a step as a dotted line: a gain below it is less for its cost than GRPO's."""
    line = mine.drop_duplicates("layer").sort_values("layer")
    legend_of = drawn.pop("legend")
    figure.add_scatter(
        x=line["layer"].to_numpy(dtype=int) + theme.first_layer(style),
        y=line["cost"].to_numpy(),
        mode="lines",
        name=COST.name,
        line={"color": COST.colour, "width": 1.5, "dash": "dot"},
        hovertemplate=f"{COST.name}: %{{y:.2f}} of GRPO's<extra></extra>",
        legendgroup=COST.name,
        showlegend=legend_of,
        **drawn,
    )


def _star(figure: go.Figure, best: alignments.Best | None, style: Style, **place: Any) -> None:
    """Mark the suggested layer, if there is one."""
    if best is None:
        return
    number = best.layer + theme.first_layer(style)
    figure.add_scatter(
        x=[number],
        y=[best.gain],
        mode="markers",
        name=SUGGESTED.name,
        line={"color": SUGGESTED.colour},  # which `sketch` reads
        marker={"symbol": SUGGESTED.symbol, "size": 14, "color": SUGGESTED.colour},
        hovertext=[f"layer {number} has the largest gain for its cost below the last layer: {best.worth:.2f}"],
        hoverinfo="text",
        legendgroup=SUGGESTED.name,
        **place,
    )


def _once(figure: go.Figure, name: str) -> None:
    """Keep a name in the legend once."""
    for trace in [trace for trace in theme.traces(figure) if trace.name == name][1:]:
        trace.showlegend = False
