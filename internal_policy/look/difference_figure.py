"""Draw the differences between two scans of the same tokens, layer by layer."""

import pandas as pd
import plotly.graph_objects as go

from internal_policy.look import layer_figures, legend, theme, view
from internal_policy.look.theme import Style
from internal_policy.look.view import About


def difference(
    differences: pd.DataFrame, about: tuple[About, About], measure: str = "entropy", style: Style = "screen"
) -> go.Figure:
    """How much a measure of scan B exceeds that of A at attention, FFN and layer output, by layer.

    `differences` is `differences.by_layer` of A and B, which `about` describes.
    """
    figure = go.Figure()
    layer_figures.zero(figure)
    rows = layer_figures.placed(differences.rename(columns={"difference": "mean"}), measure, style)
    theme.line(figure, layer_figures.stream(rows), legend.SITES["resid_post"])
    for site in ("attn_out", "mlp_out", "final"):
        theme.line(figure, rows[rows["site"] == site], legend.SITES[site])
    layer_figures.by_layer(figure, style)
    if "final" in {*rows["site"]}:
        layer_figures.ends(figure, about[0].n_layers, style)
    figure.update_yaxes(title={"text": f"B - A: {theme.label(measure)}"})
    a, b = (one.label or one.model for one in about)
    caption = f"A: {a} · B: {b} · {view.how(about[0].readout)} · {theme.n(about[0])} in A · 95% intervals over rollouts"
    return theme.layout(figure, f"{theme.MEASURES[measure][0]}: B minus A by layer", caption, style)
