"""Sketches draw lines at their values, in an SVG without scripts."""

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from internal_policy.look import theme
from internal_policy.look.sketch import LEFT, RIGHT, WIDTH, sketch


def figure(*traces: go.Scatter, title: str = "Title", **layout) -> go.Figure:
    return theme.layout(go.Figure([*traces]), title, "caption").update_layout(**layout)


def line(x, y, **more) -> go.Scatter:
    return go.Scatter(x=np.array(x, dtype=float), y=np.array(y, dtype=float), line={"color": "#123456"}, **more)


def points(svg: str, tag: str = "polyline") -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<{tag} points="([^"]*)"', svg)
    pairs = [[pair.split(",") for pair in path.split()] for path in found]
    return [[(float(x), float(y)) for x, y in path] for path in pairs]


def test_a_line_goes_from_edge_to_edge_of_its_axes():
    (path,) = points(sketch(figure(line([0, 1, 2], [0, 1, 0]), xaxis_range=[0, 2], yaxis_range=[0, 1])))
    assert [x for x, _ in path] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert path[0][1] == path[2][1] > path[1][1]


def test_a_missing_value_breaks_a_line():
    paths = points(sketch(figure(line([0, 1, 2, 3, 4], [0, 1, np.nan, 1, 2]))))
    assert [len(path) for path in paths] == [2, 2]


def test_a_single_value_is_a_dot():
    svg = sketch(figure(line([0, 1], [0, 1]), line([2], [1])))
    assert svg.count("<circle") == 1
    assert len(points(svg)) == 1


def test_lines_keep_their_width_and_dashes():
    thin = go.Scatter(x=[0, 1], y=[0, 1], line={"color": "#123456", "width": 1, "dash": "dot"})
    (plain, dashed) = re.findall(r"<polyline[^>]*>", sketch(figure(line([0, 1], [1, 2]), thin)))
    assert 'stroke-width="2"' in plain
    assert "dasharray" not in plain
    assert 'stroke-width="1" stroke-dasharray' in dashed


def test_the_two_lines_of_an_axis_title_are_one():
    assert "Reward (share)<" in sketch(figure(line([0, 1], [0, 1]), yaxis_title="Reward<br>(share)"))


def test_a_band_is_an_area():
    area = line([0, 1, 1, 0], [0, 0, 1, 1], fill="toself", fillcolor="rgba(1,2,3,0.2)")
    assert len(points(sketch(figure(area)), "polygon")[0]) == 4


def test_hidden_lines_are_left_out():
    assert not points(sketch(figure(line([0, 1], [0, 1], visible="legendonly"), line([0], [0]))))


def test_panels_share_the_x_axis():
    both = go.Figure().set_subplots(2, 1, shared_xaxes=True)
    both.add_trace(line([0, 10], [0, 1]), row=1, col=1)
    both.add_trace(line([5, 10], [0, 1]), row=2, col=1)
    upper, lower = points(sketch(theme.layout(both, "t", "c")))
    assert upper[1][0] == lower[1][0]
    assert lower[0][0] == pytest.approx((upper[0][0] + upper[1][0]) / 2, abs=0.1)
    assert upper[0][1] < lower[1][1]


def test_a_word_on_a_second_line_is_below_the_numbers():
    svg = sketch(figure(line([0, 1], [0, 1]), xaxis={"tickvals": [0, 1], "ticktext": ["7", "<br>final"]}))
    (seven, final) = (re.findall(rf'y="([\d.]+)"[^>]*>{text}<', svg) for text in ("7", "final"))
    assert float(final[0]) == float(seven[0]) + 15


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "</svg><img src=x onerror=alert(1)>", '"&lt;b&gt;'])
def test_texts_stay_texts(text):
    svg = sketch(figure(line([0, 1], [0, 1], name=text, showlegend=True), title=text, xaxis_title_text=text))
    assert "<script" not in svg
    assert "<img" not in svg
    assert "<b>" not in svg
    assert svg.count("</svg>") == 1


def test_the_strongest_line_and_its_band_have_the_colour_of_the_text_around_them():
    ink = go.Scatter(x=[0, 1], y=[0, 1], line={"color": theme.INK})
    rows = pd.DataFrame({"at": [0, 1], "low": [0.0, 0.5], "high": [0.5, 1.0]})
    svg = sketch(figure(ink, theme.band(rows, theme.INK, 0.15), theme.band(rows, theme.BLUE, 0.15)))
    assert 'stroke="currentColor"' in svg
    assert 'fill="currentColor" fill-opacity="0.15"' in svg
    assert 'fill="rgba(0,114,178,0.15)"' in svg
    assert not re.search(r"background|white|black", svg)
