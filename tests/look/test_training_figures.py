"""Figures of a training run draw its steps, layers and results."""

import numpy as np
import pandas as pd
import pytest
from small_figures import HOSTILE, dynamics, metrics, of, traces, values, with_ends

from internal_policy.errors import InputError
from internal_policy.look import exam_figure, theme, training_figures


def test_pass_at_k_draws_a_curve_a_label():
    frame = with_ends(pd.DataFrame({"label": ["GRPO"] * 3 + [HOSTILE] * 3, "k": [1, 2, 4] * 2}))
    figure = exam_figure.pass_at_k(frame)
    (drawn,) = traces(figure, "GRPO")
    assert (drawn.x.tolist(), values(drawn).tolist()) == ([1, 2, 4], of(frame, label="GRPO"))
    assert HOSTILE not in str(figure.to_dict())


@pytest.mark.parametrize("measure", ["change", "entropy", "cosine"])
def test_dynamics_draws_layers_by_steps_with_reward_below(measure):
    frame, reward = dynamics(), metrics()
    figure = training_figures.dynamics(frame, reward, HOSTILE, measure, "resid_post")
    heat, below = theme.traces(figure)
    assert heat.z == pytest.approx(frame[measure].to_numpy().reshape(10, 8).T, rel=1e-5)
    assert (heat.x.tolist(), heat.y.tolist()) == (list(range(10)), list(range(8)))
    assert values(below).tolist() == reward["reward"].tolist()
    assert {shape.x0 for shape in figure.layout.shapes if shape.type == "line"} == {3.5}
    assert figure.layout.xaxis.matches == "x2"
    assert figure.layout.title.subtitle.text == f"layer output · {theme.inert(HOSTILE)}"


def test_final_is_the_row_above_the_layers():
    final = pd.DataFrame({"step": range(10), "layer": 8, "site": "final", "entropy": 0.5, "change": np.nan})
    frame = pd.concat([dynamics(), final])
    figure = training_figures.dynamics(frame, None, "demo", "entropy", "resid_post")
    (heat,) = theme.traces(figure)
    assert heat.z[8].tolist() == [0.5] * 10
    assert (figure.layout.yaxis.ticktext[-2:], figure.layout.yaxis.tickvals[-2:]) == (("7", "final"), (7, 8))
    assert (heat.text[7][0], heat.text[8][0]) == (
        "layer 7 · layer output (7.resid_post)",
        "final · the model's own policy",
    )
    (without,) = theme.traces(training_figures.dynamics(frame, None, "demo", "change", "resid_post"))
    assert len(without.z) == 8


def test_only_the_layers_that_were_compared_have_rows():
    frame = dynamics().assign(kl=1.0)
    frame["kl"] = frame["kl"].where(frame["layer"] > 5)
    (heat,) = theme.traces(training_figures.dynamics(frame, None, "demo", "kl", "resid_post"))
    assert heat.y.tolist() == [6, 7]
    assert heat.colorbar.title.text == "KL from the trained layer (nats)"


def followed(n_layers: int = 8) -> pd.DataFrame:
    """Layer 2, compared with later layers and `final`."""
    frame = dynamics(n_layers).assign(kl=lambda rows: rows["layer"] / 10, change=-1.0)
    frame[["cosine", "kl"]] = frame[["cosine", "kl"]].where(frame["layer"] > 2)
    final = pd.DataFrame({"step": range(10), "layer": n_layers, "site": "final", "kl": 0.1})
    mlp = pd.DataFrame({"step": range(10), "layer": 2, "site": "mlp_out", "change": 2.0})
    return pd.concat([frame, final, mlp], ignore_index=True)


def test_the_trained_layer_is_compared_with_later_ones():
    frame = followed()
    figure = training_figures.trained(frame, metrics(), 2, "demo")
    for layer in range(3, 8):
        cosine, kl = traces(figure, f"layer {layer}")
        assert values(cosine).tolist() == frame.query("layer == @layer and site == 'resid_post'")["cosine"].tolist()
        assert set(values(kl)) == {layer / 10}
        assert (cosine.showlegend, kl.showlegend) == (True, False)
    (final,) = traces(figure, "final")
    assert set(values(final)) == {0.1}
    assert figure.layout.meta["title"].startswith("Layer 2 compared with")
    assert set(values(traces(figure, "FFN")[0])) == {2.0}
    assert set(values(traces(figure, "layer")[0])) == {-1.0}
    assert not traces(figure, "layer 2")
    assert not traces(figure, "attention")
    assert [axis.title.text for axis in figure.select_yaxes()] == ["Cosine", "KL (nats)", "Δ entropy (nats)"]
    assert {shape.x0 for shape in figure.layout.shapes if shape.line.dash == "dot"} == {3.5}


def test_at_most_six_later_layers_are_drawn_from_the_next_to_the_last():
    figure = training_figures.trained(followed(80), metrics(), 2, "demo")
    names = {trace.name for trace in theme.traces(figure) if trace.name.startswith("layer ")}
    assert len(names) == 6
    assert {"layer 3", "layer 79"} <= names


def test_in_print_layers_count_from_1_and_the_figure_says_so():
    figure = training_figures.trained(followed(), metrics(), 2, "demo", "paper")
    assert {trace.name for trace in theme.traces(figure)} >= {"layer 4", "layer 8", "final"}
    assert figure.layout.xaxis3.title.text == "Step (layers from 1)"
    heat = theme.traces(training_figures.dynamics(dynamics(), None, "demo", "entropy", "resid_post", "paper"))[0]
    assert heat.y.tolist() == list(range(1, 9))


def test_the_last_layer_is_only_compared_with_final():
    frame = followed().query("site != 'resid_post' or layer <= 2")
    figure = training_figures.trained(frame, metrics(), 2, "demo")
    assert [axis.title.text for axis in figure.select_yaxes()] == ["KL (nats)", "Δ entropy (nats)"]


def test_a_layer_without_data_is_refused():
    with pytest.raises(InputError, match="Layer 2 has no entropy change"):
        training_figures.trained(dynamics()[["step", "layer", "site", "entropy"]], metrics(), 2)


def test_steps_without_a_value_do_not_break_a_line():
    frame = metrics().assign(perplexity=[np.nan, 2.0] * 5)
    (drawn,) = traces(training_figures.training(frame), "perplexity")
    assert (drawn.x.tolist(), drawn.y.tolist()) == ([1, 3, 5, 7, 9], [2.0] * 5)


def test_dynamics_can_be_drawn_without_metrics():
    assert len(theme.traces(training_figures.dynamics(dynamics(), None, "demo", "entropy", "resid_post"))) == 1


def test_training_draws_the_metrics_and_the_switch():
    frame = metrics()
    figure = training_figures.training(frame, "demo", "paper")
    for name in ("whole policy", "internal policy", "reward", "clip fraction", "perplexity"):
        column = {"whole policy": "entropy", "internal policy": "internal_entropy"}.get(name, name.replace(" ", "_"))
        (drawn,) = traces(figure, name)
        assert values(drawn).tolist() == frame[column].dropna().tolist()
    assert "nats" in figure.layout.yaxis.title.text
    assert [shape.x0 for shape in figure.layout.shapes] == [3.5] * 4


def test_every_switch_to_another_policy_is_marked():
    targets = ["2.resid_post"] * 2 + ["5.mlp_out@norm"] * 3 + ["final"] * 5
    frame = metrics().assign(target=targets, phase=["internal"] * 5 + ["final"] * 5)
    figure = training_figures.training(frame)
    assert {shape.x0 for shape in figure.layout.shapes} == {1.5, 4.5}


def test_each_of_several_rewards_is_drawn_beside_their_weighted_sum():
    frame = metrics().assign(**{"reward/box": 0.5, "reward/brief": 0.25})
    figure = training_figures.training(frame)
    rows = {name: traces(figure, name)[0].yaxis for name in ("box", "brief", "weighted sum", "perplexity")}
    assert rows["box"] == rows["brief"] == rows["weighted sum"] != rows["perplexity"]
    assert values(traces(figure, "brief")[0]).tolist() == [0.25] * len(frame)
    assert not traces(training_figures.training(metrics()), "box")


def test_training_leaves_out_what_was_not_recorded():
    figure = training_figures.training(metrics()[["step", "reward", "phase"]])
    assert [trace.name for trace in theme.traces(figure)] == ["reward"]


def test_a_share_of_clipped_tokens_is_not_drawn_below_0():
    figure = training_figures.training(metrics().assign(clip_fraction=0.0))
    modes = {axis.title.text: axis.rangemode for axis in figure.select_yaxes()}
    assert modes["Clipped"] == "nonnegative"
    assert modes["Perplexity"] == "normal"


def test_a_difference_is_from_the_first_scan_in_colours_around_0():
    frame = dynamics()
    heat = theme.traces(training_figures.dynamics(frame, None, "demo", "entropy", "resid_post", difference=True))[0]
    grid = frame["entropy"].to_numpy().reshape(10, 8).T
    assert heat.x.tolist() == list(range(1, 10))
    assert heat.z == pytest.approx(grid[:, 1:] - grid[:, :1], abs=1e-6)
    assert heat.zmin == -heat.zmax
    assert heat.colorbar.title.text == "since step 0 (nats)"


def test_a_difference_of_one_scan_is_refused():
    with pytest.raises(InputError, match=r"There is only one scan with entropy, at step 0, and a difference needs two"):
        training_figures.dynamics(dynamics(steps=1), None, "demo", "entropy", "resid_post", difference=True)


def test_the_trained_layer_can_be_compared_with_step_0():
    figure = training_figures.trained(followed(), metrics(), 2, "demo", difference=True)
    assert set(values(traces(figure, "FFN")[0])) == {0.0}
    assert traces(figure, "FFN")[0].x.tolist() == list(range(1, 10))
    assert figure.layout.meta["title"] == "Layer 2 and later layers, Δ since step 0"


@pytest.mark.parametrize(("style", "row"), [("screen", 5), ("paper", 6)])
def test_a_frame_surrounds_the_layer_while_it_was_trained(style, row):
    reward = metrics().assign(target=["5.resid_post"] * 4 + ["final"] * 6)
    figure = training_figures.dynamics(dynamics(), reward, "demo", "entropy", "resid_post", style)
    framed = {(s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes if s.type == "rect"}
    assert framed == {(-0.5, 3.5, row - 0.5, row + 0.5)}
    assert "framed" in figure.layout.meta["caption"]


def test_a_hostile_target_is_not_framed():
    figure = training_figures.dynamics(dynamics(), metrics().assign(target=HOSTILE), "demo", "entropy", "resid_post")
    assert "framed" not in figure.layout.meta["caption"]


def test_a_smoothed_curve_averages_the_last_steps_before_the_raw_one_faint():
    frame = metrics()
    raw, smooth = traces(training_figures.training(frame, window=3), "reward")
    assert raw.y.tolist() == frame["reward"].tolist()
    assert smooth.y[:2] == pytest.approx([frame["reward"][0], frame["reward"][:2].mean()])
    assert smooth.y[5] == pytest.approx(frame["reward"][3:6].mean())
    assert raw.opacity < smooth.opacity
    frame["perplexity"] = frame["perplexity"].where(frame["step"] % 3 == 0)
    sparse = traces(training_figures.training(frame, window=3), "perplexity")[1]
    assert sparse.y == pytest.approx(frame["perplexity"].dropna())  # only one value in any 3 steps
    assert raw.hoverinfo == "skip"


def test_several_runs_have_a_colour_each_and_their_names_are_inert():
    tables = {HOSTILE: metrics(), "b": metrics().drop(columns="perplexity")}
    figure = training_figures.several(tables, "2 runs", window=2)
    assert HOSTILE not in str(figure.to_dict())
    assert len({trace.line.color for trace in theme.traces(figure)}) == 2
    assert len({(trace.line.color, trace.marker.symbol) for trace in theme.traces(figure)}) == 2
    assert [trace.name for trace in theme.traces(figure) if trace.showlegend] == [theme.inert(HOSTILE), "b"]
    assert {shape.line.color for shape in figure.layout.shapes} == {colour for colour, _ in training_figures.RUNS[:2]}


def test_curves_are_as_dark_as_their_labels():
    assert {mark.colour for mark in training_figures.QUANTITIES.values()}.isdisjoint({theme.GREY, theme.SOFT})
