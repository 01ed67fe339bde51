"""Figures draw the numbers of their frames and say what they are, at any depth, for hostile names and tokens."""

from math import log

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from internal_policy.errors import InputError
from internal_policy.look import layer_figures, theme, token_figures
from internal_policy.look.view import About

SITES = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
HOSTILE = "<b>$x$</b>"
TOKENS = [HOSTILE, " the", "\n", "", "\u202eevil", "<0xF0>", "&amp;", "%{x}", "</script>"]
depths = pytest.mark.parametrize("n_layers", [2, 80])


def about(n_layers: int = 8, model: str = "demo", d_vocab: int = 448) -> About:
    return About(model, "raw", 20, 856, n_layers, d_vocab)


def with_ends(frame: pd.DataFrame) -> pd.DataFrame:
    values = np.random.default_rng(0).uniform(1, 5, len(frame))
    return frame.assign(mean=values, low=values - 0.5, high=values + 0.5)


def means(n_layers: int, sites=SITES) -> pd.DataFrame:
    rows = [(layer, site) for layer in range(n_layers) for site in sites] + [(n_layers, "final")]
    return with_ends(pd.DataFrame(rows, columns=["layer", "site"]))


def changes(n_layers: int, parts=("direction", "norm", "total")) -> pd.DataFrame:
    rows = [(layer, change, part) for layer in range(n_layers) for change in ("attn", "layer", "mlp") for part in parts]
    frame = with_ends(pd.DataFrame(rows, columns=["layer", "change", "part"]))
    total = frame["part"] == "total"
    if len(parts) == 3:  # the rows stand in that order: direction, norm, total
        frame.loc[total, "mean"] = frame.loc[~total, "mean"].to_numpy().reshape(-1, 2).sum(1)
    return frame


def cells(n_layers: int, tokens: int, final: bool = True) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([range(n_layers + final), range(tokens)], names=["layer", "position"])
    return grid.to_frame(index=False).assign(value=np.random.default_rng(0).uniform(0.1, 6, len(grid)))


def response(tokens: int) -> pd.DataFrame:
    return pd.DataFrame({"position": range(tokens), "token": [TOKENS[n % len(TOKENS)] for n in range(tokens)]})


def choices() -> pd.DataFrame:
    rows = [
        (site, rank, TOKENS[rank], 0.5 / rank) for site in ("resid_pre", "attn_out", "resid_post") for rank in (1, 2, 3)
    ]
    frame = pd.DataFrame(rows, columns=["site", "rank", "token", "probability"])
    return frame.assign(before=pd.array([1, 2, 3, 3, 2, 1, None, 1, 2], dtype="Int64"))


def metrics(steps: int = 10) -> pd.DataFrame:
    phase = np.where(np.arange(steps) < 4, "internal", "final")
    frame = pd.DataFrame({"step": range(steps), "phase": phase, "target": 5})
    for name in ("reward", "entropy", "clip_fraction", "perplexity"):
        frame[name] = np.random.default_rng(0).uniform(0, 1, steps)
    return frame.assign(internal_entropy=frame["entropy"].where(frame["phase"] == "internal"))


def dynamics(n_layers: int = 8, steps: int = 10) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([range(steps), range(n_layers)], names=["step", "layer"]).to_frame(index=False)
    values = np.random.default_rng(0).normal(0, 1, len(grid))
    return grid.assign(site="resid_post", change=values, entropy=abs(values), cosine=np.tanh(values))


def quantiles(n_layers: int) -> pd.DataFrame:
    return pd.DataFrame({"layer": range(n_layers), **{f"q{n:02d}": 1.0 + n / 50 for n in (5, 25, 50, 75, 95)}})


def relative(frame: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    return frame.assign(depth=np.minimum((frame["layer"] + 1) / n_layers, 1))


def all_figures(n_layers: int, style: theme.Style, model: str = "demo") -> dict[str, go.Figure]:
    """Every figure that is drawn of one model."""
    one = about(n_layers, model)
    spans = [("exploration", 0, 0), ("convergence", 1, n_layers - 1)]
    settled = means(n_layers, ["resid_post"]).query("site != 'final'")
    return {
        "flow": layer_figures.flow(means(n_layers), one, style),
        "change": layer_figures.change(changes(n_layers), one, spans, style),
        "norm control": layer_figures.norm_control(changes(n_layers), one, style),
        "residual": layer_figures.residual(means(n_layers, ["attn_out", "mlp_out"]), means(n_layers), one, style),
        "convergence": layer_figures.convergence(means(n_layers), settled, one, style),
        "distribution": layer_figures.distribution(quantiles(n_layers), one, "attn_out", "entropy", style),
        "tokens": token_figures.tokens(cells(n_layers, 9), response(9), one, "resid_post", "entropy", style),
        "predictions": token_figures.predictions(choices(), one, 1, 7, style),
    }


def traces(figure: go.Figure, name: str) -> list:
    return [trace for trace in theme.traces(figure) if trace.name == name]


def values(trace) -> np.ndarray:
    y = np.asarray(trace.y, dtype=float)
    return y[~np.isnan(y)]


def of(frame: pd.DataFrame, **where) -> list[float]:
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame["mean"].tolist()


AXES = {
    "flow": ["Entropy (nats)"],
    "change": ["Entropy change (nats)"],
    "norm control": ["layer<br>{} (nats)", "attention<br>{} (nats)", "FFN<br>{} (nats)"],
    "residual": ["Cosine", "Norm"],
    "convergence": ["KL (nats)", "Tokens settled"],
    "distribution": ["Entropy (nats)"],
    "tokens": ["Layer"],
    "predictions": [],
}


@depths
@pytest.mark.parametrize("style", ["screen", "paper"])
def test_axes_say_their_unit(n_layers, style):
    for name, figure in all_figures(n_layers, style).items():
        drawn = [axis.title.text for axis in figure.select_yaxes()] if AXES[name] else []
        assert drawn == [said.format("Δ" if style == "paper" else "change") for said in AXES[name]]


@depths
def test_every_figure_says_readout_and_n(n_layers):
    for figure in all_figures(n_layers, "screen").values():
        for said in (figure.layout.meta["caption"], figure.layout.title.subtitle.text):
            assert "raw hidden states" in said
            assert "rollout" in said
            assert "token" in said


@pytest.mark.parametrize("style", ["screen", "paper"])
def test_a_hostile_model_name_is_drawn_as_it_stands(style):
    for figure in all_figures(2, style, HOSTILE).values():
        drawn = figure.to_dict()
        del drawn["layout"]["meta"]  # plain text, which plotly does not draw
        assert HOSTILE not in str(drawn)


def by_readout(names=("raw", "norm", "tuned", "mine"), n_layers=8, model="demo"):
    """What `plots.readouts` takes: each readout's means are the first one's and its number."""
    return [
        (About(model, name, 20, 856, n_layers, 448), means(n_layers).assign(mean=means(n_layers)["mean"] + number))
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize("measure", ["kl", "entropy"])
def test_readouts_draw_one_line_each_and_the_model_once(measure):
    columns = by_readout()
    figure = layer_figures.readouts(columns, measure)
    words = ["raw hidden states", "through the final norm", "through the tuned lens", "through the mine lens"]
    for (_, frame), name in zip(columns, words, strict=True):
        (drawn,) = traces(figure, name)
        assert values(drawn).tolist() == of(frame, site="resid_post")
    (model,) = traces(figure, "the model")
    assert values(model).tolist() == of(columns[0][1], site="final")
    assert figure.layout.xaxis.ticktext[-1] == "model"
    assert figure.layout.meta["caption"] == "demo · 20 rollouts, 856 tokens"
    assert theme.label(measure) in [axis.title.text for axis in figure.select_yaxes()]


def test_a_readout_looks_alike_in_every_figure():
    one, other = layer_figures.readouts(by_readout()), layer_figures.readouts(by_readout(("tuned", "mine", "norm")))
    for name in ("through the final norm", "through the tuned lens", "through the mine lens"):
        assert traces(one, name)[0].line.color == traces(other, name)[0].line.color


@pytest.mark.parametrize("style", ["screen", "paper"])
def test_a_hostile_name_of_a_lens_or_model_is_drawn_as_it_stands(style):
    drawn = layer_figures.readouts(by_readout(("raw", HOSTILE), model=HOSTILE), "kl", "attn_out", style).to_dict()
    del drawn["layout"]["meta"]
    assert HOSTILE not in str(drawn)


@depths
def test_flow_draws_the_means_from_the_embeddings_to_the_model(n_layers):
    frame = means(n_layers)
    figure = layer_figures.flow(frame, about(n_layers))
    for site in ("attn_out", "mlp_out", "attn_in", "mlp_in"):
        (drawn,) = traces(figure, theme.SITES[site].name)
        assert values(drawn).tolist() == of(frame, site=site)
        assert drawn.x.tolist() == list(range(1, n_layers + 1))
        assert drawn.visible == ("legendonly" if site.endswith("_in") else True)
    (stream,) = traces(figure, "layer output")
    assert values(stream).tolist() == [of(frame, site="resid_pre")[0], *of(frame, site="resid_post")]
    assert stream.x.tolist() == list(range(n_layers + 1))
    (model,) = traces(figure, "the model")
    assert (model.x.tolist(), values(model).tolist()) == ([n_layers + 1], of(frame, site="final"))


def test_bands_run_from_low_to_high():
    frame = means(8)
    bands = [trace for trace in theme.traces(layer_figures.flow(frame, about())) if trace.fill == "toself"]
    (attention,) = [band for band in bands if band.legendgroup == "attention"]
    rows = frame[frame["site"] == "attn_out"]
    assert values(attention).tolist() == [*rows["high"], *rows["low"][::-1]]


def test_one_rollout_has_no_bands():
    frame = means(8).assign(low=np.nan, high=np.nan)
    assert not [trace for trace in theme.traces(layer_figures.flow(frame, about())) if trace.fill]


def test_hovering_says_the_hook_point_value_and_interval():
    (drawn,) = traces(layer_figures.flow(means(8), about()), "attention")
    row = means(8).query("site == 'attn_out' and layer == 5").iloc[0]
    expected = f"layer 6 · 5.attn_out<br>{row['mean']:.4g} ({row['low']:.4g} to {row['high']:.4g}) nats"
    assert drawn.hovertext[5] == expected


def test_a_click_on_a_line_tells_the_layer():
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
    assert {trace.name for trace in theme.traces(figure) if trace.name} == {"FFN", "the model"}


def test_the_largest_entropy_is_a_dotted_line():
    figure = layer_figures.flow(means(8), about())
    (shape,) = figure.layout.shapes
    assert (shape.y0, shape.line.dash) == (log(448), "dot")
    assert figure.layout.annotations[0].text == "ln V = 6.10"


@depths
def test_change_draws_the_totals_alone(n_layers):
    frame = changes(n_layers)
    figure = layer_figures.change(frame, about(n_layers))
    for change, mark in theme.CHANGES.items():
        (drawn,) = traces(figure, mark.name)
        assert values(drawn).tolist() == of(frame, change=change, part="total")


def test_stages_are_letters_between_dotted_borders():
    spans = [("exploration", 0, 1), ("integration", 2, 4), ("convergence", 5, 7)]
    layout = layer_figures.change(changes(8), about(), spans).layout
    assert [(a.text, a.x) for a in layout.annotations] == [("E", 1.5), ("I", 4), ("C", 7)]
    assert [shape.x0 for shape in layout.shapes if shape.line.dash == "dot"] == [2.5, 5.5]
    assert "E exploration, I integration, C convergence" in layout.xaxis.title.text


def test_where_a_stage_is_too_short_for_a_letter_it_has_none():
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


def test_without_the_norm_control_it_says_how_to_measure_it():
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


def test_convergence_draws_kl_above_what_has_settled():
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
    assert sum("20 rollouts, 856 tokens" in (a.text or "") for a in figure.layout.annotations) == models
    assert HOSTILE not in str(figure.to_dict())


def test_compared_entropies_have_room_for_the_largest_vocabulary():
    figure = layer_figures.compare([(about(8, "a", d), relative(means(8), 8)) for d in (448, 151936)])
    assert figure.layout.yaxis.range[1] > log(151936)


def test_pass_at_k_draws_a_curve_a_label():
    frame = with_ends(pd.DataFrame({"label": ["GRPO"] * 3 + [HOSTILE] * 3, "k": [1, 2, 4] * 2}))
    figure = layer_figures.pass_at_k(frame)
    (drawn,) = traces(figure, "GRPO")
    assert (drawn.x.tolist(), values(drawn).tolist()) == ([1, 2, 4], of(frame, label="GRPO"))
    assert HOSTILE not in str(figure.to_dict())


@depths
def test_the_heatmap_of_tokens_draws_the_cells(n_layers):
    frame = cells(n_layers, 9)
    heat, markers = theme.traces(token_figures.tokens(frame, response(9), about(n_layers), "resid_post", "entropy"))
    assert heat.z == pytest.approx(frame["value"].to_numpy().reshape(n_layers + 1, 9), rel=1e-6)
    assert (heat.x.tolist(), heat.y.tolist()) == (list(range(9)), list(range(1, n_layers + 2)))
    assert (heat.zmin, heat.zmax) == (0, log(448))
    assert {tuple(point[:2]) for point in markers.customdata} == {*zip(frame["layer"], frame["position"], strict=True)}
    points = {point[0]: point[2] for point in markers.customdata}
    assert (points[1], points[n_layers]) == ("layer 2 · 1.resid_post", "the model · final")
    assert (markers.marker.opacity, markers.unselected.marker.opacity, markers.selected.marker.opacity) == (0, 0, 1)


def test_many_cells_are_drawn_by_webgl():
    figure = token_figures.tokens(cells(80, 100), response(100), about(80), "resid_post", "entropy")
    assert theme.traces(figure)[1].type == "scattergl"


def test_more_tokens_than_can_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="at most 512"):
        token_figures.tokens(cells(2, 513), response(513), about(2), "resid_post", "entropy")


def test_hostile_tokens_are_drawn_as_they_stand():
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


def test_a_heatmap_says_the_n_of_what_it_shows():
    figure = token_figures.tokens(cells(2, 9), response(9), about(2), "resid_post", "entropy")
    assert "1 rollout, 9 tokens" in figure.layout.meta["caption"]


@pytest.mark.parametrize("measure", ["change", "cosine"])
def test_what_has_a_sign_is_coloured_symmetrically(measure):
    frame = cells(2, 9, final=False)
    frame["value"] -= 5
    heat = theme.traces(token_figures.tokens(frame, response(9), about(2), "attn_out", measure))[0]
    assert heat.zmin == -heat.zmax == pytest.approx(-frame["value"].abs().max())


def test_ranks_are_coloured_by_their_logarithm():
    frame = cells(2, 9).assign(value=[1, 10, 100] * 9)
    heat = theme.traces(token_figures.tokens(frame, response(9), about(2), "resid_post", "rank"))[0]
    assert heat.z[0, :3] == pytest.approx([0, 1, 2])
    assert list(heat.colorbar.ticktext) == ["1", "10", "100"]


def test_the_colour_bar_says_the_unit():
    for measure, title in {"kl": "KL from the model (nats)", "change": "Entropy change (nats)", "norm": "Norm"}.items():
        heat = theme.traces(token_figures.tokens(cells(2, 9), response(9), about(2), "attn_out", measure))[0]
        assert heat.colorbar.title.text == title


def test_predictions_say_how_far_a_token_has_moved():
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


@pytest.mark.parametrize("measure", ["change", "entropy", "cosine"])
def test_dynamics_draws_layers_by_steps_with_reward_below(measure):
    frame, reward = dynamics(), metrics()
    figure = token_figures.dynamics(frame, reward, HOSTILE, measure, "resid_post")
    heat, below = theme.traces(figure)
    assert heat.z == pytest.approx(frame[measure].to_numpy().reshape(10, 8).T, rel=1e-5)
    assert (heat.x.tolist(), heat.y.tolist()) == (list(range(10)), list(range(1, 9)))
    assert values(below).tolist() == reward["reward"].tolist()
    assert {shape.x0 for shape in figure.layout.shapes} == {3.5}
    assert figure.layout.xaxis.matches == "x2"
    assert figure.layout.title.subtitle.text == theme.inert(HOSTILE)


def test_the_model_stands_above_the_outputs_of_the_layers():
    final = pd.DataFrame({"step": range(10), "layer": 8, "site": "final", "entropy": 0.5, "change": np.nan})
    frame = pd.concat([dynamics(), final])
    figure = token_figures.dynamics(frame, None, "demo", "entropy", "resid_post")
    (heat,) = theme.traces(figure)
    assert heat.z[8].tolist() == [0.5] * 10
    assert figure.layout.yaxis.ticktext[-1] == "model"
    assert heat.text[8][0] == "the model · final"
    (without,) = theme.traces(token_figures.dynamics(frame, None, "demo", "change", "resid_post"))
    assert len(without.z) == 8


def test_only_the_layers_that_were_compared_have_rows():
    frame = dynamics().assign(kl=1.0)
    frame["kl"] = frame["kl"].where(frame["layer"] > 5)
    (heat,) = theme.traces(token_figures.dynamics(frame, None, "demo", "kl", "resid_post"))
    assert heat.y.tolist() == [7, 8]
    assert heat.colorbar.title.text == "KL from the trained layer (nats)"


def followed(n_layers: int = 8) -> pd.DataFrame:
    """Layer 2 compared with the later ones and the model."""
    frame = dynamics(n_layers).assign(kl=lambda rows: rows["layer"] / 10, change=-1.0)
    frame[["cosine", "kl"]] = frame[["cosine", "kl"]].where(frame["layer"] > 2)
    final = pd.DataFrame({"step": range(10), "layer": n_layers, "site": "final", "kl": 0.1})
    mlp = pd.DataFrame({"step": range(10), "layer": 2, "site": "mlp_out", "change": 2.0})
    return pd.concat([frame, final, mlp], ignore_index=True)


def test_the_trained_layer_is_drawn_beside_later_ones():
    frame = followed()
    figure = token_figures.trained(frame, metrics(), 2, "demo")
    for layer in range(3, 8):
        cosine, kl = traces(figure, f"layer {layer + 1}")
        assert values(cosine).tolist() == frame.query("layer == @layer and site == 'resid_post'")["cosine"].tolist()
        assert set(values(kl)) == {layer / 10}
        assert (cosine.showlegend, kl.showlegend) == (True, False)
    (model,) = traces(figure, "the model")
    assert set(values(model)) == {0.1}
    assert set(values(traces(figure, "FFN")[0])) == {2.0}
    assert set(values(traces(figure, "layer")[0])) == {-1.0}
    assert not traces(figure, "layer 3")
    assert not traces(figure, "attention")
    assert [axis.title.text for axis in figure.select_yaxes()] == ["Cosine", "KL (nats)", "Δ entropy (nats)"]
    assert {shape.x0 for shape in figure.layout.shapes if shape.line.dash == "dot"} == {3.5}


def test_of_many_later_layers_six_are_drawn_from_the_next_to_the_last():
    figure = token_figures.trained(followed(80), metrics(), 2, "demo")
    names = {trace.name for trace in theme.traces(figure) if trace.name.startswith("layer ")}
    assert len(names) == 6
    assert {"layer 4", "layer 80"} <= names


def test_the_last_layer_is_compared_with_the_model_alone():
    frame = followed().query("site != 'resid_post' or layer <= 2")
    figure = token_figures.trained(frame, metrics(), 2, "demo")
    assert [axis.title.text for axis in figure.select_yaxes()] == ["KL (nats)", "Δ entropy (nats)"]


def test_a_layer_of_which_nothing_is_known_is_refused():
    with pytest.raises(InputError, match="Layer 3 has neither"):
        token_figures.trained(dynamics()[["step", "layer", "site", "entropy"]], metrics(), 2)


def test_steps_without_a_value_do_not_break_a_line():
    frame = metrics().assign(perplexity=[np.nan, 2.0] * 5)
    (drawn,) = traces(token_figures.training(frame), "perplexity")
    assert (drawn.x.tolist(), drawn.y.tolist()) == ([1, 3, 5, 7, 9], [2.0] * 5)


def test_dynamics_go_without_metrics():
    assert len(theme.traces(token_figures.dynamics(dynamics(), None, "demo", "entropy", "resid_post"))) == 1


def test_training_draws_the_metrics_and_the_switch():
    frame = metrics()
    figure = token_figures.training(frame, "demo", "paper")
    for name in ("whole policy", "internal policy", "reward", "clip fraction", "perplexity"):
        column = {"whole policy": "entropy", "internal policy": "internal_entropy"}.get(name, name.replace(" ", "_"))
        (drawn,) = traces(figure, name)
        assert values(drawn).tolist() == frame[column].dropna().tolist()
    assert "nats" in figure.layout.yaxis.title.text
    assert [shape.x0 for shape in figure.layout.shapes] == [3.5] * 4


def test_training_leaves_out_what_was_not_recorded():
    figure = token_figures.training(metrics()[["step", "reward", "phase"]])
    assert [trace.name for trace in theme.traces(figure)] == ["reward"]


@pytest.mark.parametrize("n_layers", [2, 8, 80])
def test_the_star_of_the_model_stands_at_no_layer_number(n_layers):
    axis = layer_figures.flow(means(n_layers), about(n_layers)).layout.xaxis
    named = dict(zip(axis.tickvals, axis.ticktext, strict=True))
    assert named[0] == "emb."
    assert named[n_layers + 1] == "model"
    assert max(int(text) for text in named.values() if text.isdecimal()) <= n_layers


def test_a_tiny_probability_is_no_row_of_digits():
    frame = pd.DataFrame({"site": ["resid_post"] * 2, "rank": [1, 2], "id": [5, 6], "token": ["a", "b"]})
    frame = frame.assign(probability=[0.25, 3e-21], before=pd.array([1, 2], dtype="Int64"))
    (table,) = theme.traces(token_figures.predictions(frame, about(), 1, 0))
    shown = " ".join(str(cell) for column in table.cells.values for cell in column)
    assert "25%" in shown
    assert "~0%" in shown
