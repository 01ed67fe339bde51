"""Show scans and training runs in a notebook, as HTML without scripts or network requests."""

from collections.abc import Callable, Sequence
from html import escape
from importlib.util import find_spec

import pandas as pd

from internal_policy.errors import InputError


def page(*parts: Callable[[], str]) -> str:
    """The parts below each other. A part that raises InputError is replaced by its message."""
    shown = []
    for part in parts:
        try:
            shown.append(part())
        except InputError as error:
            shown.append(f"<p>{escape(str(error))}</p>")
    # these classes keep Jupyter from reading $...$ in a name as maths
    return f'<div class="mathjax_ignore tex2jax_ignore">{"".join(shown)}</div>'


def sentences(lines: Sequence[str]) -> str:
    """Sentences as a list; nothing if there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def table(frame: pd.DataFrame) -> str:
    """A frame as an HTML table in a box that scrolls, with escaped texts and four digits."""
    text = frame.to_html(escape=True, border=0, na_rep="", float_format="{:.4g}".format)
    return f'<div style="max-height:320px;overflow:auto">{text}</div>'


def need_plotly() -> None:
    """Raise InputError if plotly is not installed."""
    if find_spec("plotly") is None:
        raise InputError("Figures need plotly. Run `pip install 'internal-policy[app]'`.")


def printable(text: str) -> str:
    """Escape control and invisible characters, which could move the cursor or reverse a line."""
    return repr(text)[1:-1]
