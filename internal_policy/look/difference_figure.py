"""Draw the differences between two scans of the same tokens, layer by layer."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from internal_policy.look import differences, layer_figures, legend, theme, view
from internal_policy.look.theme import Style
from internal_policy.look.view import About


def difference(
    found: pd.DataFrame, about: tuple[About, About], measure: str = "entropy", style: Style = "screen"
) -> go.Figure:
    """How much a measure of scan B exceeds that of A at attention, FFN and layer output, by layer.

    `found` is `differences.by_layer` of A and B, which `about` describes. A filled marker is a difference that holds
    with 95% confidence for all layers of its site at once.
    """
    figure = go.Figure()
    layer_figures.zero(figure)
    symbols = found["site"].map({site: mark.symbol.removesuffix("-open") for site, mark in legend.SITES.items()})
    rows = found.assign(symbol=symbols.where(differences.is_significant(found), symbols + "-open"))
    rows = layer_figures.placed(rows.rename(columns={"difference": "mean"}), measure, style)
    if measure == "change":
        rows["hover"] = rows["hover"].str.replace(legend.SITES["resid_post"].name, legend.CHANGES["layer"].name)
    marks = legend.SITES if measure != "change" else {**legend.SITES, "resid_post": legend.CHANGES["layer"]}
    outputs = layer_figures.stream(rows) if measure != "change" else rows[rows["site"] == "resid_post"]
    theme.line(figure, outputs, marks["resid_post"])
    for site in ("attn_out", "mlp_out", "final"):
        theme.line(figure, rows[rows["site"] == site], marks[site])
    layer_figures.by_layer(figure, style)
    if "final" in {*rows["site"]}:
        layer_figures.ends(figure, about[0].n_layers, style)
    figure.update_yaxes(title={"text": f"B - A: {theme.label(measure)}"})
    a, b = (one.label or one.model for one in about)
    parts = [f"A: {a}", f"B: {b}", f"{theme.n(about[0])} in A", "95% intervals over rollouts"]
    if about[0].readout == about[1].readout:
        parts.insert(2, view.how(about[0].readout))
    if np.isfinite(found["low_all"]).any():
        parts.append("filled if significant for all layers at once")
    return theme.layout(figure, f"{theme.MEASURES[measure][0]}: B minus A by layer", " · ".join(parts), style)
