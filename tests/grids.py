"""Lens grids of made-up responses, for tests in a real browser."""

import base64
import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page

from internal_policy.look.lens_grid import page as pages

WORDS = [" The", " capital", " of", " France", " is", " Paris", ".", "\n", " London", " city", " a", " the"]
N_LAYERS, K, V = 6, 3, 1000
SITES = {"resid_pre": "layer input", "attn_out": "attention", "mlp_out": "FFN", "resid_post": "layer output"}
MEASURES = (
    ("probability", "Probability of the top token", "", "high", [0, 1], False, False),
    ("entropy", "Entropy", "nats", "low", [0, log(V)], False, False),
    ("kl", "KL from the model", "nats", "low", None, False, False),
    ("rank", "Rank of the actual token", "", "low", [1, V], True, False),
    ("logprob", "Log probability", "nats", "high", [-log(V), 0], False, False),
    ("change", "Entropy change", "nats", "", None, False, True),
)
FIELDS = ("name", "title", "unit", "better", "fixed", "logarithmic", "signed")
NOTE = "Raw hidden states are saturated in 5 of 6 layers."


def plane(
    layers: list[int], columns: int, shift: int, *, words: int, k: int = K, empty: Sequence[int] = ()
) -> dict[str, Any]:
    """A plane whose top token is word `layer + column + shift`, with a probability that grows with the layer.

    The layers in `empty` have no numbers.
    """
    rows = np.array(layers)[:, None]
    nothing = np.isin(rows, empty)
    at = rows + np.arange(columns)[None, :] + shift
    sure = np.broadcast_to(0.1 + 0.8 * rows / max(layers[-1], N_LAYERS), at.shape)
    arrays = {
        "entropy": np.where(nothing, np.nan, 3 * (1 - sure)).astype("<f4"),
        "kl": (2 - 2 * sure).astype("<f4"),
        "change": (sure - 0.5).astype("<f4"),
        "rank": np.where(nothing, 0, 1 + 400 * (1 - sure)).astype("<i4"),
        "logprob": np.log(sure).astype("<f4"),
        "topk_ids": np.where(nothing[..., None], 0xFFFFFFFF, (at[..., None] + np.arange(K)) % words).astype("<u4"),
        "topk_probs": np.stack([sure, (1 - sure) / 2, (1 - sure) / 4], axis=-1).astype("<f4"),
    }
    if not k:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("topk")}
    packed = gzip.compress(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values()))
    return {"layers": layers, "fields": list(arrays), "data": base64.b64encode(packed).decode()}


def payload(
    columns: int = 8,
    layers: int = N_LAYERS,
    words: list[str] = WORDS,
    *,
    kept: list[int] | None = None,
    k: int = K,
    measured: bool = True,
    rollout: int = 0,
    lacking: dict[str, list[int]] | None = None,
) -> dict[str, Any]:
    """A response whose actual tokens are the words in order. Only the final policy is known if it isn't `measured`.

    `kept` are the measured layers, by default all, and `k` can be 0: no top tokens. `lacking` are layers by the site
    that they lack.
    """
    every = list(range(layers)) if kept is None else kept
    actual = [at % len(words) for at in range(columns)]
    unmeasured = [] if measured else every
    without = {"final": [], **(lacking or {})}
    planes = {}
    for shift, readout in enumerate(("norm", "raw")):
        rows = dict.fromkeys(SITES, every) | {"final": [layers]}
        rows["resid_pre"] = [layer for layer in every if layer - 1 not in every]
        planes[readout] = {
            site: plane(here, columns, shift, words=len(words), k=k, empty=without.get(site, unmeasured))
            for site, here in rows.items()
        }
    return {
        "format": 1,
        "scan": "made",
        "rollout": rollout,
        "n_layers": layers,
        "d_vocab": V,
        "k": k,
        "first": 0,
        "every": 1,
        "prompt": ["Question", ":", "\n"],
        "tokens": [words[at] for at in actual],
        "vocabulary": words,
        "actual": actual,
        "readouts": [
            {"name": "raw", "title": "raw hidden states", "note": NOTE},
            {"name": "norm", "title": "through the final norm", "note": ""},
        ],
        "sites": [{"name": name, "title": title} for name, title in SITES.items()],
        "measures": [dict(zip(FIELDS, measure, strict=True)) for measure in MEASURES],
        "planes": planes,
        "lacking": lacking or {},
    }


HOST = """window.kept = []; window.wanted = []; window.grid = mountLensGrid(document.querySelector('.lens-grid'),
JSON.parse(document.querySelector('.lens-grid-data').textContent),
{keep: state => kept.push(state), want: plane => wanted.push(plane)});"""


@contextmanager
def grid(browser: Browser, folder: Path, drawn: dict[str, Any], **context: Any) -> Iterator[Page]:
    """A page from disk with a grid, whose host only notes what it is told. Any error or request fails the test."""
    html = pages.page(drawn, "Grid")
    whole = html.replace(pages.boot(), f"(() => {{\n{pages.script()}\n{HOST}\n}})();")
    assert whole != html
    path = folder / "grid.html"
    path.write_text(whole, encoding="utf-8")
    opened = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
    page = opened.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: None if request.url == path.as_uri() else errors.append(request.url))
    try:
        page.goto(path.as_uri())
        page.wait_for_selector("[data-ready]")
        yield page
    finally:
        opened.close()
    assert not errors
