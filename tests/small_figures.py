"""Small frames for figures, with hostile names and tokens, and helpers to read what a figure drew."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from internal_policy.look import theme
from internal_policy.look.view import About

SITES = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
HOSTILE = "<b>$x$</b>"
TOKENS = [HOSTILE, " the", "\n", "", "\u202eevil", "<0xF0>", "&amp;", "%{x}", "</script>"]
depths = pytest.mark.parametrize("n_layers", [2, 80])


def about(n_layers: int = 8, model: str = "demo", d_vocab: int = 448) -> About:
    return About(model, "raw", 20, 856, n_layers, d_vocab)


def with_ends(frame: pd.DataFrame) -> pd.DataFrame:
    values = np.random.default_rng(0).uniform(1, 5, len(frame))
    return frame.assign(mean=values, low=values - 0.5, high=values + 0.5)


def means(n_layers: int, sites=SITES) -> pd.DataFrame:
    rows = [(layer, site) for layer in range(n_layers) for site in sites] + [(n_layers, "final")]
    return with_ends(pd.DataFrame(rows, columns=["layer", "site"]))


def changes(n_layers: int, parts=("direction", "norm", "total")) -> pd.DataFrame:
    rows = [(layer, change, part) for layer in range(n_layers) for change in ("attn", "layer", "mlp") for part in parts]
    frame = with_ends(pd.DataFrame(rows, columns=["layer", "change", "part"]))
    total = frame["part"] == "total"
    if len(parts) == 3:  # the rows are in this order: direction, norm, total
        frame.loc[total, "mean"] = frame.loc[~total, "mean"].to_numpy().reshape(-1, 2).sum(1)
    return frame


def cells(n_layers: int, tokens: int, final: bool = True) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([range(n_layers + final), range(tokens)], names=["layer", "position"])
    return grid.to_frame(index=False).assign(value=np.random.default_rng(0).uniform(0.1, 6, len(grid)))


def response(tokens: int) -> pd.DataFrame:
    return pd.DataFrame({"position": range(tokens), "token": [TOKENS[n % len(TOKENS)] for n in range(tokens)]})


def choices() -> pd.DataFrame:
    rows = [
        (site, rank, TOKENS[rank], 0.5 / rank) for site in ("resid_pre", "attn_out", "resid_post") for rank in (1, 2, 3)
    ]
    frame = pd.DataFrame(rows, columns=["site", "rank", "token", "probability"])
    return frame.assign(before=pd.array([1, 2, 3, 3, 2, 1, None, 1, 2], dtype="Int64"))


def metrics(steps: int = 10) -> pd.DataFrame:
    phase = np.where(np.arange(steps) < 4, "internal", "final")
    frame = pd.DataFrame({"step": range(steps), "phase": phase, "target": 5})
    for name in ("reward", "entropy", "clip_fraction", "perplexity"):
        frame[name] = np.random.default_rng(0).uniform(0, 1, steps)
    return frame.assign(internal_entropy=frame["entropy"].where(frame["phase"] == "internal"))


def dynamics(n_layers: int = 8, steps: int = 10) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([range(steps), range(n_layers)], names=["step", "layer"]).to_frame(index=False)
    values = np.random.default_rng(0).normal(0, 1, len(grid))
    return grid.assign(site="resid_post", change=values, entropy=abs(values), cosine=np.tanh(values))


def quantiles(n_layers: int) -> pd.DataFrame:
    return pd.DataFrame({"layer": range(n_layers), **{f"q{n:02d}": 1.0 + n / 50 for n in (5, 25, 50, 75, 95)}})


def relative(frame: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    return frame.assign(depth=np.minimum((frame["layer"] + 1) / n_layers, 1))


def traces(figure: go.Figure, name: str) -> list:
    return [trace for trace in theme.traces(figure) if trace.name == name]


def values(trace) -> np.ndarray:
    y = np.asarray(trace.y, dtype=float)
    return y[~np.isnan(y)]


def of(frame: pd.DataFrame, **where) -> list[float]:
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame["mean"].tolist()


ABOUT = About("demo", "raw", 20, 1856, 8, 448)


def line(title: str = "Entropy", about: About | str = ABOUT, style: theme.Style = "screen") -> go.Figure:
    return theme.layout(
        go.Figure([go.Scatter(y=[1, 2], name="a"), go.Scatter(y=[2, 1], name="b")]), title, about, style
    )
