"""Heatmaps have a colour scale that suits their measure."""

import pytest
from small_figures import about, cells, response

from internal_policy.look import theme, token_figures


@pytest.mark.parametrize("measure", ["change", "cosine"])
def test_signed_values_are_coloured_symmetrically(measure):
    frame = cells(2, 9, final=False)
    frame["value"] -= 5
    heat = theme.traces(token_figures.tokens(frame, response(9), about(2), "attn_out", measure))[0]
    assert heat.zmin == -heat.zmax == pytest.approx(-frame["value"].abs().max())


def test_ranks_are_coloured_by_their_logarithm():
    frame = cells(2, 9).assign(value=[1, 10, 100] * 9)
    heat = theme.traces(token_figures.tokens(frame, response(9), about(2), "resid_post", "rank"))[0]
    assert heat.z[0, :3] == pytest.approx([0, 1, 2])
    assert list(heat.colorbar.ticktext) == ["1", "10", "100"]


def test_the_colour_bar_shows_the_unit():
    for measure, title in {"kl": "KL from the model (nats)", "change": "Entropy change (nats)", "norm": "Norm"}.items():
        heat = theme.traces(token_figures.tokens(cells(2, 9), response(9), about(2), "attn_out", measure))[0]
        assert heat.colorbar.title.text == title
