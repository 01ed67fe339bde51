"""Heatmaps by layer: colours for each measure, and the axis of layers."""

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from internal_policy.look import theme
from internal_policy.look.theme import Style

LOGARITHMIC = ("rank", "norm")
AROUND_ZERO = ("change", "change_direction", "change_norm", "cosine")
CROWDED = 18
"""Rows above which the labels of the last two touch."""


@dataclass(frozen=True)
class Scale:
    """Maps the values of a measure to colours."""

    colours: str
    low: float
    high: float
    logarithmic: bool = False

    def of(self, values: np.ndarray) -> np.ndarray:
        """The coloured numbers: the values, or their base-10 logarithms."""
        return np.log10(np.maximum(values, 1e-12)) if self.logarithmic else values

    def bar(self, title: str) -> dict[str, Any]:
        """The colour bar. A logarithmic one is labelled with the values themselves."""
        found: dict[str, Any] = {"title": {"text": title, "side": "right"}, "thickness": 14, "outlinewidth": 0}
        if self.logarithmic:
            steps = np.arange(np.ceil(self.low), np.floor(self.high) + 1)
            found |= {
                "tickvals": steps.tolist(),
                "ticktext": [f"{10.0**step:,.0f}" if step >= 0 else f"{10.0**step:g}" for step in steps],
            }
        return found


def scale(measure: str, values: np.ndarray, d_vocab: int | None = None) -> Scale:
    """The colours of a measure: Cividis from 0 to ln V for entropy, blue to red around 0 for signed measures."""
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
    if measure.startswith(("entropy", "renyi")):
        return Scale("Cividis", 0.0, log(d_vocab) if d_vocab else float(seen.max()) or 1.0)
    return Scale("Viridis", 0.0, float(seen.max()) or 1.0)


def draw(grid: pd.DataFrame, colours: Scale, title: str, style: Style, **bar: Any) -> go.Heatmap:
    """A heatmap with one row per layer and one column per position or step. Empty cells stay clear."""
    return go.Heatmap(
        z=colours.of(grid.to_numpy(dtype=np.float32)),
        x=grid.columns.to_numpy(),
        y=grid.index.to_numpy() + theme.first_layer(style),
        colorscale=colours.colours,
        zmin=colours.low,
        zmax=colours.high,
        colorbar={**colours.bar(title), **bar},
        hoverinfo="skip",
        hoverongaps=False,
    )


def layer_axis(figure: go.Figure, layers: pd.Index, n_layers: int, style: Style, **place: Any) -> None:
    """The axis of layers, upwards; the row after the last layer is `final`."""
    first, last = (int(end) + theme.first_layer(style) for end in (layers.min(), layers.max()))
    final = layers.max() == n_layers
    ticks = theme.ticks(first, last - final, 16) if last - final >= first else []
    word = "final<br> " if len(layers) > CROWDED else "final"  # a line higher than the last layer's number
    figure.update_yaxes(
        tickvals=[*ticks, *([last] if final else [])],
        ticktext=[*map(str, ticks), *([word] if final else [])],
        title={"text": theme.layer_title(style)},
        range=[first - 0.5, last + 0.5],
        showgrid=False,
        **place,
    )
    figure.update_xaxes(showgrid=False, **place)
