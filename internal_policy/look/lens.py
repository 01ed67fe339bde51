"""Show what each layer would say next after a text: a table by layer, the grid of top tokens, and one sentence."""

from html import escape
from typing import NamedTuple

import pandas as pd

from internal_policy.jupyter import notebook
from internal_policy.jupyter.notebook import printable
from internal_policy.look import view
from internal_policy.look.findings import layers_in_words

FAINT, SURE = 0.1, 0.5
"""Probabilities of a top token below which it is drawn faint, and from which it is drawn strong."""
COLUMNS = (
    *("position", "read", "layer", "point", "token", "probability", "entropy", "kl"),
    *("target", "target_probability", "target_rank", "top_tokens", "top_ids", "top_probabilities"),
)
"""Columns of a `LensTable`, in order."""


class LensTable(pd.DataFrame):
    """What each layer would say next: a data frame that prints as a short table and that notebooks draw.

    It has a row per position and layer, with the columns position (of the last token that was read, from 0), read (its
    text), layer (from 0; one past the last for the model's own policy), point (the hook point), token (the top token)
    and its probability, entropy and kl (nats; KL from the model's own policy), target (a token) with target_probability
    and target_rank (1 is the top token), and top_tokens, top_ids and top_probabilities (lists of the most likely).
    At the last position the target is the one you gave, or the model's own top token; at earlier positions it is the
    next token of the text. `attrs` has model, text, site, readout and n_layers.
    """

    def __repr__(self) -> str:
        """The table of the last position, and the sentence."""
        return f"{heading(self)}\n{whole(self).to_string(index=False)}\n{verdict(self)}"

    def _repr_html_(self) -> str:
        """The sentence, the grid if there are several positions, and the table of the last one; no script."""
        table = whole(self).to_html(escape=True, border=0, index=False)
        parts = [
            *(f"<p>{escape(text)}</p>" for text in (*heading(self).splitlines(), verdict(self))),
            *([grid_html(self)] if several(self) else []),
            f'<div style="max-height:420px;overflow:auto;margin-top:1em">{table}</div>',
        ]
        return notebook.page(*(lambda part=part: part for part in parts))


def several(frame: pd.DataFrame) -> bool:
    """Whether more positions than one were measured."""
    return frame["position"].nunique() > 1


def last(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last position, one a layer and one for the model's own policy."""
    return pd.DataFrame(frame[frame["position"] == frame["position"].max()])


def quote(token: str) -> str:
    """A token in quotation marks, with its control characters escaped."""
    text = printable(token).replace('"', '\\"')
    return f'"{text}"'


def heading(frame: pd.DataFrame) -> str:
    """What the table shows, in two lines."""
    about = frame.attrs
    text = about["text"] if len(about["text"]) <= 60 else "…" + about["text"][-59:]
    where = f"{printable(about['model'])}, {about['site']}, {view.how(about['readout'])}"
    return f"Next token after {quote(text)}\n{where}"


def probability(value: float) -> str:
    """A probability with three decimals, or its power of ten if it is too small for them."""
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else f"{value:.0e}"


def by_layer(frame: pd.DataFrame) -> pd.DataFrame:
    """The last position as texts for people, one row a layer; the target's columns are named by it."""
    rows = last(frame)
    target = quote(rows["target"].iloc[0])
    return pd.DataFrame(
        {
            "layer": rows["layer"].astype(str).where(rows["point"] != "final", "model").to_numpy(),
            "top token": rows["token"].map(quote).to_numpy(),
            "prob.": rows["probability"].map(probability).to_numpy(),
            "entropy": rows["entropy"].map("{:.2f}".format).to_numpy(),
            f"rank of {target}": ["-" if rank is pd.NA else f"{rank:,}" for rank in rows["target_rank"]],
            "its prob.": rows["target_probability"].map(probability).to_numpy(),
        }
    )


def others(frame: pd.DataFrame) -> list[list[str]]:
    """The tokens after the top one at the last position, with their probabilities, by layer."""
    rows = last(frame)
    return [
        [f"{quote(token)} {probability(p)}" for token, p in zip(tokens[1:], ps[1:], strict=True)]
        for tokens, ps in zip(rows["top_tokens"], rows["top_probabilities"], strict=True)
    ]


def whole(frame: pd.DataFrame) -> pd.DataFrame:
    """The table by layer with a last column for the tokens after the top one, if there are any."""
    pairs = others(frame)
    return by_layer(frame).assign(then=["  ".join(pair) for pair in pairs]) if any(pairs) else by_layer(frame)


def from_layer(frame: pd.DataFrame) -> int | None:
    """The layer from which the target is the top token in every layer up to the last; None if it isn't in the last."""
    rows = last(frame)
    rows = rows[rows["point"] != "final"]
    misses = rows["layer"][rows["target_rank"].ne(1).fillna(True)]
    after = rows["layer"] if misses.empty else rows["layer"][rows["layer"] > misses.iloc[-1]]
    return None if after.empty else int(after.iloc[0])


def verdict(frame: pd.DataFrame) -> str:
    """Where the target becomes the top token, in one sentence."""
    rows = last(frame)
    rows = rows[rows["point"] != "final"]
    target, ranks = quote(rows["target"].iloc[0]), rows["target_rank"]
    n, end = frame.attrs["n_layers"], rows["layer"].iloc[-1]
    layers = f"layers 0 to {n - 1}" if len(rows) == n else layers_in_words(rows["layer"].tolist())
    last_one = "the last layer" if end == n - 1 else f"layer {end}"
    if (first := from_layer(frame)) is not None:
        start = "in every layer" if first == rows["layer"].iloc[0] else f"from layer {first} on"
        return f"{target} is the top token {start} ({layers})."
    if ranks.isna().all():
        return f"The rank of {target} is unknown: the policies of all layers are NaN."
    hits = rows["layer"][rows["target_rank"].eq(1).fillna(False)].tolist()
    if hits:
        now = "but not" if pd.isna(ranks.iloc[-1]) else f"but rank {ranks.iloc[-1]:,}"
        return f"{target} is the top token in {layers_in_words(hits)}, {now} in {last_one} ({layers})."
    best = rows.iloc[int(ranks.astype(float).argmin())]
    rank, layer = best["target_rank"], best["layer"]
    return f"{target} is never the top token in {layers}; its best rank is {rank:,}, in layer {layer}."


class GridRow(NamedTuple):
    """One layer of the grid."""

    layer: str
    """Its number, or `model` for the model's own policy."""
    tokens: list[str]
    """The top token at each position, its spaces as `·`."""
    probabilities: list[float]
    """The probability of each."""
    entropies: list[float]
    """In nats."""


def grid(frame: pd.DataFrame) -> tuple[list[str], list[GridRow]]:
    """The tokens that were read, and what each layer would say next after each of them."""
    read = [cell(text) for text in frame.drop_duplicates("position")["read"]]
    rows = [
        GridRow(
            "model" if layer == frame.attrs["n_layers"] else str(layer),
            [cell(token) for token in part["token"]],
            part["probability"].tolist(),
            part["entropy"].tolist(),
        )
        for layer, part in frame.groupby("layer")
    ]
    return read, rows


def cell(token: str) -> str:
    """A token without quotation marks, its spaces as `·`."""
    return printable(token).replace(" ", "·")


def grid_html(frame: pd.DataFrame) -> str:
    """The grid of top tokens as an HTML table; the more probable a token is, the stronger its colour."""
    read, rows = grid(frame)
    style = "padding:1px 5px;white-space:pre;text-align:left"
    head = "".join(f'<th scope="col" style="{style}">{escape(text)}</th>' for text in read)
    lines = []
    for row in rows:
        cells = []
        for token, sure, entropy in zip(row.tokens, row.probabilities, row.entropies, strict=True):
            hint = f"probability {probability(sure)}, entropy {entropy:.2f} nats"
            colour = f"background:rgba(0,114,178,{0.75 * sure:.2f})"
            cells.append(f'<td style="{style};{colour}" title="{hint}">{escape(token)}</td>')
        lines.append(f'<tr><th scope="row">{row.layer}</th>{"".join(cells)}</tr>')
    body = f"<thead><tr><th>layer</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div style="overflow:auto;max-height:640px"><table style="font-family:monospace">{body}</table></div>'
