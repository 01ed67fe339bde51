"""Figures of a training run, by step and by k."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from internal_policy.errors import InputError
from internal_policy.look import heatmap, theme
from internal_policy.look.theme import GREY, Mark, Style
from internal_policy.measure.sites import CHANGES

REWARD = Mark("reward", theme.BLUE, "diamond")
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
) -> go.Figure:
    """A measure by layer and training step, with the step where the whole policy took over, and the reward below.

    `frame` has step, layer, site and the measure (Figs. 5 and 7), like `runs.dynamics`. The top row is `final`, if it
    has the measure. The norm of `final` is left out, because it is taken after the last norm.
    """
    n_layers = int(frame.loc[frame["site"] != "final", "layer"].max()) + 1
    model = site == "resid_post" and measure != "norm"
    chosen = frame[((frame["site"] == site) | (model & (frame["site"] == "final"))) & frame[measure].notna()]
    grid = chosen.pivot(index="layer", columns="step", values=measure)
    grid = grid.reindex(index=range(int(grid.index.min()), int(grid.index.max()) + 1))
    rows = 1 if metrics is None else 2
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.7, 0.3][:rows])
    colours = heatmap.scale(measure, grid.to_numpy(dtype=np.float32))
    text, unit = theme.WHILE_TRAINING[measure]
    named = theme.label(measure, theme.WHILE_TRAINING)
    heat = heatmap.draw(grid, colours, named, style, **({"len": 0.7, "y": 1, "yanchor": "top"} if rows == 2 else {}))
    points = [theme.place(at, "final" if at == n_layers else site, style) for at in grid.index]
    heat.update(
        text=[[point] * grid.shape[1] for point in points],
        customdata=grid.to_numpy(dtype=np.float32),
        hovertemplate=f"%{{text}}<br>step %{{x}}<br>%{{customdata:.4g}} {unit}<extra></extra>",
        hoverinfo=None,
    )
    figure.add_trace(heat, row=1, col=1)
    heatmap.layer_axis(figure, grid.index, n_layers, style, row=1)
    if metrics is not None:
        _curve(figure, metrics, "reward", REWARD, row=2)
        figure.update_yaxes(title={"text": "Reward"}, row=2)
        _switch(figure, metrics, rows)
    figure.update_xaxes(title={"text": "Step"}, row=rows)
    caption = " · ".join(part for part in (theme.SITES[site].name, caption) if part)
    theme.layout(figure, f"{text} by step", caption, style, height=560 if rows == 2 else 420, wide=True, above=16)
    return figure.update_layout(showlegend=False)


def trained(
    frame: pd.DataFrame, metrics: pd.DataFrame, layer: int, caption: str = "", style: Style = "screen"
) -> go.Figure:
    """The layer trained first: its similarity to later layers, and its entropy change (Fig. 5).

    `frame` is that of `runs.dynamics`. From top to bottom: the cosine of its hidden state with theirs, KL(its policy ||
    theirs), and the entropy change of the layer, its attention and its FFN. At most 6 later layers are drawn, from the
    next one to the last. What was not measured is left out. Raises InputError if nothing was.
    """
    offset = theme.first_layer(style)
    later = sorted({int(at) for at in frame.loc[frame["site"] == "resid_post", "layer"] if at > layer})
    drawn = sorted({later[round(n)] for n in np.linspace(0, len(later) - 1, LATER)}) if later else []
    colours = sample_colorscale("Viridis", np.linspace(0.35, 0.8, max(len(drawn), 2)).tolist())
    after = {
        (at, "resid_post"): Mark(f"layer {at + offset}", str(colour), "circle")
        for at, colour in zip(drawn, colours, strict=False)
    }
    after |= {(int(at), "final"): theme.SITES["final"] for at in frame.loc[frame["site"] == "final", "layer"]}
    changes = {(layer, site): theme.CHANGES[change] for change, (_, site) in CHANGES.items()}
    wanted = (("Cosine", "cosine", after), ("KL (nats)", "kl", after), ("Δ entropy (nats)", "change", changes))
    panels = [
        (title, measure, {mark: rows for key, mark in marks.items() if len(rows := _at(frame, measure, *key))})
        for title, measure, marks in wanted
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
        if measure == "change":
            place: Any = {"row": number, "col": 1}
            figure.add_hline(0, line={"color": GREY, "width": 1, "dash": "dash"}, **place)
        figure.update_yaxes(title={"text": title}, rangemode="tozero" if measure == "kl" else "normal", row=number)
    _switch(figure, metrics, len(panels))
    figure.update_xaxes(title={"text": f"Step (layers from {offset})" if offset else "Step"}, row=len(panels))
    title = f"Layer {layer + offset} compared with later layers"
    return theme.layout(figure, title, caption, style, height=130 + 160 * len(panels), above=16)


def _at(frame: pd.DataFrame, measure: str, layer: int, site: str) -> pd.DataFrame:
    """The rows of a hook point that have the measure."""
    if measure not in frame:
        return frame[:0]
    return frame[(frame["layer"] == layer) & (frame["site"] == site) & frame[measure].notna()]


def training(metrics: pd.DataFrame, caption: str = "", style: Style = "screen") -> go.Figure:
    """Entropy, reward, clip fraction and perplexity by training step, with the switch to the whole policy."""
    wanted = (
        (
            "Entropy (nats)",
            {
                "entropy": ("whole policy", theme.PURPLE, "star"),
                "internal_entropy": ("internal policy", theme.ORANGE, "square"),
            },
        ),
        ("Reward", {"reward": (REWARD.name, REWARD.colour, REWARD.symbol)}),
        ("Clipped", {"clip_fraction": ("clip fraction", GREY, "circle")}),
        ("Perplexity", {"perplexity": ("perplexity", GREY, "circle")}),
    )
    panels = [
        (title, {name: line for name, line in lines.items() if name in metrics and metrics[name].notna().any()})
        for title, lines in wanted
    ]
    panels = [(title, lines) for title, lines in panels if lines]
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for number, (title, lines) in enumerate(panels, start=1):
        for name, (said, colour, symbol) in lines.items():
            _curve(figure, metrics, name, Mark(said, colour, symbol), row=number, legend=len(lines) > 1)
        mode = (
            "nonnegative" if "clip_fraction" in lines else "normal"
        )  # plotly would draw all zeros on an axis from -1 to 1
        figure.update_yaxes(title={"text": title}, rangemode=mode, row=number)
    _switch(figure, metrics, len(panels))
    figure.update_xaxes(title={"text": "Step"}, row=len(panels))
    return theme.layout(figure, "Training", caption, style, height=130 + 140 * len(panels), above=16)


def _curve(figure: go.Figure, metrics: pd.DataFrame, name: str, mark: Mark, row: int, *, legend: bool = False) -> None:
    """Draw a line through the steps that have a value, with markers if there are few."""
    known = metrics.dropna(subset=[name]).sort_values("step")
    figure.add_scatter(
        x=known["step"].to_numpy(),
        y=known[name].to_numpy(dtype=float),
        mode="lines+markers" if len(known) <= SPARSE else "lines",
        name=mark.name,
        line={"color": mark.colour, "width": 2},
        marker={"symbol": mark.symbol, "size": 8 if mark.symbol == "star" else 5, "color": mark.colour},
        hovertemplate=f"step %{{x}}<br>{mark.name} %{{y:.4g}}<extra></extra>",
        legendgroup=mark.name,
        showlegend=legend,
        row=row,
        col=1,
    )


def _switch(figure: go.Figure, metrics: pd.DataFrame, rows: int) -> None:
    """Draw a dotted line through all rows where the whole policy took over from the internal one."""
    internal, final = (metrics.loc[metrics["phase"] == phase, "step"] for phase in ("internal", "final"))
    if not len(internal) or not len(final):
        return
    at = (internal.max() + final.min()) / 2
    for row in range(1, rows + 1):
        place: Any = {"row": row, "col": 1}
        figure.add_vline(at, line={"color": GREY, "width": 1.5, "dash": "dot"}, **place)
    for text, side in (("internal", "right"), ("whole", "left")):
        figure.add_annotation(
            x=at, y=1, yref="paper", xanchor=side, yanchor="bottom", text=text, showarrow=False, font={"size": 11}
        )


def pass_at_k(curves: pd.DataFrame, caption: str = "", style: Style = "screen") -> go.Figure:
    """The share of problems with at least one correct response in k: label, k, mean, low, high (Fig. 6)."""
    figure = go.Figure()
    for number, (label, rows) in enumerate(curves.groupby("label", sort=False)):
        colour, symbol = theme.CURVES[number % len(theme.CURVES)]
        rows = rows.sort_values("k")
        said = [f"k = {k}: {mean:.1%}" for k, mean in zip(rows["k"], rows["mean"], strict=True)]
        rows = rows.assign(at=np.arange(len(rows)), hover=said)
        theme.line(figure, rows, Mark(theme.inert(theme.short(str(label))), colour, symbol), x="k")
    drawn = sorted({int(k) for k in curves["k"]})
    figure.update_xaxes(type="log", title={"text": "k"}, tickvals=drawn, ticktext=[str(k) for k in drawn])
    figure.update_yaxes(title={"text": "Pass@k"}, tickformat=".0%")
    return theme.layout(figure, "Pass@k", caption, style)
