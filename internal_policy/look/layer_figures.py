"""Figures by layer, drawn from the frames of `statistics`."""

from collections.abc import Sequence
from itertools import cycle, groupby
from math import log
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from internal_policy.errors import InputError
from internal_policy.look import headings, legend, theme, view
from internal_policy.look.findings import layers_in_words
from internal_policy.look.legend import GREY, Mark
from internal_policy.look.theme import Style
from internal_policy.look.view import About

ROWS = ("layer", "attn", "mlp")
HATCH = {"shape": "/", "size": 5, "solidity": 0.25, "fillmode": "overlay"}
GAP = 0.25
"""Share of the axis between bars."""
TOTAL = "#D6419A"
ABOVE: dict[str, Any] = {"y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
"""Where a note above the axes stands."""
ROOM = {"screen": 20, "paper": 9}
"""How many numbers there is room for on an axis of layers."""
CROWDED = 12
"""Layers above which the words at the ends of that axis are set below the numbers."""


def flow(means: pd.DataFrame, about: About, style: Style = "screen") -> go.Figure:
    """Entropy of attention, FFN and layer output by layer, and of the final policy (Fig. 2).

    `means` is `statistics.means` of the entropy. The embeddings come before the first layer, `final` after the last.
    """
    figure = go.Figure()
    rows = placed(means, "entropy", style)
    theme.maximum(figure, about)
    theme.line(figure, stream(rows), legend.SITES["resid_post"])
    for site in ("attn_out", "mlp_out"):
        theme.line(figure, rows[rows["site"] == site], legend.SITES[site])
    for site in ("attn_in", "mlp_in") if style == "screen" else ():
        theme.line(figure, rows[rows["site"] == site], legend.SITES[site], visible="legendonly", thin=True)
    theme.line(figure, rows[rows["site"] == "final"], legend.SITES["final"])
    by_layer(figure, style)
    ends(figure, about.n_layers, style)
    figure.update_yaxes(title={"text": theme.label("entropy")})
    return theme.layout(figure, "Entropy by layer", about, style)


def ends(figure: go.Figure, n_layers: int, style: Style) -> None:
    """Label the embeddings and `final` with words, because they aren't layers."""
    first = theme.first_layer(style)
    last = first + n_layers - 1
    numbers = theme.ticks(first, last, ROOM[style])
    below = "<br>" if n_layers > CROWDED else ""  # beside a number, a word would touch it
    embeddings = [first - 1] if figure.layout["xaxis"].range[0] < first - 1 else []
    texts = [*(f"{below}emb." for _ in embeddings), *map(str, numbers), f"{below}final"]
    figure.update_xaxes(tickvals=[*embeddings, *numbers, last + 1], ticktext=texts)


def change(
    changes: pd.DataFrame, about: About, spans: Sequence[tuple[str, int, int]] = (), style: Style = "screen"
) -> go.Figure:
    """Entropy change of layer, attention and FFN by layer, with the stages above (Fig. 3).

    `changes` is `statistics.changes` and `spans` is `targets.spans`; stages are drawn as E, I and C.
    """
    figure = go.Figure()
    rows = placed(changes[changes["part"] == "total"], "change", style)
    zero(figure)
    for kind in ROWS:
        theme.line(figure, rows[rows["change"] == kind], legend.CHANGES[kind])
    by_layer(figure, style)
    figure.update_yaxes(title={"text": theme.label("change")})
    _stages(figure, spans, len(set(rows["at"])), style)
    if spans and style == "screen":
        letters = dict.fromkeys(f"{stage[0].upper()}: {stage}" for stage, _, _ in spans)
        key = f'<span style="font-size:12px">{", ".join(letters)}</span>'  # as wide as a phone
        figure.update_xaxes(title={"text": f"{theme.layer_title(style)}<br>{key}"})
    return theme.layout(figure, "Entropy change by layer", about, style, above=18 if spans else 0)


def _stages(figure: go.Figure, spans: Sequence[tuple[str, int, int]], layers: int, style: Style) -> None:
    """Draw a letter above each stage that has room for one, and dotted lines between stages."""
    room = layers / (60 if style == "screen" else 25)
    offset = theme.first_layer(style)
    joined = [[*same] for _, same in groupby(spans, key=lambda span: span[0])]  # the layers between have no FFN
    for number, same in enumerate(joined):
        (stage, first, _), (_, _, last) = same[0], same[-1]
        if number:
            figure.add_vline(first + offset - 0.5, line={"color": GREY, "width": 1, "dash": "dot"})
        if last - first + 1 >= room:
            figure.add_annotation(
                x=(first + last) / 2 + offset,
                text=stage[0].upper(),
                hovertext=f"{stage}, {layers_in_words([n + offset for _, a, b in same for n in range(a, b + 1)])}",
                **ABOVE,
            )


def norm_control(changes: pd.DataFrame, about: About, style: Style = "screen") -> go.Figure:
    """Each entropy change, split into what is due to the direction and what to the norm of the hidden state.

    Raises InputError if the split was not measured.
    """
    rows = placed(changes, "change", style)
    split = rows[rows["part"] != "total"]
    if not len(split):
        raise InputError(
            "Entropy changes are only split into direction and norm with the raw readout. Choose it, or scan again "
            "with --readout raw --measures all."
        )
    kinds = [kind for kind in ROWS if (split["change"] == kind).any()]
    steps = np.diff(np.unique(rows["at"]))  # plotly would widen the bars of a module that only some layers have
    width = (1 - GAP) * (steps.min() if len(steps) else 1)
    figure = make_subplots(rows=len(kinds), cols=1, shared_xaxes=True, vertical_spacing=0.07)
    for number, kind in enumerate(kinds, start=1):
        mark, mine = legend.CHANGES[kind], rows[rows["change"] == kind]
        for part, opacity in (("direction", 0.75), ("norm", 0.35)):
            bar = mine[mine["part"] == part]
            fill = {"color": mark.colour, "opacity": opacity, "pattern": HATCH if part == "norm" else {}}
            figure.add_bar(
                x=bar["at"].to_numpy(),
                y=bar["mean"].to_numpy(),
                name=part,
                marker=fill,
                width=width,
                hovertext=(part + " · " + bar["hover"]).tolist(),
                hoverinfo="text",
                legendgroup=part,
                showlegend=number == 1,
                row=number,
                col=1,
            )
        _total(figure, mine[mine["part"] == "total"], number)
        figure.update_yaxes(
            title={"text": f"{mark.name}<br>{'Δ (nats)' if style == 'paper' else 'change (nats)'}"}, row=number
        )
        zero(figure, row=number, col=1)
    by_layer(figure, style, bottom=len(kinds))
    figure.update_layout(barmode="relative", bargap=GAP)
    return theme.layout(
        figure,
        "Entropy change: direction and norm",
        about,
        style,
        height=140 + 150 * len(kinds),
        wide=len(set(rows["at"])) > 40,
    )


def _total(figure: go.Figure, rows: pd.DataFrame, number: int) -> None:
    figure.add_scatter(
        x=rows["at"].to_numpy(),
        y=rows["mean"].to_numpy(),
        error_y={
            "array": (rows["high"] - rows["mean"]).to_numpy(),
            "arrayminus": (rows["mean"] - rows["low"]).to_numpy(),
            "color": TOTAL,
            "thickness": 1.2,
            "width": 0,
        },
        mode="markers",
        name="total",
        marker={"color": "white", "symbol": "circle", "size": 6, "line": {"color": TOTAL, "width": 1.5}},
        hovertext=("total · " + rows["hover"]).tolist(),
        hoverinfo="text",
        legendgroup="total",
        showlegend=number == 1,
        row=number,
        col=1,
    )


def residual(cosine_means: pd.DataFrame, norm_means: pd.DataFrame, about: About, style: Style = "screen") -> go.Figure:
    """Cosine between what attention or FFN writes and the stream it writes to, with the norms below (Fig. 12)."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    cosines, norms = placed(cosine_means, "cosine", style), placed(norm_means, "norm", style)
    zero(figure, row=1, col=1)
    for number, rows in enumerate((cosines, norms), start=1):
        for site in ("resid_post", "attn_out", "mlp_out")[2 - number :]:
            mine = rows[rows["site"] == site]
            named = number == 2 or site not in set(norms["site"])
            theme.line(figure, mine, legend.SITES[site], row=number, col=1, legend=named)
    by_layer(figure, style, bottom=2)
    figure.update_yaxes(title={"text": theme.label("cosine")}, row=1)
    steps = (1, 2, 5) if norms["mean"].max() < 300 * norms["mean"].min() else (1,)
    ticks = [step * 10.0**power for power in range(-3, 7) for step in steps]
    said = {"tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}
    figure.update_yaxes(title={"text": theme.label("norm")}, type="log", **said, row=2)
    return theme.layout(figure, "Attention, FFN and residual stream", about, style, height=560)


def convergence(
    kl_means: pd.DataFrame, settled_means: pd.DataFrame, about: About, style: Style = "screen"
) -> go.Figure:
    """How far each policy is from the model's own, and the share of tokens whose top token no longer changes."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    kl, settled = placed(kl_means, "kl", style), placed(settled_means, "settled", style)
    for site in ("resid_post", "attn_out", "mlp_out"):
        theme.line(figure, kl[kl["site"] == site], legend.SITES[site], row=1, col=1)
    none = "resid_post" not in set(kl["site"])
    theme.line(figure, settled[settled["site"] == "resid_post"], legend.SITES["resid_post"], row=2, col=1, legend=none)
    by_layer(figure, style, bottom=2)
    figure.update_yaxes(title={"text": "KL (nats)"}, rangemode="tozero", row=1)
    figure.update_yaxes(title={"text": "Settled tokens"}, range=[0, 1.04], tickformat=".0%", row=2)
    return theme.layout(figure, "Convergence to the model's policy", about, style, height=560)


def readouts(
    columns: Sequence[tuple[About, pd.DataFrame]],
    measure: str = "kl",
    site: str = "resid_post",
    style: Style = "screen",
) -> go.Figure:
    """A measure at one site by layer with each readout of a scan; each frame is `statistics.means` of the measure."""
    figure = go.Figure()
    named = dict.fromkeys([*view.WORDS, *view.LENSES, *(about.readout for about, _ in columns)])
    others = [curve for curve in theme.CURVES if legend.SITES["final"].colour not in curve]
    curves = dict(zip(named, cycle(others), strict=False))  # a known readout looks the same in every figure
    for about, frame in columns:
        rows = placed(frame[frame["site"] == site], measure, style)
        theme.line(figure, rows, Mark(theme.inert(view.how(about.readout)), *curves[about.readout]))
    about, frame = columns[0]  # the model's own policy doesn't depend on the readout
    final = placed(frame[frame["site"] == "final"], measure, style)
    theme.line(figure, final, legend.SITES["final"])
    by_layer(figure, style)
    if len(final):
        ends(figure, about.n_layers, style)
    figure.update_yaxes(title={"text": theme.label(measure)}, rangemode="tozero")
    parts = (legend.SITES[site].name, theme.short(about.model), theme.n(about), about.which)
    return theme.layout(figure, f"{theme.MEASURES[measure][0]} by readout", " · ".join(filter(None, parts)), style)


def distribution(
    quantiles: pd.DataFrame, about: About, site: str, measure: str = "entropy", style: Style = "screen"
) -> go.Figure:
    """Median, middle half and middle 90% over tokens of a measure at a site, by layer."""
    figure = go.Figure()
    mark = legend.SITES[site]
    rows = quantiles.sort_values("layer").assign(site=site)
    rows["at"] = rows["layer"] + theme.first_layer(style)
    for low, high, opacity, name in (("q05", "q95", 0.18, "5 to 95%"), ("q25", "q75", 0.35, "25 to 75%")):
        band = rows.rename(columns={low: "low", high: "high"})
        shade = GREY if mark.colour == theme.INK else mark.colour
        figure.add_trace(theme.band(band, shade, opacity, name=name, showlegend=True))
    said = [
        f"{theme.place(layer, site, style)}<br>median {middle:.4g}<br>middle half {low:.4g} to {high:.4g}"
        for layer, middle, low, high in rows[["layer", "q50", "q25", "q75"]].itertuples(index=False)
    ]
    median = rows.assign(mean=rows["q50"], hover=said, low=np.nan, high=np.nan)
    theme.line(figure, median, Mark("median", mark.colour, mark.symbol))
    if measure == "entropy":
        theme.maximum(figure, about)
    by_layer(figure, style)
    if site == "final":
        ends(figure, about.n_layers, style)
    figure.update_yaxes(title={"text": theme.label(measure)})
    title = f"{theme.MEASURES[measure][0]} over tokens: {mark.name}"
    return theme.layout(figure, title, about, style)


def compare(
    columns: Sequence[tuple[About, pd.DataFrame]],
    what: Literal["entropy", "change"] = "entropy",
    style: Style = "screen",
) -> go.Figure:
    """Entropies or entropy changes at relative depth, one column per model, on a shared y axis.

    Each frame is `statistics.means` or `statistics.changes`, passed through `comparison.relative`.
    """
    figure = make_subplots(rows=1, cols=len(columns), shared_yaxes=True, horizontal_spacing=0.02)
    seen: set[str] = set()
    for number, (about, frame) in enumerate(columns, start=1):
        rows = placed(frame[frame["part"] == "total"] if what == "change" else frame, what, style)
        key, marks = ("change", legend.CHANGES) if what == "change" else ("site", legend.SITES)
        lines = {name: rows[rows[key] == name] for name in (*ROWS, "attn_out", "mlp_out", "final")}
        if what == "entropy":
            lines = {"resid_post": stream(rows), **lines}
            theme.maximum(figure, about, style == "paper" or len(columns) > 2, row=1, col=number)
        else:
            zero(figure, row=1, col=number)
        for name, line in lines.items():
            if len(line):
                theme.line(figure, line, marks[name], x="depth", row=1, col=number, legend=name not in seen)
                seen.add(name)
        _above(figure, headings.heading(about, len(columns), style), number)
    depth = "Relative depth" if len(columns) < 3 else "Depth"  # the titles would touch on a phone
    figure.update_xaxes(range=[-0.03, 1.05], tickvals=[0, 0.5, 1], title={"text": depth})
    if what == "entropy":  # the shared axis needs room for the largest vocabulary
        figure.update_yaxes(range=[0, 1.12 * log(max(about.d_vocab for about, _ in columns))])
    if len(columns) > 1:
        figure.update_traces(marker={"size": 4}, selector=lambda trace: trace.marker.symbol not in (None, "star"))
    figure.update_yaxes(title={"text": theme.label(what)}, col=1)
    said = [view.how(about.readout) for about, _ in columns] + [about.which for about, _ in columns if about.which]
    caption = " · ".join(dict.fromkeys(said))
    title = f"{theme.MEASURES[what][0]} at relative depth"
    lines = max(len(headings.heading(about, len(columns), style)) for about, _ in columns)
    return theme.layout(figure, title, caption, style, height=460, wide=True, above=10 + 15 * lines)


def _above(figure: go.Figure, lines: Sequence[str], number: int) -> None:
    """Write a heading above a column."""
    figure.add_annotation(
        x=0.5,
        xref=f"x{number if number > 1 else ''} domain",
        text="<br>".join(lines),
        font={"size": 11},
        **ABOVE,
    )


def placed(frame: pd.DataFrame, measure: str, style: Style) -> pd.DataFrame:
    """The rows in order, with `at`, where they are drawn, and `hover`, the text shown on hovering."""
    frame = frame.dropna(subset=["mean"]).sort_values("layer")
    unit = theme.MEASURES[measure][1]
    said = []
    for row in frame.to_dict("records"):
        place = theme.place(row["layer"], row.get("site") or row["change"], style)
        between = "" if np.isnan(row["low"]) else f" ({row['low']:.4g} to {row['high']:.4g})"
        said.append(f"{place}<br>{row['mean']:.4g}{between} {unit}".rstrip())
    at = frame["layer"].to_numpy(dtype=int) + theme.first_layer(style)
    return frame.assign(at=at, hover=np.array(said, dtype=object))


def stream(rows: pd.DataFrame) -> pd.DataFrame:
    """The residual stream: the first layer's input, then every output; all inputs if no outputs were measured.

    A layer's input is the output of the previous layer, so it is drawn there.
    """
    outputs, inputs = (rows[rows["site"] == site] for site in ("resid_post", "resid_pre"))
    inputs = inputs.assign(at=inputs["at"] - 1)
    return pd.concat([inputs[:1], outputs]) if len(outputs) else inputs


def zero(figure: go.Figure, **place: Any) -> None:
    """Draw a dashed line at 0."""
    figure.add_hline(0, line={"color": GREY, "width": 1, "dash": "dash"}, exclude_empty_subplots=False, **place)


def by_layer(figure: go.Figure, style: Style, bottom: int | None = None) -> None:
    """Draw the axis of layers below row `bottom`, with as many numbers as fit."""
    drawn = np.concatenate([np.asarray(trace.x, dtype=float) for trace in theme.traces(figure)] or [np.ones(1)])
    first, last = round(np.nanmin(drawn)), round(np.nanmax(drawn))
    numbers = theme.ticks(first, last, ROOM[style])
    figure.update_xaxes(range=[first - 0.6, last + 0.6], tickvals=numbers, ticktext=[*map(str, numbers)], tickangle=0)
    figure.update_xaxes(title={"text": theme.layer_title(style)}, row=bottom)
