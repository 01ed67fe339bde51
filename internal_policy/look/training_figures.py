"""Figures of a training run, by step and by k."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from internal_policy.errors import InputError
from internal_policy.look import heatmap, legend, run_summary, runs, theme
from internal_policy.look.legend import GREY, Mark
from internal_policy.look.theme import Style
from internal_policy.measure.sites import CHANGES

REWARD = Mark("reward", theme.BLUE, "diamond")
RUNS = (*theme.CURVES[1:], theme.CURVES[0])
"""Colours and symbols of runs in one figure, in order."""
PARTS = tuple(curve for curve in theme.CURVES if curve[0] not in (theme.BLUE, theme.PURPLE, theme.ORANGE))
"""Colours and symbols of the rewards of a run, beside their weighted sum."""
SPARSE = 40
"""Longest line whose values are drawn with markers."""
BESIDE = ("resid_post", "attn_out", "mlp_out", "final")
"""Sites drawn of the trained layer and of later layers."""
LATER = 6
"""Most later layers whose lines are still distinguishable."""


def dynamics(
    frame: pd.DataFrame,
    metrics: pd.DataFrame | None,
    caption: str,
    measure: str,
    site: str,
    style: Style = "screen",
    *,
    difference: bool = False,
) -> go.Figure:
    """A measure by layer and training step, with the step where the whole policy took over, and the reward below.

    `frame` has step, layer, site and the measure (Figs. 5 and 7), like `runs.dynamics`. The top row is `final`, if it
    has the measure. The norm of `final` is left out, because it is taken after the last norm. With `difference` the
    values are differences from the first scan. A frame surrounds the layers and steps that were trained.
    """
    n_layers = int(frame.loc[frame["site"] != "final", "layer"].max()) + 1
    model = site == "resid_post" and measure != "norm"
    chosen = frame[((frame["site"] == site) | (model & (frame["site"] == "final"))) & frame[measure].notna()]
    start = int(chosen["step"].min())
    chosen = runs.since_start(chosen, measure) if difference else chosen
    grid = chosen.pivot(index="layer", columns="step", values=measure)
    grid = grid.reindex(index=range(int(grid.index.min()), int(grid.index.max()) + 1))
    rows = 1 if metrics is None else 2
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.7, 0.3][:rows])
    colours = heatmap.scale("change" if difference else measure, grid.to_numpy(dtype=np.float32))
    text, unit = theme.WHILE_TRAINING[measure]
    named = theme.label(measure, theme.WHILE_TRAINING)
    named, form = (f"since step {start}{f' ({unit})' if unit else ''}", "+.4g") if difference else (named, ".4g")
    heat = heatmap.draw(grid, colours, named, style, **({"len": 0.7, "y": 1, "yanchor": "top"} if rows == 2 else {}))
    points = [theme.place(at, "final" if at == n_layers else site, style) for at in grid.index]
    heat.update(
        text=[[point] * grid.shape[1] for point in points],
        customdata=grid.to_numpy(dtype=np.float32),
        hovertemplate=f"%{{text}}<br>step %{{x}}<br>%{{customdata:{form}}} {unit}<extra></extra>",
        hoverinfo=None,
    )
    figure.add_trace(heat, row=1, col=1)
    framed = metrics is not None and _frame(figure, metrics, grid, style)
    heatmap.layer_axis(figure, grid.index, n_layers, style, row=1)
    if metrics is not None:
        _curve(figure, metrics, "reward", REWARD, row=2)
        figure.update_yaxes(title={"text": "Reward"}, row=2)
        mark_switch(figure, metrics, rows)
    figure.update_xaxes(title={"text": "Step"}, row=rows)
    shown = (legend.SITES[site].name, caption, "framed: the layer while it was trained" if framed else "")
    caption = " · ".join(part for part in shown if part)
    title = f"Δ {_small(text)} since step {start}" if difference else f"{text} by step"
    theme.layout(figure, title, caption, style, height=560 if rows == 2 else 420, wide=True, above=16)
    return figure.update_layout(showlegend=False)


def _small(text: str) -> str:
    """A text with a small first letter, unless it begins with an abbreviation."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def roomy(figure: go.Figure, names: int) -> go.Figure:
    """Make room above the axes for a row of the legend for each name, as many as a phone needs."""
    layout: Any = figure.layout
    more = 22 * (names - 1)
    if layout.title.text is None:  # in print
        return figure
    return figure.update_layout(height=layout.height + more, margin_t=layout.margin.t + more)


def _frame(figure: go.Figure, metrics: pd.DataFrame, grid: pd.DataFrame, style: Style) -> bool:
    """Frame each layer at the steps that trained its policy, in black within white; return whether one was framed."""
    phases = [(re.match(r"\d+(?=\.)", phase.target), phase) for phase in run_summary.schedule(metrics)]
    framed = [(int(found[0]), phase) for found, phase in phases if found and int(found[0]) in grid.index]
    for layer, phase in framed:
        at = layer + theme.first_layer(style)
        edges = {"x0": phase.first - 0.5, "x1": phase.last + 0.5, "y0": at - 0.5, "y1": at + 0.5}
        for colour, width in (("white", 4), ("black", 1.5)):
            line: Any = {"color": colour, "width": width}
            figure.add_shape(type="rect", **edges, line=line, xref="x", yref="y")
    return bool(framed)


def trained(
    frame: pd.DataFrame,
    metrics: pd.DataFrame,
    layer: int,
    caption: str = "",
    style: Style = "screen",
    *,
    difference: bool = False,
) -> go.Figure:
    """The layer trained first: its similarity to later layers, and its entropy change (Fig. 5).

    `frame` is that of `runs.dynamics`. From top to bottom: the cosine of its hidden state with theirs, KL(its policy ||
    theirs), and the entropy change of the layer, its attention and its FFN. At most 6 later layers are drawn, from the
    next one to the last. What was not measured is left out. With `difference` the values are differences from the first
    scan. Raises InputError if nothing was measured.
    """
    offset, after = theme.first_layer(style), _after(frame, layer, style)
    changes = {(layer, site): legend.CHANGES[change] for change, (_, site) in CHANGES.items()}
    wanted = (("Cosine", "cosine", after), ("KL (nats)", "kl", after), ("Δ entropy (nats)", "change", changes))
    frames = {
        measure: runs.since_start(frame, measure) if difference else frame
        for _, measure, _ in wanted
        if measure in frame and frame[measure].notna().any()
    }
    panels = [
        (
            title,
            measure,
            {mark: rows for key, mark in marks.items() if len(rows := _at(frames[measure], measure, *key))},
        )
        for title, measure, marks in wanted
        if measure in frames
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise InputError(f"Layer {layer} has no entropy change, and no cosine or KL with later layers.")
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    seen: set[str] = set()
    for number, (title, measure, lines) in enumerate(panels, start=1):
        for mark, rows in lines.items():
            _curve(figure, rows, measure, mark, row=number, legend=mark.name not in seen)
            seen.add(mark.name)
        if measure == "change" or difference:
            place: Any = {"row": number, "col": 1}
            figure.add_hline(0, line={"color": GREY, "width": 1, "dash": "dash"}, **place)
        mode = "tozero" if measure == "kl" and not difference else "normal"
        figure.update_yaxes(title={"text": title}, rangemode=mode, row=number)
    mark_switch(figure, metrics, len(panels))
    figure.update_xaxes(title={"text": f"Step (layers from {offset})" if offset else "Step"}, row=len(panels))
    title = f"Layer {layer + offset} compared with later layers"
    if difference:
        title = f"Layer {layer + offset} and later layers, Δ since step {int(frame['step'].min())}"
    return theme.layout(figure, title, caption, style, height=130 + 160 * len(panels), above=16)


def _after(frame: pd.DataFrame, layer: int, style: Style) -> dict[tuple[int, str], Mark]:
    """How at most 6 layers after `layer` and `final` are drawn, by layer and site."""
    offset = theme.first_layer(style)
    later = sorted({int(at) for at in frame.loc[frame["site"] == "resid_post", "layer"] if at > layer})
    drawn = sorted({later[round(n)] for n in np.linspace(0, len(later) - 1, LATER)}) if later else []
    colours = sample_colorscale("Viridis", np.linspace(0.35, 0.8, max(len(drawn), 2)).tolist())
    after = {
        (at, "resid_post"): Mark(f"layer {at + offset}", str(colour), "circle")
        for at, colour in zip(drawn, colours, strict=False)
    }
    return after | {(int(at), "final"): legend.SITES["final"] for at in frame.loc[frame["site"] == "final", "layer"]}


def _at(frame: pd.DataFrame, measure: str, layer: int, site: str) -> pd.DataFrame:
    """The rows of a hook point that have the measure."""
    return frame[(frame["layer"] == layer) & (frame["site"] == site) & frame[measure].notna()]


PANELS = (
    ("Entropy (nats)", ("entropy", "internal_entropy")),
    ("Reward", ("reward",)),
    ("Clipped", ("clip_fraction",)),
    ("Perplexity", ("perplexity",)),
)
"""Title of an axis -> the columns of metrics.parquet drawn on it."""
QUANTITIES = {
    "entropy": Mark("whole policy", theme.PURPLE, "star"),
    "internal_entropy": Mark("internal policy", theme.ORANGE, "square"),
    "reward": REWARD,
    "clip_fraction": Mark("clip fraction", theme.INK, "circle"),
    "perplexity": Mark("perplexity", theme.INK, "circle"),
}
"""Column of metrics.parquet -> how its line is drawn."""


def training(metrics: pd.DataFrame, caption: str = "", style: Style = "screen", *, window: int = 1) -> go.Figure:
    """Entropy, reward, clip fraction and perplexity by training step, with the switch to the whole policy.

    Of several rewards, each is drawn beside their weighted sum. Each point averages the last `window` steps; the
    values themselves are drawn faintly behind.
    """
    parts = {
        name: Mark(theme.inert(theme.short(name.removeprefix(runs.REWARD))), *PARTS[number % len(PARTS)])
        for number, name in enumerate(runs.rewards(metrics))
    }
    known, within = QUANTITIES | parts, {"Reward": parts}
    if parts:
        known["reward"] = replace(REWARD, name="weighted sum")
    panels = [
        (title, [(known[name], metrics, name) for name in (*names, *within.get(title, ()))]) for title, names in PANELS
    ]
    figure, rows = _panels(panels, window)
    mark_switch(figure, metrics, rows)
    return theme.layout(figure, "Training", averaged(caption, window), style, height=130 + 140 * rows, above=16)


def several(
    tables: Mapping[str, pd.DataFrame], caption: str = "", style: Style = "screen", *, window: int = 1
) -> go.Figure:
    """The same for several runs by their labels, one line per run. Dotted lines in its colour mark a run's switches."""
    panels, marks = [], {}
    for number, label in enumerate(tables):
        colour, symbol = RUNS[number % len(RUNS)]
        marks[label] = Mark(theme.inert(theme.short(label)), colour, symbol)
    for title, names in PANELS:
        for name in names:
            called = "Internal entropy (nats)" if name == "internal_entropy" else title
            panels.append((called, [(marks[label], metrics, name) for label, metrics in tables.items()]))
    figure, rows = _panels(panels, window)
    for label, metrics in tables.items():
        mark_switch(figure, metrics, rows, marks[label].colour, words=False)
    theme.layout(figure, "Training runs", averaged(caption, window), style, height=130 + 140 * rows, above=16)
    return roomy(figure, len(tables))


def averaged(caption: str, window: int) -> str:
    """A caption that says over how many steps each point averages."""
    return " · ".join(part for part in (caption, f"mean of the last {window} steps" if window > 1 else "") if part)


def _panels(panels: list[tuple[str, list[tuple[Mark, pd.DataFrame, str]]]], window: int) -> tuple[go.Figure, int]:
    """Draw one panel for each title, with a line for each mark whose column has values; return the rows too."""
    panels = [
        (t, [line for line in lines if line[2] in line[1] and line[1][line[2]].notna().any()]) for t, lines in panels
    ]
    panels = [(title, lines) for title, lines in panels if lines]
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    seen: set[str] = set()
    for number, (title, lines) in enumerate(panels, start=1):
        for mark, metrics, name in lines:
            legend = len(lines) > 1 and mark.name not in seen
            if window > 1:
                _curve(figure, metrics, name, mark, row=number, faint=True)
                metrics = runs.smoothed(metrics, name, window)
            _curve(figure, metrics, name, mark, row=number, legend=legend)
            seen |= {mark.name} if legend else set()
        clipped = any(name == "clip_fraction" for _, _, name in lines)
        mode = "nonnegative" if clipped else "normal"  # plotly would draw all zeros on an axis from -1 to 1
        figure.update_yaxes(title={"text": title}, rangemode=mode, row=number)
    theme.name_steps(figure, len(panels))
    return figure, len(panels)


def layer(
    tables: Mapping[str, pd.DataFrame],
    layer: int,
    caption: str,
    measure: str,
    site: str,
    style: Style = "screen",
    *,
    difference: bool = False,
) -> go.Figure:
    """A measure at one layer by step, one line a run. `tables` are those of `runs.dynamics` by the runs' labels."""
    figure = go.Figure()
    start = min(int(frame["step"].min()) for frame in tables.values())
    for number, (label, frame) in enumerate(tables.items()):
        colour, symbol = RUNS[number % len(RUNS)]
        rows = _at(runs.since_start(frame, measure) if difference else frame, measure, layer, site)
        mark = Mark(theme.inert(theme.short(label)), colour, symbol)
        _curve(figure, rows, measure, mark, legend=len(tables) > 1)
    if difference:
        figure.add_hline(0, line={"color": GREY, "width": 1, "dash": "dash"})
    named = theme.label(measure, theme.WHILE_TRAINING)
    theme.name_steps(figure)
    figure.update_yaxes(title={"text": f"Δ {_small(named)}" if difference else named})
    where = theme.place(layer, site, style).partition(" (")[0]
    caption = " · ".join(part for part in (where, caption, f"Δ since step {start}" if difference else "") if part)
    theme.layout(figure, f"{theme.WHILE_TRAINING[measure][0]} by step", caption, style, height=380)
    return roomy(figure, len(tables))


def _curve(
    figure: go.Figure,
    metrics: pd.DataFrame,
    name: str,
    mark: Mark,
    row: int | None = None,
    *,
    legend: bool = False,
    faint: bool = False,
) -> None:
    """Draw a line through the steps that have a value, with markers if there are few."""
    known = metrics.dropna(subset=[name]).sort_values("step")
    place = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        x=known["step"].to_numpy(),
        y=known[name].to_numpy(dtype=float),
        mode="lines" if faint or len(known) > SPARSE else "lines+markers",
        name=mark.name,
        opacity=0.3 if faint else 1,
        line={"color": mark.colour, "width": 1 if faint else 2},
        marker={"symbol": mark.symbol, "size": 8 if mark.symbol == "star" else 5, "color": mark.colour},
        hovertemplate=None if faint else f"step %{{x}}<br>{mark.name} %{{y:.4g}}<extra></extra>",
        hoverinfo="skip" if faint else None,
        legendgroup=mark.name,
        showlegend=legend,
        **place,
    )


def mark_switch(figure: go.Figure, metrics: pd.DataFrame, rows: int, colour: str = GREY, *, words: bool = True) -> None:
    """Draw a dotted line through all rows where a run begins to train another policy."""
    steps = metrics.sort_values("step")
    trained = steps[[name for name in ("phase", "target") if name in steps]]
    switches = steps.loc[(trained != trained.shift().bfill()).any(axis=1), "step"] - 0.5
    for at in switches:
        for row in range(1, rows + 1):
            place: Any = {"row": row, "col": 1}
            figure.add_vline(at, line={"color": colour, "width": 1.5, "dash": "dot"}, **place)
    phases = {"internal": "internal", "final": "whole"}
    ends = (("right", steps["phase"].iloc[0]), ("left", steps["phase"].iloc[-1]))
    if not words or len(switches) != 1 or ends[0][1] == ends[1][1]:  # on several switches the words would overlap
        return
    for side, phase in ends:
        figure.add_annotation(
            x=switches.iloc[0], y=1, yref="paper", xanchor=side, yanchor="bottom", text=phases[phase], showarrow=False,
            font={"size": 11},
        )  # fmt: skip
