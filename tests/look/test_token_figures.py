"""Figures of tokens draw every cell, and every token literally."""

from math import log

import numpy as np
import pandas as pd
import pytest
from small_figures import about, cells, choices, depths, response

from internal_policy.look import theme, token_figures


@depths
def test_the_heatmap_of_tokens_draws_the_cells(n_layers):
    frame = cells(n_layers, 9)
    heat, markers = theme.traces(token_figures.tokens(frame, response(9), about(n_layers), "resid_post", "entropy"))
    assert heat.z == pytest.approx(frame["value"].to_numpy().reshape(n_layers + 1, 9), rel=1e-6)
    assert (heat.x.tolist(), heat.y.tolist()) == (list(range(9)), list(range(n_layers + 1)))
    assert (heat.zmin, heat.zmax) == (0, log(448))
    assert {tuple(point[:2]) for point in markers.customdata} == {*zip(frame["layer"], frame["position"], strict=True)}
    points = {point[0]: point[2] for point in markers.customdata}
    assert (points[1], points[n_layers]) == (
        "layer 1 · layer output (1.resid_post)",
        "final · the model's own policy",
    )
    assert (markers.marker.opacity, markers.unselected.marker.opacity, markers.selected.marker.opacity) == (0, 0, 1)


def test_many_cells_are_drawn_by_webgl():
    figure = token_figures.tokens(cells(80, 100), response(100), about(80), "resid_post", "entropy")
    assert theme.traces(figure)[1].type == "scattergl"


def test_too_many_tokens_for_a_heatmap_are_refused():
    with pytest.raises(ValueError, match="at most 512"):
        token_figures.tokens(cells(2, 513), response(513), about(2), "resid_post", "entropy")


def test_hostile_tokens_are_drawn_literally():
    figure = token_figures.tokens(cells(2, 9), response(9), about(2), "resid_post", "entropy")
    assert figure.layout.xaxis.ticktext[:5] == ("&lt;b&gt;&#36;x&#36;&lt;/b&gt;", "␣the", "⏎", "∅", "⟨U+202E⟩evil")
    table = token_figures.predictions(choices(), about(), 1, 7)
    for drawn in (figure, table):
        assert "<0xF0>" not in str(drawn.to_dict())
        assert "</script>" not in str(drawn.to_dict())


def test_a_window_of_a_response_keeps_its_positions():
    frame, shown = cells(2, 9).query("position >= 5"), response(9).query("position >= 5")
    figure = token_figures.tokens(frame, shown, about(2), "resid_post", "entropy")
    assert list(figure.layout.xaxis.tickvals) == [5, 6, 7, 8]
    assert theme.traces(figure)[0].x.tolist() == [5, 6, 7, 8]


def test_cells_that_were_not_measured_stay_empty():
    frame = cells(4, 9).query("layer != 2")
    heat, markers = theme.traces(token_figures.tokens(frame, response(9), about(4), "resid_post", "entropy"))
    assert np.isnan(heat.z[2]).all()
    assert len(markers.x) == len(frame)


def test_a_heatmap_only_counts_what_it_shows():
    figure = token_figures.tokens(cells(2, 9), response(9), about(2), "resid_post", "entropy")
    assert "1 rollout, 9 tokens" in figure.layout.meta["caption"]


def test_predictions_show_how_far_a_token_has_moved():
    (table,) = theme.traces(token_figures.predictions(choices(), about(), 1, 7))
    assert list(table.header.values) == [
        "",
        "layer input<br>1.resid_pre",
        "attention<br>1.attn_out",
        "layer output<br>1.resid_post",
    ]
    assert list(table.cells.values[1]) == ["␣the  50%", "⏎  25%", "∅  16.7%"]
    assert [cell.split("  ")[-1] for cell in table.cells.values[2]] == ["▲2", "=", "▼2"]
    assert [cell.split("  ")[-1] for cell in table.cells.values[3]] == ["new", "▼1", "▼1"]


def test_a_tiny_probability_is_shown_as_about_0():
    frame = pd.DataFrame({"site": ["resid_post"] * 2, "rank": [1, 2], "id": [5, 6], "token": ["a", "b"]})
    frame = frame.assign(probability=[0.25, 3e-21], before=pd.array([1, 2], dtype="Int64"))
    (table,) = theme.traces(token_figures.predictions(frame, about(), 1, 0))
    shown = " ".join(str(cell) for column in table.cells.values for cell in column)
    assert "25%" in shown
    assert "~0%" in shown
