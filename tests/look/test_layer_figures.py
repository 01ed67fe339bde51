"""Figures by layer draw the numbers of their frames, at any depth and with hostile names."""

from math import log

import numpy as np
import pytest
from small_figures import HOSTILE, about, changes, depths, means, of, quantiles, relative, traces, values

from internal_policy.errors import InputError
from internal_policy.look import layer_figures, legend, theme
from internal_policy.look.view import About

both_styles = pytest.mark.parametrize(("style", "first"), [("screen", 0), ("paper", 1)])


def by_readout(names=("raw", "norm", "tuned", "mine"), n_layers=8, model="demo"):
    """The argument of `readouts`: each readout's means are those of the first plus its number."""
    return [
        (About(model, name, 20, 856, n_layers, 448), means(n_layers).assign(mean=means(n_layers)["mean"] + number))
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize("measure", ["kl", "entropy"])
def test_readouts_draw_one_line_each_and_final_once(measure):
    columns = by_readout()
    figure = layer_figures.readouts(columns, measure)
    words = ["raw hidden states", "through the final norm", "through the tuned lens", "through the mine lens"]
    for (_, frame), name in zip(columns, words, strict=True):
        (drawn,) = traces(figure, name)
        assert values(drawn).tolist() == of(frame, site="resid_post")
    (final,) = traces(figure, "final")
    assert values(final).tolist() == of(columns[0][1], site="final")
    assert figure.layout.xaxis.ticktext[-1] == "final"
    assert figure.layout.meta["caption"] == "layer output · demo · 20 rollouts, 856 tokens"
    assert theme.label(measure) in [axis.title.text for axis in figure.select_yaxes()]


def test_a_readout_looks_the_same_in_every_figure():
    one, other = layer_figures.readouts(by_readout()), layer_figures.readouts(by_readout(("tuned", "mine", "norm")))
    for name in ("through the final norm", "through the tuned lens", "through the mine lens"):
        assert traces(one, name)[0].line.color == traces(other, name)[0].line.color


def test_no_known_readout_has_the_colour_of_the_models_own_policy():
    figure = layer_figures.readouts(by_readout(("raw", "norm", "tuned", "jacobian", "mine")), "entropy")
    colours = {trace.line.color for trace in theme.traces(figure) if trace.name and trace.line.color}
    assert len(colours) == 6


@pytest.mark.parametrize("style", ["screen", "paper"])
def test_hostile_names_of_lenses_and_models_are_drawn_literally(style):
    drawn = layer_figures.readouts(by_readout(("raw", HOSTILE), model=HOSTILE), "kl", "attn_out", style).to_dict()
    del drawn["layout"]["meta"]
    assert HOSTILE not in str(drawn)


@depths
@both_styles
def test_flow_draws_the_means_from_the_embeddings_to_final(n_layers, style, first):
    frame = means(n_layers)
    figure = layer_figures.flow(frame, about(n_layers), style)
    for site in ("attn_out", "mlp_out", *(("attn_in", "mlp_in") if style == "screen" else ())):
        (drawn,) = traces(figure, legend.SITES[site].name)
        assert values(drawn).tolist() == of(frame, site=site)
        assert drawn.x.tolist() == list(range(first, n_layers + first))
        assert drawn.visible == ("legendonly" if site.endswith("_in") else True)
    (stream,) = traces(figure, "layer output")
    assert values(stream).tolist() == [of(frame, site="resid_pre")[0], *of(frame, site="resid_post")]
    assert stream.x.tolist() == list(range(first - 1, n_layers + first))
    (final,) = traces(figure, "final")
    assert (final.x.tolist(), values(final).tolist()) == ([n_layers + first], of(frame, site="final"))


def test_bands_run_from_low_to_high():
    frame = means(8)
    bands = [trace for trace in theme.traces(layer_figures.flow(frame, about())) if trace.fill == "toself"]
    (attention,) = [band for band in bands if band.legendgroup == "attention"]
    rows = frame[frame["site"] == "attn_out"]
    assert values(attention).tolist() == [*rows["high"], *rows["low"][::-1]]


def test_one_rollout_has_no_bands():
    frame = means(8).assign(low=np.nan, high=np.nan)
    assert not [trace for trace in theme.traces(layer_figures.flow(frame, about())) if trace.fill]


def test_hovering_shows_the_hook_point_value_and_interval():
    (drawn,) = traces(layer_figures.flow(means(8), about()), "attention")
    row = means(8).query("site == 'attn_out' and layer == 5").iloc[0]
    expected = f"layer 5 · attention (5.attn_out)<br>{row['mean']:.4g} ({row['low']:.4g} to {row['high']:.4g}) nats"
    assert drawn.hovertext[5] == expected


def test_hovering_over_a_change_shows_the_layer_and_the_module():
    figure = layer_figures.change(changes(8), about())
    assert traces(figure, "FFN")[0].hovertext[5].startswith("layer 5 · FFN<br>")
    assert traces(figure, "layer")[0].hovertext[5].startswith("layer 5<br>")


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_every_site_of_a_layer_is_drawn_at_its_number(site):
    spread = layer_figures.distribution(quantiles(8), about(), site)
    assert traces(spread, "median")[0].x.tolist() == list(range(8))
    figure = layer_figures.readouts(by_readout(("raw",)), "kl", site)
    assert traces(figure, "raw hidden states")[0].x.tolist() == list(range(8))
    assert figure.layout.xaxis.ticktext == (*"01234567", "final")


def test_a_click_on_a_line_reports_the_layer():
    (drawn,) = traces(layer_figures.change(changes(8), about()), "FFN")
    assert [list(point) for point in drawn.customdata] == [[layer] for layer in range(8)]


def test_layers_that_were_not_measured_are_not_joined():
    frame = changes(8)
    (drawn,) = traces(layer_figures.change(frame[~frame["layer"].isin([3, 4])], about()), "FFN")
    assert np.isnan(drawn.y).tolist() == [False] * 3 + [True] + [False] * 3


def test_every_second_layer_is_joined():
    frame = changes(9)
    (drawn,) = traces(layer_figures.change(frame[frame["layer"] % 2 == 0], about(9)), "FFN")
    assert not np.isnan(drawn.y).any()


def test_sites_that_were_not_measured_are_left_out():
    figure = layer_figures.flow(means(8, ["mlp_out"]), about())
    assert {trace.name for trace in theme.traces(figure) if trace.name} == {"FFN", "final"}


def test_the_largest_entropy_is_a_dotted_line():
    figure = layer_figures.flow(means(8), about())
    (shape,) = figure.layout.shapes
    assert (shape.y0, shape.line.dash) == (log(448), "dot")
    assert figure.layout.annotations[0].text == "ln V = 6.10"


@depths
def test_change_only_draws_totals(n_layers):
    frame = changes(n_layers)
    figure = layer_figures.change(frame, about(n_layers))
    for change, mark in legend.CHANGES.items():
        (drawn,) = traces(figure, mark.name)
        assert values(drawn).tolist() == of(frame, change=change, part="total")


def test_stages_are_letters_between_dotted_borders():
    spans = [("exploration", 0, 1), ("integration", 2, 4), ("convergence", 5, 7)]
    layout = layer_figures.change(changes(8), about(), spans).layout
    assert [(a.text, a.x) for a in layout.annotations] == [("E", 0.5), ("I", 3), ("C", 6)]
    assert [shape.x0 for shape in layout.shapes if shape.line.dash == "dot"] == [1.5, 4.5]
    assert "E: exploration, I: integration, C: convergence" in layout.xaxis.title.text
    assert layout.annotations[1].hovertext == "integration, layers 2 to 4"


def test_in_print_stages_are_drawn_around_layers_from_1():
    layout = layer_figures.change(changes(8), about(), [("exploration", 0, 1), ("integration", 2, 7)], "paper").layout
    assert [(a.text, a.x, a.hovertext) for a in layout.annotations] == [
        ("E", 1.5, "exploration, layers 1 and 2"),
        ("I", 5.5, "integration, layers 3 to 8"),
    ]
    assert [shape.x0 for shape in layout.shapes if shape.line.dash == "dot"] == [2.5]


def test_a_stage_too_short_for_a_letter_has_none():
    layout = layer_figures.change(changes(80), about(80), [("exploration", 0, 0), ("integration", 1, 79)]).layout
    assert [a.text for a in layout.annotations] == ["I"]


@depths
def test_the_bars_of_direction_and_norm_add_up_to_the_total(n_layers):
    figure = layer_figures.norm_control(changes(n_layers), about(n_layers))
    drawn = zip(*(traces(figure, part) for part in ("direction", "norm", "total")), strict=True)
    for direction, norm, total in drawn:
        assert np.allclose(values(direction) + values(norm), values(total))
    assert len(traces(figure, "total")) == 3
    assert figure.layout.barmode == "relative"


def test_without_the_norm_control_the_error_says_how_to_measure_it():
    with pytest.raises(InputError, match="--readout raw --measures all"):
        layer_figures.norm_control(changes(8, ["total"]), about())


def test_residual_draws_cosines_above_norms():
    cosine, norm = means(8, ["attn_out", "mlp_out"]), means(8)
    figure = layer_figures.residual(cosine, norm, about())
    above, below = traces(figure, "attention")
    assert values(above).tolist() == of(cosine, site="attn_out")
    assert values(below).tolist() == of(norm, site="attn_out")
    assert figure.layout.yaxis2.type == "log"
    assert [trace.showlegend for trace in (above, below)] == [False, True]


def test_convergence_draws_kl_above_settled_tokens():
    kl, settled = means(8), means(8, ["resid_post"]).query("site != 'final'")
    above, below = traces(layer_figures.convergence(kl, settled, about()), "layer output")
    assert values(above).tolist() == of(kl, site="resid_post")
    assert values(below).tolist() == settled["mean"].tolist()


def test_distribution_draws_the_median_and_two_bands():
    frame = quantiles(8)
    wide, middle, median = theme.traces(layer_figures.distribution(frame, about(), "attn_out"))
    assert values(wide).tolist() == [*frame["q95"], *frame["q05"]]
    assert values(middle).tolist() == [*frame["q75"], *frame["q25"]]
    assert values(median).tolist() == frame["q50"].tolist()


def test_a_distribution_at_final_is_labelled_final():
    axis = layer_figures.distribution(quantiles(1).assign(layer=8), about(), "final").layout.xaxis
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True))[8] == "final"
    assert axis.range == (7.4, 8.6)


@pytest.mark.parametrize("what", ["entropy", "change"])
@pytest.mark.parametrize("models", [1, 2, 3, 4])
def test_models_are_compared_at_relative_depth_on_one_axis(what, models):
    sizes = [2, 8, 36, 80][:models]
    frames = {n: changes(n) if what == "change" else means(n) for n in sizes}
    columns = [(about(n, HOSTILE, 448 * n), relative(frame, n)) for n, frame in frames.items()]
    figure = layer_figures.compare(columns, what)
    drawn = traces(figure, "attention")
    key = {"change": "attn", "part": "total"} if what == "change" else {"site": "attn_out"}
    for (n, frame), line in zip(frames.items(), drawn, strict=True):
        assert values(line).tolist() == of(frame, **key)
        assert line.x.tolist() == pytest.approx([(layer + 1) / n for layer in range(n)])
    assert [line.showlegend for line in drawn] == [True] + [False] * (models - 1)
    assert [figure.layout[f"yaxis{n}"].matches for n in range(2, models + 1)] == ["y"] * (models - 1)
    assert "nats" in figure.layout.yaxis.title.text
    headings = [(a.text or "").replace("<br>", " ").replace(",", "") for a in figure.layout.annotations]
    assert sum("20 rollouts 856 tokens" in text for text in headings) == models
    assert HOSTILE not in str(figure.to_dict())


def test_compared_entropies_have_room_for_the_largest_vocabulary():
    figure = layer_figures.compare([(about(8, "a", d), relative(means(8), 8)) for d in (448, 151936)])
    assert figure.layout.yaxis.range[1] > log(151936)


@pytest.mark.parametrize("n_layers", [1, 2, 8, 28, 80])
@both_styles
def test_the_ends_of_the_axis_are_words_beside_the_first_and_last_layer(n_layers, style, first):
    axis = layer_figures.flow(means(n_layers), about(n_layers), style).layout.xaxis
    named = dict(zip(axis.tickvals, axis.ticktext, strict=True))
    assert named.pop(first - 1).removeprefix("<br>") == "emb."
    assert named.pop(n_layers + first).removeprefix("<br>") == "final"
    assert max(named) == n_layers - 1 + first
    assert all(text == str(at) for at, text in named.items())


def test_with_many_layers_words_are_below_the_numbers():
    axis = layer_figures.flow(means(36), about(36)).layout.xaxis
    assert axis.ticktext[-2:] == ("35", "<br>final")


@both_styles
def test_the_axis_says_when_layers_do_not_count_from_0(style, first):
    for figure in (layer_figures.flow(means(8), about(), style), layer_figures.change(changes(8), about(), (), style)):
        assert figure.layout.xaxis.title.text == ("Layer (from 1)" if first else "Layer")
