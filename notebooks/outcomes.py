"""Figures of the results of training runs, from the frames of `experiments`."""

from collections.abc import Mapping

import experiments
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from experiments import GROUP
from plotly.subplots import make_subplots

from internal_policy.look import theme
from internal_policy.look.legend import GREY, Mark
from internal_policy.look.theme import Style

METHODS = {
    "grpo": (theme.BLUE, "diamond"),
    "bupo": (theme.ORANGE, "square"),
    "bupo-norm": ("#E69F00", "x"),
    "rloo": (theme.PURPLE, "triangle-up"),
    "frozen": ("#009E73", "triangle-down"),
    "single": (GREY, "circle"),
    "grpo-matched": (theme.BLUE, "diamond-open"),
}
"""Method -> its colour and symbol."""
LAYERS = (("#F0A57A", "triangle-up"), (theme.ORANGE, "square"), ("#7A3500", "pentagon"))
"""Colour and symbol of BuPO's lines by trained layer, from the lowest that is drawn."""
AXES = ("predicted", "gain")
"""Columns of `experiments.predicted` that are drawn."""


def reached(
    table: pd.DataFrame, ends: pd.DataFrame, untrained: Mapping[str, float], style: Style = "screen"
) -> go.Figure:
    """Avg@K at the end of training: one row per group, with its mean, its 95% interval over seeds and a dot per seed.

    The frames are those of `experiments`. The dotted line is the model before training.
    """
    models = list(dict.fromkeys(table["model"]))
    sizes = [int((table["model"] == model).sum()) for model in models]
    figure = make_subplots(
        rows=len(models),
        cols=1,
        shared_xaxes=True,
        row_heights=sizes,
        vertical_spacing=0.24 / sum(sizes) if len(models) > 1 else 0,
    )
    for number, model in enumerate(models, start=1):
        rows = table[table["model"] == model].iloc[::-1]
        named = [experiments.label({str(k): v for k, v in row.items()}, style) for row in rows.to_dict("records")]
        for place, (row, name) in enumerate(zip(rows.to_dict("records"), named, strict=True)):
            group = {str(key): value for key, value in row.items()}
            seeds = ends[(ends[GROUP] == [group[key] for key in GROUP]).all(axis=1)]
            _group(figure, group, seeds, place, name, number)
        figure.add_vline(
            100 * untrained[model],
            line={"color": GREY, "width": 1.5, "dash": "dot"},
            row=number,  # pyright: ignore[reportArgumentType]
            col=1,  # pyright: ignore[reportArgumentType]
        )
        ticks = [f"{name} ({n})" for name, n in zip(named, rows["seeds"], strict=True)]
        figure.update_yaxes(
            tickvals=[*range(len(named))],
            ticktext=[theme.inert(tick) for tick in ticks],
            range=[-0.6, len(named) - 0.4],
            showgrid=False,
            title={"text": theme.inert(theme.short(model))},
            row=number,
        )
    figure.update_traces(showlegend=False)
    low, high = _room(table, ends, untrained)
    figure.update_xaxes(range=[low, high])
    figure.update_xaxes(title={"text": f"Avg@{_only(ends['samples'])} in the exam (%)"}, row=len(models))
    said = f"{_only(ends['problems'])} problems, seeds in brackets · 95% intervals over seeds · dotted: before training"
    height = 150 + 34 * sum(sizes) + 20 * len(models)
    return theme.layout(figure, "Results after training", said, style, height=height, wide=True)


def _room(table: pd.DataFrame, ends: pd.DataFrame, untrained: Mapping[str, float]) -> tuple[float, float]:
    """The lowest and highest value in percent, with a margin."""
    before = [untrained[model] for model in set(table["model"])]
    values = 100 * np.concatenate([table[["avg", "avg_low", "avg_high"]].to_numpy().ravel(), ends["avg"], before])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return low - 0.04 * (high - low) - 0.1, high + 0.04 * (high - low) + 0.1


def _group(
    figure: go.Figure, group: Mapping[str, float | str], seeds: pd.DataFrame, place: int, name: str, number: int
) -> None:
    colour, symbol = METHODS[str(group["method"])]
    mean, low, high = (100 * float(group[key]) for key in ("avg", "avg_low", "avg_high"))
    figure.add_scatter(
        x=100 * seeds["avg"].to_numpy(),
        y=place + np.linspace(-0.22, 0.22, len(seeds)) if len(seeds) > 1 else np.array([float(place)]),
        mode="markers",
        marker={"symbol": "circle-open", "size": 6, "color": GREY},
        hovertext=[f"{name}<br>seed {seed}: {100 * avg:.2f}%" for seed, avg in seeds[["seed", "avg"]].to_numpy()],
        hoverinfo="text",
        row=number,
        col=1,
    )
    said = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
    figure.add_scatter(
        x=np.array([mean]),
        y=np.array([place]),
        error_x={
            "array": [0 if np.isnan(high) else high - mean],
            "arrayminus": [0 if np.isnan(low) else mean - low],
            "color": colour,
            "thickness": 2,
            "width": 0,
        },
        mode="markers",
        name=name,
        marker={"symbol": symbol, "size": 10, "color": colour},
        hovertext=[f"{name}<br>mean {mean:.2f}%{said}"],
        hoverinfo="text",
        row=number,
        col=1,
    )


def grid(table: pd.DataFrame, caption: str = "", style: Style = "screen", baseline: str = "grpo") -> go.Figure:
    """Mean Avg@K of BuPO by target layer and internal steps, coloured by its difference from `baseline` per seed.

    `table` is `experiments.grid` of `experiments.table` for one model.
    """
    cells = table.set_index(["layer", "internal_steps"]).sort_index()
    difference = 100 * cells["difference"].unstack()
    texts = cells.apply(_cell, axis=1).unstack(fill_value="")
    most = float(np.nanmax(np.abs(difference.to_numpy()))) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=difference.to_numpy(dtype=np.float32),
            x=[*range(difference.shape[1])],
            y=[*range(difference.shape[0])],
            text=texts.to_numpy(),
            texttemplate="%{text}",
            colorscale="RdBu_r",
            zmin=-most,
            zmax=most,
            xgap=2,
            ygap=2,
            hoverinfo="skip",
            colorbar={"title": {"text": "difference (points)", "side": "right"}, "thickness": 14, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(
        tickvals=[*range(difference.shape[1])],
        ticktext=[str(steps) for steps in difference.columns],
        title={"text": "Internal steps"},
        showgrid=False,
    )
    figure.update_yaxes(
        tickvals=[*range(difference.shape[0])],
        ticktext=[str(layer + theme.first_layer(style)) for layer in difference.index],
        title={"text": f"Trained {theme.layer_title(style).lower()}"},
        showgrid=False,
    )
    n = _only(table["seeds"])
    about = " · ".join(
        part
        for part in (
            caption,
            f"mean over {n} seeds",
            f"below: difference from {experiments.METHODS[baseline]} with 95% interval",
        )
        if part
    )
    return theme.layout(figure, "Avg@K by trained layer and internal steps", about, style, height=420, wide=True)


def _cell(row: pd.Series) -> str:
    """Avg@K in percent, with the difference in points and its interval below."""
    mean, difference, low, high = 100 * row[["avg", "difference", "difference_low", "difference_high"]]
    interval = "" if np.isnan(low) else f" ({low:+.1f} to {high:+.1f})"
    return f"{mean:.1f}%<br>{difference:+.1f}{interval}"


def curves(frame: pd.DataFrame, by: str = "step", caption: str = "", style: Style = "screen") -> go.Figure:
    """Avg@K by training step, or by operations (`by` is flops), a line per group: rows of `experiments.curves`.

    Two or three groups are drawn with their intervals over seeds. The intervals of more would overlap.
    """
    figure = go.Figure()
    bands = len(frame[GROUP].drop_duplicates()) < 4
    frame = frame if bands else frame.assign(low=np.nan, high=np.nan)
    layers = sorted(set(frame.loc[frame["method"].isin(experiments.INTERNAL), "layer"]))
    for _, rows in frame.groupby(GROUP, sort=False):
        group = {str(column): value for column, value in rows[GROUP].iloc[0].items()}
        name = experiments.label(group, style)
        hover = [
            f"{theme.inert(name)}<br>step {step}: {100 * mean:.1f}%"
            for step, mean in zip(rows["step"], rows["mean"], strict=True)
        ]
        percent = 100 * rows[["mean", "low", "high"]]
        internal = group["method"] in experiments.INTERNAL and len(layers) > 1
        drawn_as = LAYERS[layers.index(group["layer"]) % len(LAYERS)] if internal else METHODS[group["method"]]
        mark = Mark(name, *drawn_as)
        drawn = percent.assign(at=rows["step"], spent=rows["flops"] / 1e12, hover=hover)
        theme.line(figure, drawn, mark, x="at" if by == "step" else "spent")
    figure.update_xaxes(title={"text": "Step" if by == "step" else "Operations so far (TFLOP)"})
    figure.update_yaxes(title={"text": "Avg@K in the exam (%)"})
    n = _only(frame["seeds"])
    over = f"mean over {n} seeds" + (", bands 95% over seeds" if bands else "")
    about = " · ".join(part for part in (caption, over) if part)
    return theme.layout(figure, "Exams during training", about, style)


def predicted(frame: pd.DataFrame, style: Style = "screen") -> go.Figure:
    """The gain of each first phase by what alignment predicts, with 95% intervals: `experiments.predicted`."""
    figure, shortest = go.Figure(), frame["internal_steps"].min()
    for (model, method), rows in frame.groupby(["model", "method"], sort=False):
        colour, symbol = METHODS[str(method)]
        ends = {name: (rows[f"{name}_high"] - rows[name], rows[name] - rows[f"{name}_low"]) for name in AXES}
        bars = {
            name: {"array": high.fillna(0), "arrayminus": low.fillna(0), "color": colour, "thickness": 1, "width": 0}
            for name, (high, low) in ends.items()
        }
        first = theme.first_layer(style)
        figure.add_scatter(
            x=rows["predicted"].to_numpy(),
            y=rows["gain"].to_numpy(),
            error_x=bars["predicted"],
            error_y=bars["gain"],
            mode="markers+text",
            name=theme.inert(f"{theme.short(str(model))}, {experiments.METHODS[str(method)]}"),
            text=[
                f"{layer + first}" + (f" ({steps} steps)" if steps > shortest else "")
                for layer, steps in zip(rows["layer"], rows["internal_steps"], strict=True)
            ],
            textposition="top right",
            marker={"symbol": symbol if model == frame["model"].iloc[0] else f"{symbol}-open", "color": colour},
        )
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line={"color": GREY, "width": 1.5, "dash": "dot"})
    figure.update_xaxes(title={"text": "Gain predicted by alignment (share of GRPO's)"})
    low, high = min(0, frame["gain"].min()), max(1, frame["gain"].max())
    room = 0.3 * (high - low)
    figure.update_yaxes(title={"text": "Gain of the first phase (share of GRPO's)"}, range=[low - room, high + room])
    about = (
        f"each point is a first phase of {shortest} steps, named by its layer · dotted: as predicted · 95% intervals, "
        "cut where they are longer than the figure"
    )
    return theme.layout(figure, "Does alignment predict the gain?", about, style, height=460)


def _only(values: pd.Series) -> str:
    """The common value, or the smallest and largest."""
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
