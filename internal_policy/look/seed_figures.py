"""The figure of two training methods over seeds."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from internal_policy.look import seeds as seed_tables
from internal_policy.look import theme
from internal_policy.look.legend import GREY, Mark
from internal_policy.look.theme import Style
from internal_policy.look.training_figures import RUNS, averaged


def seeds(
    curves: pd.DataFrame, difference: pd.DataFrame, caption: str = "", style: Style = "screen", *, window: int = 1
) -> go.Figure:
    """Reward of a method and of GRPO, and their difference with the same seed below, with 95% intervals over seeds.

    The frames are those of `seeds.compared`.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    names = {method: theme.inert(seed_tables.title(method)) for method in curves["method"].unique()}
    for number, (method, name) in enumerate(names.items()):
        rows = curves[curves["method"] == method]
        theme.line(figure, _hovered(rows, name), Mark(name, *RUNS[number]), x="step", row=1, col=1)
    minus, both = " − ".join(names.values()), " and ".join(names.values())
    rows = _hovered(difference, minus, "+")
    theme.line(figure, rows, Mark(minus, theme.PURPLE, "star"), x="step", legend=False, row=2, col=1)
    figure.update_traces(mode="lines", selector={"mode": "lines+markers"})
    place: Any = {"row": 2, "col": 1}
    figure.add_hline(0, line={"color": GREY, "width": 1, "dash": "dash"}, **place)
    figure.update_yaxes(title={"text": "Reward"}, row=1).update_yaxes(title={"text": "Difference"}, row=2)
    figure.update_xaxes(title={"text": "Step"}, row=2)
    n = int(difference["seeds"].iloc[0])
    caption = f"{caption} · {n} seeds, bands 95%"
    return theme.layout(figure, f"{both} over seeds", averaged(caption, window), style, height=480)


def _hovered(rows: pd.DataFrame, name: str, sign: str = "") -> pd.DataFrame:
    """Rows for `theme.line`, each with its step, mean and interval in words."""
    values = zip(rows["step"], rows["mean"], rows["low"], rows["high"], strict=True)
    said = [f"{name}<br>step {s}: {m:{sign}.3f} ({lo:{sign}.3f} to {hi:{sign}.3f})" for s, m, lo, hi in values]
    return rows.assign(at=rows["step"], hover=said)
