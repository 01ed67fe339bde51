"""Results of training runs and their intervals, checked against numbers worked out by hand."""

from math import isnan, sqrt

import experiments  # pyright: ignore[reportMissingImports]
import numpy as np
import outcomes  # pyright: ignore[reportMissingImports]
import pandas as pd
import pytest

from internal_policy.look import theme

T2 = 4.302652729911275
"""Student's t at 97.5% with 2 degrees of freedom (three seeds), from a table."""


def run(method: str, seed: int, marks: dict[float, float], layer: int = 6, internal: int = 0, model: str = "a") -> list:
    """One row per evaluation; `marks` are CPU seconds -> Avg@K."""
    return [
        {"model": model, "method": method, "layer": layer, "internal_steps": internal, "seed": seed, "step": step}
        | {"learning_rate": 1e-4, "cpu_seconds": seconds, "avg": avg, "problems": 174, "samples": 8}
        for step, (seconds, avg) in enumerate(marks.items(), start=1)
    ]


def evaluations() -> pd.DataFrame:
    rows: list = [
        {"model": "a", "method": "untrained", "step": 0, "cpu_seconds": 0.0, "avg": 0.4, "problems": 174, "samples": 8}
    ]
    for seed, (grpo, bupo) in enumerate([(0.60, 0.63), (0.62, 0.64), (0.64, 0.65)]):
        rows += run("grpo", seed, {60.0: 0.5, 100.0: grpo}) + run("bupo", seed, {40.0: 0.5, 80.0: bupo}, internal=10)
    rows += run("bupo", 0, {40.0: 0.5, 80.0: 0.3}, layer=1, internal=10)
    rows += run("bupo", 0, {40.0: 0.5, 80.0: 0.2}, internal=30)
    return pd.DataFrame(rows + run("grpo", experiments.CHOOSING, {50.0: 0.99}))


def row(**where) -> pd.Series:
    found = experiments.table(evaluations())
    for name, value in where.items():
        found = found[found[name] == value]
    (only,) = found.to_dict("records")
    return pd.Series(only)


BUPO = {"method": "bupo", "layer": 6, "internal_steps": 10}


def test_the_interval_is_students_t():
    # mean 2, standard deviation 1, so 2 -+ t / sqrt 3
    assert experiments.interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2, 2 - T2 / sqrt(3), 2 + T2 / sqrt(3)))


def test_one_seed_has_no_interval_and_none_has_no_mean():
    mean, low, high = experiments.interval(np.array([5.0]))
    assert mean == 5
    assert isnan(low)
    assert isnan(high)
    assert isnan(experiments.interval(np.array([]))[0])


def test_runs_that_chose_the_learning_rate_are_not_reported():
    assert experiments.CHOOSING not in set(experiments.ends(evaluations())["seed"])
    assert row(method="grpo")["avg"] == pytest.approx(0.62)


def test_a_run_is_reported_at_its_last_evaluation():
    assert set(experiments.ends(evaluations())["step"]) == {2}
    assert row(**BUPO)["avg"] == pytest.approx(0.64)
    assert row(**BUPO)["cpu_seconds"] == 80


def test_runs_are_paired_by_seed():
    found = row(**BUPO)  # 0.03, 0.02, 0.01: mean 0.02, standard deviation 0.01
    assert (found["seeds"], found["pairs"]) == (3, 3)
    assert found["difference"] == pytest.approx(0.02)
    assert found["difference_high"] - found["difference"] == pytest.approx(T2 * 0.01 / sqrt(3))
    assert isnan(row(method="grpo")["difference"])


def test_avg_is_interpolated_between_evaluations_from_the_untrained_model_on():
    frame, grpo = evaluations(), {"model": "a", "method": "grpo", "layer": 6, "internal_steps": 0, "seed": 0}
    marks = {0.0: 0.4, 30.0: 0.45, 60.0: 0.5, 80.0: 0.55, 100.0: 0.6}
    for seconds, avg in marks.items():
        assert experiments.at(frame, grpo, seconds) == pytest.approx(avg)
    assert isnan(experiments.at(frame, grpo, 101.0))


def test_equal_compute_is_where_the_faster_run_ended():
    # at 80 s GRPO is halfway from 0.5 to 0.60, 0.62, 0.64: 0.55, 0.56, 0.57; BuPO has just ended
    found = experiments.pairs(evaluations()).query("method == 'bupo' and layer == 6 and internal_steps == 10")
    assert found["seconds"].tolist() == [80, 80, 80]
    assert found["equal"].tolist() == pytest.approx([0.08, 0.08, 0.08])
    assert row(**BUPO)["equal"] == pytest.approx(0.08)


def test_a_seed_without_a_grpo_run_is_not_paired():
    frame = evaluations()
    frame = frame[~((frame["method"] == "grpo") & (frame["seed"] == 2))]
    assert experiments.pairs(frame).query("internal_steps == 10 and layer == 6")["seed"].tolist() == [0, 1]


def test_the_main_comparison_is_at_grpos_layer_with_the_shortest_phase():
    found = experiments.main(experiments.table(evaluations()))
    assert found[["method", "layer", "internal_steps"]].to_numpy().tolist() == [["grpo", 6, 0], ["bupo", 6, 10]]


def test_the_grid_has_every_layer_and_length_of_bupo():
    found = experiments.grid(experiments.table(evaluations()))
    assert found[["layer", "internal_steps"]].to_numpy().tolist() == [[1, 10], [6, 10], [6, 30]]


def steps() -> pd.DataFrame:
    rewards = {0: [0.0, 0.2, 0.4, 0.6], 1: [0.2, 0.4, 0.6, 0.8]}
    rows = [
        {"model": "a", "method": "grpo", "layer": 6, "internal_steps": 0, "seed": seed, "step": step, "reward": reward}
        for seed, values in rewards.items()
        for step, reward in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows).sort_values("step", ascending=False)


def test_rewards_are_averaged_over_the_steps_before_and_then_over_seeds():
    found = experiments.rewards(steps(), 2)
    assert found["step"].tolist() == [2, 3, 4]
    assert found["mean"].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert set(found["seeds"]) == {2}


def test_sentences_claim_no_more_than_the_intervals():
    said = experiments.sentences(experiments.table(evaluations()))
    assert len(said) == 3
    (bupo,) = [line for line in said if "layer 6, 10 steps" in line]
    assert bupo.startswith("a, BuPO, layer 6, 10 steps vs. GRPO over 3 seeds: +2.0 points (-0.5 to +4.5: no difference")
    assert "+8.0 points" in bupo
    (alone,) = [line for line in said if "layer 1" in line]
    assert "over 1 seed: -30.0 points (one seed: no interval) at the end" in alone


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.01, 0.03, "above"), (-0.03, -0.01, "below")])
def test_an_interval_that_excludes_zero_gives_a_verdict(low, high, verdict):
    table = experiments.table(evaluations()).query("method == 'bupo' and internal_steps == 10 and layer == 6")
    (said,) = experiments.sentences(table.assign(difference=(low + high) / 2, difference_low=low, difference_high=high))
    assert f"{verdict} GRPO) at the end" in said


def test_the_readable_table_is_in_percent():
    found = experiments.shown(experiments.table(evaluations())).set_index("method")
    assert found.loc["GRPO", "Avg@K (%)"] == "62.0 (57.0 to 67.0)"  # 0.62 -+ t 0.02 / sqrt 3
    assert found.loc["GRPO", "vs. GRPO"] == ""
    assert found.loc["BuPO, layer 1, 10 steps", "vs. GRPO"] == "-30.0"


@pytest.mark.parametrize("style", ["screen", "paper"])
def test_results_have_a_dot_per_seed_and_a_mean_with_its_interval(style):
    frame = evaluations()
    table, ends = experiments.table(frame), experiments.ends(frame)
    figure = outcomes.reached(table, ends, experiments.untrained(frame), style)
    dots, means = theme.traces(figure)[::2], theme.traces(figure)[1::2]
    assert [len(dot.x) for dot in dots] == table["seeds"].tolist()[::-1]
    assert [mean.x[0] for mean in means] == pytest.approx((100 * table["avg"]).tolist()[::-1])
    high = (100 * (table["avg_high"] - table["avg"])).fillna(0).tolist()[::-1]
    assert [mean.error_x.array[0] for mean in means] == pytest.approx(high)
    (before,) = figure.layout.shapes
    assert before.x0 == pytest.approx(40)
    low, high = figure.layout.xaxis.range
    assert low < 20 < 67 < high
    assert figure.layout.xaxis.title.text == "Avg@8 on held-out problems (%)"
    assert "174 problems" in figure.layout.meta["caption"]


def test_models_share_one_axis():
    frame = pd.concat([evaluations(), evaluations().assign(model="<b>")])
    figure = outcomes.reached(experiments.table(frame), experiments.ends(frame), experiments.untrained(frame))
    assert figure.layout.yaxis2.title.text == "a"
    assert figure.layout.xaxis.matches == "x2"
    assert "'<b>'" not in str({**figure.to_dict()["layout"], "meta": None})


def test_the_grid_shows_means_and_is_coloured_by_the_difference():
    figure = outcomes.grid(experiments.grid(experiments.table(evaluations())), "a")
    (heat,) = theme.traces(figure)
    assert list(figure.layout.yaxis.ticktext) == ["1", "6"]
    assert list(figure.layout.xaxis.ticktext) == ["10", "30"]
    assert heat.z[1, 0] == pytest.approx(2)
    assert np.isnan(heat.z[0, 1])
    assert (heat.text[0][1], heat.text[1][1]) == ("", "20.0%<br>-40.0")
    assert heat.text[1][0].startswith("64.0%<br>+2.0 (-0.5 to +4.5)")
    assert heat.zmin == -heat.zmax
    assert "1 to 3 seeds" in figure.layout.meta["caption"]


def test_in_print_trained_layers_count_from_1_and_the_figures_say_so():
    frame = evaluations()
    table = experiments.table(frame)
    grid = outcomes.grid(experiments.grid(table), "a", "paper")
    assert list(grid.layout.yaxis.ticktext) == ["2", "7"]
    assert grid.layout.yaxis.title.text == "Trained layer (from 1)"
    reached = outcomes.reached(table, experiments.ends(frame), experiments.untrained(frame), "paper")
    assert "BuPO, layer 7 (from 1), 10 steps (3)" in reached.layout.yaxis.ticktext


def test_reward_curves_say_how_they_are_smoothed():
    frame = experiments.rewards(steps(), 2)
    figure = outcomes.rewards(frame, 2, "a")
    (line,) = [trace for trace in theme.traces(figure) if trace.name == "GRPO"]
    assert [y for y in line.y if not np.isnan(y)] == pytest.approx(frame["mean"].tolist())
    assert "each point averages the last 2 steps · mean over 2 seeds, bands" in figure.layout.meta["caption"]


def test_more_than_two_methods_have_no_bands():
    frame = experiments.rewards(steps(), 2)
    many = pd.concat([frame.assign(method=method) for method in ("grpo", "rloo", "tenth")])
    figure = outcomes.rewards(many, 2)
    assert not [trace for trace in theme.traces(figure) if trace.fill]
    assert "bands" not in figure.layout.meta["caption"]
