"""The lens grid as one HTML page, as an element of a notebook, or as a module for the dashboard."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Any

HOSTS = ("file.js", "streamlit.js")
"""Scripts that put the grid into a page: a file of its own, or the dashboard."""
HEIGHT = 860
"""Height in pixels of the frame in a notebook."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy of every page that we write: nothing is requested from anywhere."""


def data(payloads: Sequence[Mapping[str, Any]], labels: Sequence[str] = (), **chosen: Any) -> dict[str, Any]:
    """What the scripts draw: one grid, or two of them linked, and what is chosen at first.

    `chosen` is any of layer, position, site, readout and measure; the grid's own default is taken for the others.
    """
    return {"grids": list(payloads), "labels": list(labels), "chosen": chosen}


@cache
def _text(name: str) -> str:
    return resources.files("internal_policy.look.lens_grid").joinpath(name).read_text(encoding="utf-8")


@cache
def script() -> str:
    """The grid's scripts in one: `mountLensGrid(root, data, host)` is the only name that they use from outside."""
    folder = resources.files("internal_policy.look.lens_grid")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".js") and path.name not in HOSTS)
    return "\n".join(_text(name) for name in names)


def style() -> str:
    """The grid's style sheet."""
    return _text("style.css")


def module() -> str:
    """The script of the dashboard's component."""
    return f"{script()}\n{_text('streamlit.js')}"


def boot() -> str:
    """The script of a page of its own, which draws each grid that `element` left in it."""
    return f"(() => {{\n{script()}\n{_text('file.js')}\n}})();"


def element(drawn: Mapping[str, Any]) -> str:
    """The place of a grid in a page, with its data; `boot` draws it."""
    text = json.dumps(drawn, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return f'<div class="lens-grid"></div><script type="application/json" class="lens-grid-data">{text}</script>'


def page(drawn: Mapping[str, Any], title: str) -> str:
    """A grid as one HTML page that needs no network."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<title>{escape(title)}</title>\n'
        "<style>\n:root { color-scheme: light dark; }\n"
        "body { margin: 16px; background: Canvas; color: CanvasText; }\n"  # else a frame is as dark as its notebook
        f"{style()}\n</style>\n</head>\n"
        f'<body>\n<h1 class="lens-grid-title">{escape(title)}</h1>\n{element(drawn)}\n<script>\n{boot()}\n</script>\n'
        "</body>\n</html>\n"
    )


def frame(drawn: Mapping[str, Any], title: str) -> str:
    """A grid as an element of a notebook: a frame whose scripts can't reach the notebook."""
    return (
        f'<iframe sandbox="allow-scripts" title="{escape(title)}" srcdoc="{escape(page(drawn, title))}" '
        f'style="width:100%;height:{HEIGHT}px;border:0"></iframe>'
    )
