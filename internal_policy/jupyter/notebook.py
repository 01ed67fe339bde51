"""Show objects in a notebook, as HTML without scripts or network requests that suits a light and a dark page."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING

from internal_policy.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

TEXT = 'style="text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:break-word;unicode-bidi:isolate"'
"""How a cell of text looks: with its line breaks, and without changing the direction of what is beside it."""
LONGEST = 400
"""Characters of a text in a cell of a table."""


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


def table(frame: "pd.DataFrame") -> str:
    """A frame as an HTML table in a box that scrolls, with escaped texts and four digits."""
    text = frame.to_html(escape=True, border=0, na_rep="", float_format="{:.4g}".format)
    return f'<div style="max-height:320px;overflow:auto">{text}</div>'


def rows(named: Sequence[str], cells: Sequence[Sequence[object]]) -> str:
    """Texts as an HTML table in a box that scrolls: a heading for each column, and line breaks as they are."""
    head = "".join(f'<th scope="col" style="text-align:left">{escape(name)}</th>' for name in named)
    body = "".join(f"<tr>{''.join(f'<td {TEXT}>{_cell(cell)}</td>' for cell in line)}</tr>" for line in cells)
    shown = f'<table class="dataframe"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div style="max-height:420px;overflow:auto">{shown}</div>'


def facts(named: Mapping[str, object]) -> str:
    """Names and values as an HTML table of two columns, one row each."""
    lines = "".join(
        f'<tr><th scope="row" style="text-align:left;vertical-align:top">{escape(name)}</th>'
        f"<td {TEXT}>{_cell(value)}</td></tr>"
        for name, value in named.items()
    )
    return f'<div style="max-height:420px;overflow:auto"><table class="dataframe"><tbody>{lines}</tbody></table></div>'


def heading(text: str) -> str:
    """A line above a table."""
    return f'<p style="font-weight:bold">{escape(text)}</p>'


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def need_plotly() -> None:
    """Raise InputError if plotly is not installed."""
    if find_spec("plotly") is None:
        raise InputError("Figures need plotly. Run `pip install 'internal-policy[app]'`.")


def printable(text: str) -> str:
    """Escape control and invisible characters, which could move the cursor or reverse a line."""
    return repr(text)[1:-1]
