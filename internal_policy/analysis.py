"""The paper's quantities of a scan, as small frames."""

import pandas as pd

CHANGES = {"layer": ("resid_pre", "resid_post"), "attn": ("attn_in", "attn_out"), "mlp": ("mlp_in", "mlp_out")}
"""Entropy change: after minus before, of these sites (Eqs. 11 to 13 of arXiv 2512.19673)."""


def by_layer(layers: pd.DataFrame, readout: str) -> pd.DataFrame:
    """Mean entropies of a scan's table `layers`, in nats over all its tokens: a row a layer, `final` in the last.

    Columns are the sites that were measured and `change_layer`, `change_attn`, `change_mlp` where both sites were.
    """
    chosen = layers[layers["readout"] == readout]
    weighted = chosen.assign(total=chosen["entropy"] * chosen["tokens"])
    sums = weighted.groupby(["layer", "site"])[["total", "tokens"]].sum(skipna=False)
    means = (sums["total"] / sums["tokens"]).unstack("site")
    for name, (before, after) in CHANGES.items():
        if before in means and after in means:
            means[f"change_{name}"] = means[after] - means[before]
    return means
