"""Draw what ablating each layer, attention block and FFN does, with the entropy change of that layer below."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from internal_policy.look import layer_figures, legend, theme
from internal_policy.look.layer_figures import ROWS
from internal_policy.look.theme import Style
from internal_policy.look.view import About
from internal_policy.scans.effects import REPLACEMENTS

FLOOR = 1e-4
"""Nats at which a smaller KL is drawn, because the axis is logarithmic."""
TICKS = [10.0**power for power in range(-4, 4)]
TITLES = {"zero": "Skipped:<br>KL (nats)", "mean": "By its mean:<br>KL (nats)"}
"""Replacement -> the title of the axis of its effects."""


def ablation(
    effects: pd.DataFrame, changes: pd.DataFrame, rewards: pd.DataFrame | None, about: About, style: Style = "screen"
) -> go.Figure:
    """KL from the model to the model without each layer, attention block or FFN, and the entropy change of each.

    `effects` is `ablation.means`, `changes` is `statistics.changes`, and `rewards` is `ablation.rewards`, if rewards
    were measured.
    """
    kl = effects[effects["measure"] == "kl"]
    shown = [name for name in REPLACEMENTS if (kl["replacement"] == name).any()]
    panels = [(TITLES[name], kl[kl["replacement"] == name], "kl") for name in shown]
    if rewards is not None:
        how = next(name for name in REPLACEMENTS if (rewards["replacement"] == name).any())
        panels.append(("Change of<br>reward", rewards[rewards["replacement"] == how], "reward"))
    total = changes[(changes["part"] == "total") & changes["layer"].isin(kl["layer"])]
    panels.append(("Entropy<br>change (nats)", total.rename(columns={"change": "module"}), "change"))
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    named: set[str] = set()
    for number, (title, frame, measure) in enumerate(panels, start=1):
        if measure != "kl":
            layer_figures.zero(figure, row=number, col=1)
        for module in ROWS:
            rows = _placed(frame[frame["module"] == module], measure, style)
            theme.line(figure, rows, legend.CHANGES[module], row=number, col=1, legend=module not in named)
            named |= {module} if len(rows) else set()
        figure.update_yaxes(title={"text": title}, row=number)
        if measure == "kl":
            ticks = {"tickvals": TICKS, "ticktext": [f"{tick:g}" for tick in TICKS]}
            figure.update_yaxes(type="log", **ticks, row=number)
    layer_figures.by_layer(figure, style, bottom=len(panels))
    return theme.layout(figure, "Effect of ablation, and entropy change", about, style, height=160 + 165 * len(panels))


def _placed(frame: pd.DataFrame, measure: str, style: Style) -> pd.DataFrame:
    """The rows with where they are drawn and what hovering shows; KL is drawn at FLOOR or above."""
    rows = layer_figures.placed(frame.assign(change=frame["module"]), measure, style)
    if measure == "kl":
        rows[["mean", "low", "high"]] = rows[["mean", "low", "high"]].clip(lower=FLOOR)
    return rows
