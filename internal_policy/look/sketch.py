"""Draw a figure of lines, with its panels below each other, as a small SVG without scripts, in the page's colours."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape, unescape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from internal_policy.look import theme

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 720.0, 150.0, 64.0, 16.0, 74.0, 44.0
"""Pixels: total width, smallest height of a panel, and margins."""
TICKS = 5
"""About how many numbers to write on an axis that doesn't define its own."""
_INK_BAND = f"rgba({','.join(map(str, bytes.fromhex(theme.INK.removeprefix('#'))))},"
"""How the colour of a band begins that belongs to the strongest line."""


@dataclass(frozen=True)
class Panel:
    """A pair of axes and their place in the picture."""

    x: tuple[float, float]
    """Values at the left and right ends."""
    y: tuple[float, float]
    """Values at the bottom and top ends."""
    box: tuple[float, float, float, float]
    """Left, right, top and bottom in pixels."""

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Values in pixels, (n, 2)."""
        left, right, top, bottom = self.box
        across = left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (right - left)
        return np.column_stack([across, bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - top)])


def sketch(figure: go.Figure) -> str:
    """The curves, bands, straight lines and axes of a figure as an SVG element, with all texts escaped."""
    layout: dict[str, Any] = figure.layout.to_plotly_json()
    traces = [trace.to_plotly_json() for trace in theme.traces(figure) if trace.visible != "legendonly"]
    names = sorted({trace.get("yaxis", "y") for trace in traces}, key=lambda name: int(name[1:] or 1))
    height = TOP + max(2 * ROW, ROW * len(names)) + BOTTOM
    parts = [*_words(layout, traces)]
    for name in names:
        mine = [trace for trace in traces if trace.get("yaxis", "y") == name]
        panel = _panel(layout, name[1:], {"x": traces, "y": mine}, height)
        parts += [*_axes(layout, panel, name[1:]), *_straight(layout, panel, name)]
        for trace in mine:
            parts += _trace(trace, panel)
    style = "max-width:100%;font:12px sans-serif;fill:currentColor"
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" style="{style}">{"".join(parts)}</svg>'


def _panel(layout: dict[str, Any], number: str, traces: dict[str, list[dict[str, Any]]], height: float) -> Panel:
    """The panel of a y axis. Its x axis has room for the traces of all panels."""
    across, up = layout.get(f"xaxis{number}", {}), layout.get(f"yaxis{number}", {})
    low, high = up.get("domain", (0, 1))
    inner = height - TOP - BOTTOM
    box = (LEFT, WIDTH - RIGHT, TOP + (1 - high) * inner, TOP + (1 - low) * inner)
    return Panel(_ends(across, "x", traces["x"]), _ends(up, "y", traces["y"]), box)


def _ends(axis: dict[str, Any], key: str, traces: list[dict[str, Any]]) -> tuple[float, float]:
    """The ends of an axis: its own range, or that of the values with a margin."""
    if "range" in axis:
        low, high = axis["range"]
        return float(low), float(high)
    values = np.concatenate([np.asarray(trace[key], dtype=float) for trace in traces])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _axes(layout: dict[str, Any], panel: Panel, number: str) -> Iterator[str]:
    across, up = layout.get(f"xaxis{number}", {}), layout.get(f"yaxis{number}", {})
    left, right, top, bottom = panel.box
    yield _line(left, bottom, right, bottom)
    yield _line(left, top, left, bottom)
    if across.get("showticklabels", True):
        for value, text in _ticks(across, panel.x):
            ((x, _),) = panel.at(np.array([value]), np.array([panel.y[0]]))
            yield from _lines(x, bottom + 16, text, "middle")
        yield _text((left + right) / 2, bottom + 34, across.get("title", {}).get("text", ""), "middle")
    for value, text in _ticks(up, panel.y):
        ((_, y),) = panel.at(np.array([panel.x[0]]), np.array([value]))
        yield _line(left, y, right, y, 'opacity="0.25"')
        yield _text(left - 6, y + 4, text, "end")
    yield _text(left, top - 6, up.get("title", {}).get("text", "").replace("<br>", " "), "start")


def _ticks(axis: dict[str, Any], ends: tuple[float, float]) -> list[tuple[float, str]]:
    if "tickvals" in axis:
        return [(float(value), text) for value, text in zip(axis["tickvals"], axis["ticktext"], strict=True)]
    rough = (ends[1] - ends[0]) / TICKS
    size = 10.0 ** np.floor(np.log10(rough))
    step = size * next(n for n in (1, 2, 5, 10) if n * size >= rough)
    values = np.arange(np.ceil(ends[0] / step), np.floor(ends[1] / step) + 1) * step
    return [(float(value), f"{value + 0.0:.4g}") for value in values]


def _straight(layout: dict[str, Any], panel: Panel, name: str) -> Iterator[str]:
    """Lines across a panel: the largest entropy, zero, the step where the whole policy took over."""
    for shape in layout.get("shapes", ()):
        if shape.get("yref", "y").split()[0] != name:
            continue
        level = shape["y0"] == shape["y1"]
        x = panel.x if level else (shape["x0"], shape["x1"])
        y = (shape["y0"], shape["y1"]) if level else panel.y
        (x0, y0), (x1, y1) = panel.at(np.array(x, dtype=float), np.array(y, dtype=float)).tolist()
        yield _line(x0, y0, x1, y1, 'stroke-dasharray="2 3"')


def _trace(trace: dict[str, Any], panel: Panel) -> Iterator[str]:
    x, y = (np.asarray(trace[name], dtype=float) for name in ("x", "y"))
    points = panel.at(x, y)
    known = np.isfinite(x) & np.isfinite(y)
    for run in np.split(np.arange(len(points)), np.flatnonzero(~known)):
        drawn = points[run[known[run]]]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in drawn)
        if trace.get("fill"):
            yield f'<polygon points="{path}" {_area(trace["fillcolor"])}/>'
        elif len(drawn) == 1:
            yield f'<circle cx="{drawn[0][0]:.1f}" cy="{drawn[0][1]:.1f}" r="4" fill="{_colour(trace)}"/>'
        elif len(drawn):
            yield f'<polyline points="{path}" fill="none" {_pen(trace)}/>'


def _colour(trace: dict[str, Any]) -> str:
    """The colour of a line; the strongest is that of the page's text, which is light on a dark page."""
    colour = str(trace["line"]["color"])
    return "currentColor" if colour == theme.INK else escape(colour)


def _area(colour: str) -> str:
    """The fill of a band, likewise."""
    if not colour.startswith(_INK_BAND):
        return f'fill="{escape(colour)}"'
    return f'fill="currentColor" fill-opacity="{escape(colour.removeprefix(_INK_BAND).rstrip(")"))}"'


def _pen(trace: dict[str, Any]) -> str:
    """The colour, width and dashes of a line."""
    width, dashed = float(trace["line"].get("width", 2)), "dash" in trace["line"]
    return f'stroke="{_colour(trace)}" stroke-width="{width:g}"' + (' stroke-dasharray="2 3"' if dashed else "")


def _words(layout: dict[str, Any], traces: list[dict[str, Any]]) -> Iterator[str]:
    """Title, caption and legend."""
    meta = layout["meta"]
    yield _text(LEFT, 18.0, meta["title"], "start", 'font-weight="bold"')
    yield _text(LEFT, 36.0, meta["caption"], "start", 'opacity="0.7"')
    at = LEFT
    for trace in traces:
        if trace.get("name") and trace.get("showlegend", True):
            yield f'<line x1="{at:.0f}" y1="50" x2="{at + 12:.0f}" y2="50" {_pen(trace)}/>'
            yield _text(at + 16, 54.0, trace["name"], "start")
            at += 30 + 7 * len(trace["name"])


def _line(x0: float, y0: float, x1: float, y1: float, more: str = "") -> str:
    ends = f'x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"'
    return f'<line {ends} stroke="{theme.GREY}" {more}/>'


def _lines(x: float, y: float, text: str, anchor: str) -> Iterator[str]:
    """A label of plotly's, whose `<br>` begin new lines; `<br>` in a name is escaped already."""
    for number, part in enumerate(text.split("<br>")):
        if part:
            yield _text(x, y + 15 * number, part, anchor)


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    said = escape(unescape(str(text)))  # plotly's texts are already escaped, but a figure's title and caption aren't
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{said}</text>'
