"""Figures of tokens and of training steps."""

from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from internal_policy.errors import InputError
from internal_policy.look import theme
from internal_policy.look.statistics import CHANGES
from internal_policy.look.theme import GREY, Mark, Style
from internal_policy.look.view import About

WINDOW = 512
"""The most tokens that can be told apart side by side."""
SVG = 5000
"""The most markers that are drawn as shapes; more are drawn by WebGL."""
LOGARITHMIC = ("rank", "norm")
AROUND_ZERO = ("change", "change_direction", "change_norm", "cosine")
REWARD = Mark("reward", theme.BLUE, "diamond")
SPARSE = 40
"""The most values on a line that each has a mark."""
BESIDE = ("resid_post", "attn_out", "mlp_out", "final")
"""Sites that are drawn of the trained layer and of later ones."""
LATER = 6
"""The most later layers that lines can be told apart of."""


@dataclass(frozen=True)
class Scale:
    """From a measure's values to colours."""

    colours: str
    low: float
    high: float
    logarithmic: bool = False

    def of(self, values: np.ndarray) -> np.ndarray:
        """What is coloured: the values, or their logarithms to the base 10."""
        return np.log10(np.maximum(values, 1e-12)) if self.logarithmic else values

    def bar(self, title: str) -> dict[str, Any]:
        """The colour bar; under a logarithm it says the values themselves."""
        found: dict[str, Any] = {"title": {"text": title, "side": "right"}, "thickness": 14, "outlinewidth": 0}
        if self.logarithmic:
            steps = np.arange(np.ceil(self.low), np.floor(self.high) + 1)
            found |= {
                "tickvals": steps.tolist(),
                "ticktext": [f"{10.0**step:,.0f}" if step >= 0 else f"{10.0**step:g}" for step in steps],
            }
        return found


def scale(measure: str, values: np.ndarray, d_vocab: int | None = None) -> Scale:
    """The colours of a measure: Cividis from 0 to ln V for entropy, blue to red around 0 for what has a sign."""
    seen = values[np.isfinite(values)]
    seen = seen if len(seen) else np.zeros(1)
    if measure in AROUND_ZERO:
        most = float(np.abs(seen).max()) or 1.0
        return Scale("RdBu_r", -most, most)
    if measure in LOGARITHMIC:
        positive = np.log10(seen[seen > 0]) if (seen > 0).any() else np.zeros(1)
        return Scale("Viridis", float(positive.min()), max(float(positive.max()), float(positive.min()) + 1), True)
    if measure == "logprob":
        return Scale("Viridis", min(float(seen.min()), -1e-3), 0.0)
    if measure.startswith("entropy"):
        return Scale("Cividis", 0.0, log(d_vocab) if d_vocab else float(seen.max()) or 1.0)
    return Scale("Viridis", 0.0, float(seen.max()) or 1.0)


def tokens(
    cells: pd.DataFrame, response: pd.DataFrame, about: About, site: str, measure: str, style: Style = "screen"
) -> go.Figure:
    """A measure at every layer and token of a response.

    `cells` is layer, position, value, `response` is position, token; the row after the last layer is the model's own
    policy. Every cell has a marker that nobody sees, with customdata [layer, position], because plotly reports clicks
    on markers alone. Raises ValueError for more than 512 tokens: show a window of them.
    """
    if len(response) > WINDOW:
        raise ValueError(
            f"{len(response)} tokens are too many to be told apart, at most {WINDOW}; show a window of them."
        )
    grid = cells.pivot(index="layer", columns="position", values="value")
    grid = grid.reindex(index=range(int(grid.index.min()), int(grid.index.max()) + 1), columns=response["position"])
    values = grid.to_numpy(dtype=np.float32)
    colours = scale(measure, values, about.d_vocab)
    figure = go.Figure(_heat(grid, colours, theme.label(measure)))
    figure.add_trace(_markers(grid, response, about.n_layers, site, measure))
    _rows(figure, grid.index, about.n_layers)
    room = 50 if style == "screen" else 40
    every = -(-len(response) // room)
    ticks = response.iloc[::every]
    figure.update_xaxes(
        tickvals=ticks["position"].tolist(),
        ticktext=[theme.glyphs(token, 12) for token in ticks["token"]],
        tickangle=-90,
        title={"text": "Token" if every == 1 else f"Token (one in {every} is named)"},
        range=[response["position"].iloc[0] - 0.5, response["position"].iloc[-1] + 0.5],
    )
    title = f"{theme.MEASURES[measure][0]} by layer and token: {theme.SITES[site].name}"
    height = 220 + int(np.clip(22 * len(grid), 120 if style == "screen" else 260, 720))
    one = replace(about, rollouts=1, tokens=len(response))
    theme.layout(figure, title, one, style, height=height, wide=True)
    return figure.update_layout(hoverdistance=-1)  # each pixel belongs to the nearest cell


def _heat(grid: pd.DataFrame, colours: Scale, title: str, **bar: Any) -> go.Heatmap:
    return go.Heatmap(
        z=colours.of(grid.to_numpy(dtype=np.float32)),
        x=grid.columns.to_numpy(),
        y=grid.index.to_numpy() + 1,
        colorscale=colours.colours,
        zmin=colours.low,
        zmax=colours.high,
        colorbar={**colours.bar(title), **bar},
        hoverinfo="skip",
        hoverongaps=False,
    )


def _markers(
    grid: pd.DataFrame, response: pd.DataFrame, n_layers: int, site: str, measure: str
) -> go.Scatter | go.Scattergl:
    """A marker on each cell that has a value."""
    shown = grid.reset_index().melt("layer", value_name="value").dropna(subset="value")
    names = {at: theme.glyphs(token, 100) for at, token in zip(response["position"], response["token"], strict=True)}
    unit = theme.MEASURES[measure][1]
    layers = [int(layer) for layer in shown["layer"]]
    points = {
        layer: "the model · final" if layer == n_layers else f"layer {layer + 1} · {layer}.{site}" for layer in layers
    }
    kind = go.Scatter if len(shown) <= SVG else go.Scattergl
    values = [float(f"{value:.5g}") for value in shown["value"].tolist()]
    told = zip(layers, shown["position"].tolist(), map(points.get, layers), values, strict=True)
    return kind(
        x=shown["position"].to_numpy(),
        y=(shown["layer"] + 1).to_numpy(),
        mode="markers",
        marker={"size": 10, "color": "white", "opacity": 0, "line": {"color": "black", "width": 2}},
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 0}},
        customdata=np.array(list(told), dtype=object),  # lists would be looked through one by one
        text=shown["position"].map(names).to_numpy(dtype=object),
        hovertemplate="%{customdata[2]}<br>position %{customdata[1]}: %{text}<br>%{customdata[3]} "
        + unit
        + "<extra></extra>",
        showlegend=False,
    )


def _rows(figure: go.Figure, layers: pd.Index, n_layers: int, **place: Any) -> None:
    """The axis of layers, upwards, counted from 1; the row after the last is the model."""
    first, last = int(layers.min()) + 1, int(layers.max()) + 1
    model = last > n_layers
    ticks = theme.ticks(first, last - model, 16)
    near = [tick for tick in ticks if not model or last - tick > (last - first) / 25]
    figure.update_yaxes(
        tickvals=[*near, *([last] if model else [])],
        ticktext=[*map(str, near), *(["model"] if model else [])],
        title={"text": "Layer"},
        range=[first - 0.5, last + 0.5],
        showgrid=False,
        **place,
    )
    figure.update_xaxes(showgrid=False, **place)


def predictions(frame: pd.DataFrame, about: About, layer: int, position: int, style: Style = "screen") -> go.Figure:
    """The likeliest tokens at one position of the policies of one layer, a column a site.

    `frame` is site, rank, token, probability, before. Behind the probability stands how many ranks a token rose (▲) or
    fell (▼) since the layer's input, or that it was not among the likeliest there (new).
    """
    columns = [(site, rows.sort_values("rank")) for site, rows in frame.groupby("site", sort=False)]
    most = max(len(rows) for _, rows in columns)
    heads, cells = [""], [[f"{rank}" for rank in range(1, most + 1)]]
    for site, rows in columns:
        point = "final" if site == "final" else f"{layer}.{site}"
        heads.append(f"{theme.SITES[str(site)].name}<br>{point}")
        moved = (
            [""] * len(rows)
            if site in ("resid_pre", "final")
            else [_moved(r, b) for r, b in zip(rows["rank"], rows["before"], strict=True)]
        )
        said = zip(rows["token"], rows["probability"], moved, strict=True)
        cells.append([f"{theme.glyphs(token, 16)}  {_percent(share)}  {move}".rstrip() for token, share, move in said])
    clear = {"color": "rgba(0,0,0,0)"} if style == "screen" else {"color": "white"}
    common = {"fill": clear, "line": {"color": theme.FAINT if style == "screen" else GREY, "width": 1}, "align": "left"}
    tall = 25 if style == "screen" else 22
    table = go.Table(
        header={"values": heads, "height": 2 * tall - 8, **common},
        cells={"values": cells, "height": tall, **common},
        columnwidth=[0.25, *[1] * len(columns)],
    )
    where = "the model" if layer == about.n_layers else f"layer {layer + 1}"
    margins = 84 if style == "screen" else 16
    room = tall * 3 + (tall + 7) * most  # plotly makes a row taller that holds an entity, such as that of <
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


def dynamics(
    frame: pd.DataFrame,
    metrics: pd.DataFrame | None,
    caption: str,
    measure: str,
    site: str,
    style: Style = "screen",
) -> go.Figure:
    """A measure by layer and training step, with the step from which the whole policy was trained; reward below.

    `frame` is step, layer, site and a column of that measure (Figs. 5 and 7), as of `runs.dynamics`. Above the layers'
    outputs stands the model itself, where it has that measure; its norm, after the last one, is of another space.
    """
    n_layers = int(frame.loc[frame["site"] != "final", "layer"].max()) + 1
    model = site == "resid_post" and measure != "norm"
    chosen = frame[((frame["site"] == site) | (model & (frame["site"] == "final"))) & frame[measure].notna()]
    grid = chosen.pivot(index="layer", columns="step", values=measure)
    grid = grid.reindex(index=range(int(grid.index.min()), int(grid.index.max()) + 1))
    rows = 1 if metrics is None else 2
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.7, 0.3][:rows])
    colours = scale(measure, grid.to_numpy(dtype=np.float32))
    text, unit = theme.WHILE_TRAINING[measure]
    named = theme.label(measure, theme.WHILE_TRAINING)
    heat = _heat(grid, colours, named, **({"len": 0.7, "y": 1, "yanchor": "top"} if rows == 2 else {}))
    points = ["the model · final" if at == n_layers else f"layer {at + 1} · {at}.{site}" for at in grid.index]
    heat.update(
        text=[[point] * grid.shape[1] for point in points],
        customdata=grid.to_numpy(dtype=np.float32),
        hovertemplate=f"%{{text}}<br>step %{{x}}<br>%{{customdata:.4g}} {unit}<extra></extra>",
        hoverinfo=None,
    )
    figure.add_trace(heat, row=1, col=1)
    _rows(figure, grid.index, n_layers, row=1)
    if metrics is not None:
        _curve(figure, metrics, "reward", REWARD, row=2)
        figure.update_yaxes(title={"text": "Reward"}, row=2)
        _switch(figure, metrics, rows)
    figure.update_xaxes(title={"text": "Step"}, row=rows)
    title = f"{text} while training: {theme.SITES[site].name}"
    theme.layout(figure, title, caption, style, height=560 if rows == 2 else 420, wide=True, above=16)
    return figure.update_layout(showlegend=False)


def trained(
    frame: pd.DataFrame, metrics: pd.DataFrame, layer: int, caption: str = "", style: Style = "screen"
) -> go.Figure:
    """What becomes of the layer that is trained first: its likeness to later layers, and its entropy change (Fig. 5).

    `frame` is that of `runs.dynamics`. From above: the cosine of its hidden state with theirs, KL(its policy || theirs)
    and the entropy change of the layer, its attention and its FFN. Of many later layers 6 are drawn, from the next one
    to the last. What was not measured is left out. Raises InputError if nothing was.
    """
    later = sorted({int(at) for at in frame.loc[frame["site"] == "resid_post", "layer"] if at > layer})
    drawn = sorted({later[round(n)] for n in np.linspace(0, len(later) - 1, LATER)}) if later else []
    colours = sample_colorscale("Viridis", np.linspace(0.35, 0.8, max(len(drawn), 2)).tolist())
    after = {
        (at, "resid_post"): Mark(f"layer {at + 1}", str(colour), "circle")
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
        raise InputError(f"Layer {layer + 1} has neither entropy changes nor is it compared with later ones here.")
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
    figure.update_xaxes(title={"text": "Step"}, row=len(panels))
    title = f"Layer {layer + 1} beside later layers, and its entropy change"
    return theme.layout(figure, title, caption, style, height=130 + 160 * len(panels), above=16)


def _at(frame: pd.DataFrame, measure: str, layer: int, site: str) -> pd.DataFrame:
    """Where a measure is known of a hook point."""
    if measure not in frame:
        return frame[:0]
    return frame[(frame["layer"] == layer) & (frame["site"] == site) & frame[measure].notna()]


def training(metrics: pd.DataFrame, caption: str = "", style: Style = "screen") -> go.Figure:
    """Entropy, clip fraction, reward and perplexity by training step, with the step where the policy was switched."""
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
        figure.update_yaxes(title={"text": title}, row=number)
    _switch(figure, metrics, len(panels))
    figure.update_xaxes(title={"text": "Step"}, row=len(panels))
    return theme.layout(figure, "Training", caption, style, height=130 + 140 * len(panels), above=16)


def _curve(figure: go.Figure, metrics: pd.DataFrame, name: str, mark: Mark, row: int, *, legend: bool = False) -> None:
    """A line through the steps at which there is a value, with marks where they are few."""
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
    """A dotted line through all rows where training went from the internal to the whole policy."""
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


def _percent(share: float) -> str:
    """A probability in percent; a tiny one is no more than that."""
    return f"{100 * share:.3g}%" if share >= 1e-5 else "~0%"
