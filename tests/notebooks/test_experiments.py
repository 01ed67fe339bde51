"""Results of training runs and their intervals, checked against numbers worked out by hand."""

import re
from math import isnan, sqrt

import experiments  # pyright: ignore[reportMissingImports]
import laptop  # pyright: ignore[reportMissingImports]
import numpy as np
import outcomes  # pyright: ignore[reportMissingImports]
import pandas as pd
import pytest
from experiment import plan  # pyright: ignore[reportMissingImports]
from experiment.plan import Sizes  # pyright: ignore[reportMissingImports]

from internal_policy.look import theme

T2 = 4.302652729911275
"""Student's t at 97.5% with 2 degrees of freedom (three seeds), from a table."""
LEVEL = 0.025 / 3
T2_OF_3 = (1 - 2 * LEVEL) / sqrt(2 * LEVEL * (1 - LEVEL))
"""The same for three comparisons; with 2 degrees of freedom the quantile has a closed form."""


def run(method: str, seed: int, marks: dict[float, float], layer: int = 6, internal: int = 0, model: str = "a") -> list:
    """One row per exam, 10 steps apart; `marks` are operations -> Avg@K."""
    return [
        {
            "model": model,
            "method": method,
            "layer": layer,
            "internal_steps": internal,
            "seed": seed,
            "step": 10 * number,
        }
        | {"learning_rate": 1e-4, "flops": flops, "avg": avg, "problems": 174, "samples": 8}
        for number, (flops, avg) in enumerate(marks.items(), start=1)
    ]


def evaluations() -> pd.DataFrame:
    rows: list = [
        {"model": "a", "method": "untrained", "step": 0, "flops": 0.0, "avg": 0.4, "problems": 174, "samples": 8}
    ]
    for seed, (grpo, bupo) in enumerate([(0.60, 0.63), (0.62, 0.64), (0.64, 0.65)]):
        rows += run("grpo", seed, {60.0: 0.5, 100.0: grpo}, layer=-1)
        rows += run("bupo", seed, {40.0: 0.45, 80.0: bupo}, internal=10)
    rows += run("bupo", 0, {40.0: 0.42, 80.0: 0.3}, layer=1, internal=10)
    rows += run("bupo", 0, {40.0: 0.5, 80.0: 0.2}, internal=20)
    return pd.DataFrame(rows + run("grpo", experiments.CHOOSING + 1, {50.0: 0.99}))


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


def test_the_interval_of_several_comparisons_is_wider():
    # the level of each is a third
    assert experiments.interval(np.array([1.0, 2.0, 3.0]), 3)[1] == pytest.approx(2 - T2_OF_3 / sqrt(3))


def test_one_seed_has_no_interval_and_none_has_no_mean():
    mean, low, high = experiments.interval(np.array([5.0]))
    assert mean == 5
    assert isnan(low)
    assert isnan(high)
    assert isnan(experiments.interval(np.array([]))[0])


def test_runs_that_chose_the_learning_rate_are_not_reported():
    assert max(experiments.ends(evaluations())["seed"]) < experiments.CHOOSING
    assert row(method="grpo")["avg"] == pytest.approx(0.62)


def test_a_run_is_reported_at_its_last_exam():
    assert set(experiments.ends(evaluations())["step"]) == {20}
    assert row(**BUPO)["avg"] == pytest.approx(0.64)
    assert row(**BUPO)["flops"] == 80


def test_runs_are_paired_by_seed():
    found = row(**BUPO)  # 0.03, 0.02, 0.01: mean 0.02, standard deviation 0.01; one of three comparisons
    assert (found["seeds"], found["pairs"]) == (3, 3)
    assert found["difference"] == pytest.approx(0.02)
    assert found["difference_high"] - found["difference"] == pytest.approx(T2_OF_3 * 0.01 / sqrt(3))
    assert isnan(row(method="grpo")["difference"])


def test_avg_is_interpolated_between_exams_from_the_untrained_model_on():
    frame, grpo = evaluations(), {"model": "a", "method": "grpo", "layer": -1, "internal_steps": 0, "seed": 0}
    marks = {0.0: 0.4, 30.0: 0.45, 60.0: 0.5, 80.0: 0.55, 100.0: 0.6}
    for flops, avg in marks.items():
        assert experiments.at(frame, grpo, "flops", flops) == pytest.approx(avg)
    assert isnan(experiments.at(frame, grpo, "flops", 101.0))


def test_equal_operations_are_where_the_cheaper_run_ended():
    # at 80 GRPO is halfway from 0.5 to 0.60, 0.62, 0.64: 0.55, 0.56, 0.57; BuPO has just ended
    found = experiments.pairs(evaluations()).query("method == 'bupo' and layer == 6 and internal_steps == 10")
    assert found["equal"].tolist() == pytest.approx([0.08, 0.08, 0.08])
    assert row(**BUPO)["equal"] == pytest.approx(0.08)


def test_bupo_is_compared_with_grpo_after_as_many_steps_of_the_whole_policy():
    # 10 of BuPO's 20 steps were internal, so GRPO counts at step 10: 0.5
    found = experiments.pairs(evaluations()).query("method == 'bupo' and layer == 6 and internal_steps == 10")
    assert found["delayed"].tolist() == pytest.approx([0.13, 0.14, 0.15])
    # all 20 steps were internal, so GRPO counts before training: 0.4
    assert row(method="bupo", internal_steps=20)["delayed"] == pytest.approx(0.2 - 0.4)


def test_a_seed_without_a_grpo_run_is_not_paired():
    frame = evaluations()
    frame = frame[~((frame["method"] == "grpo") & (frame["seed"] == 2))]
    assert experiments.pairs(frame).query("internal_steps == 10 and layer == 6")["seed"].tolist() == [0, 1]


def test_first_phases_are_sorted_by_their_length():
    table = experiments.table(evaluations())
    short, long = (experiments.bupo(table, long=long) for long in (False, True))
    assert short[["layer", "internal_steps"]].to_numpy().tolist() == [[1, 10], [6, 10]]
    assert long[["layer", "internal_steps"]].to_numpy().tolist() == [[6, 20]]
    assert len(experiments.grid(table)) == 3


def test_curves_begin_with_the_untrained_model_and_average_seeds():
    found = experiments.curves(evaluations()).query("method == 'grpo'")
    assert found[["step", "flops"]].to_numpy().tolist() == [[0, 0], [10, 60], [20, 100]]
    assert found["mean"].tolist() == pytest.approx([0.4, 0.5, 0.62])
    assert set(found["seeds"]) == {3}


def alignment() -> pd.DataFrame:
    rows = [("a", layer, "raw", "gain", mean, mean - 0.1, mean + 0.1) for layer, mean in ((1, 0.2), (6, 0.6))]
    return pd.DataFrame(rows, columns=["model", "layer", "readout", "measure", "mean", "low", "high"])


def test_the_gain_of_a_first_phase_is_a_share_of_grpos_over_the_same_steps():
    found = experiments.predicted(evaluations(), alignment())
    assert found[["layer", "internal_steps"]].to_numpy().tolist() == [[1, 10], [6, 10], [6, 20]]
    # at step 10 GRPO gained 0.1; BuPO 0.02 at layer 1 and 0.05 at layer 6; at step 20 0.2 and -0.2
    assert found["gain"].tolist() == pytest.approx([0.2, 0.5, -1.0])
    assert found["predicted"].tolist() == [0.2, 0.6, 0.6]


def test_the_interval_of_a_share_is_a_jackknife_over_seeds():
    # ratios without one row: 5/8, 4/8, 3/8; mean 1/2, so the squared error is 2/3 of 2/64
    share, low, high = experiments._share(np.array([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]]))
    assert share == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(T2 * sqrt(2 / 3 * 2 / 64))


def test_sentences_claim_no_more_than_the_intervals():
    said = experiments.sentences(experiments.table(evaluations()))
    assert len(said) == 3
    (bupo,) = [line for line in said if "layer 6, 10 steps" in line]
    assert bupo.startswith("a, BuPO, layer 6, 10 steps vs. GRPO over 3 seeds: +2.0 points (-2.4 to +6.4: no difference")
    assert "+8.0 points" in bupo
    assert "+14.0 points (+9.6 to +18.4: above GRPO) at equal steps of the whole policy" in bupo
    (alone,) = [line for line in said if "layer 1" in line]
    assert "over 1 seed: -30.0 points (one seed: no interval) at equal steps" in alone


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.01, 0.03, "above"), (-0.03, -0.01, "below")])
def test_an_interval_that_excludes_zero_gives_a_verdict(low, high, verdict):
    table = experiments.table(evaluations()).query("method == 'bupo' and internal_steps == 10 and layer == 6")
    (said,) = experiments.sentences(table.assign(difference=(low + high) / 2, difference_low=low, difference_high=high))
    assert f"{verdict} GRPO) at equal steps" in said


def test_the_readable_table_is_in_percent():
    found = experiments.shown(experiments.table(evaluations())).set_index("method")
    assert found.loc["GRPO", "Avg@K (%)"] == "62.0 (57.0 to 67.0)"  # 0.62 -+ t 0.02 / sqrt 3
    assert found.loc["GRPO", "vs. GRPO at equal steps"] == ""
    assert found.loc["BuPO, layer 1, 10 steps", "vs. GRPO at equal steps"] == "-30.0"


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
    assert figure.layout.xaxis.title.text == "Avg@8 in the exam (%)"
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
    assert list(figure.layout.xaxis.ticktext) == ["10", "20"]
    assert heat.z[1, 0] == pytest.approx(2)
    assert np.isnan(heat.z[0, 1])
    assert (heat.text[0][1], heat.text[1][1]) == ("", "20.0%<br>-40.0")
    assert heat.text[1][0].startswith("64.0%<br>+2.0 (-2.4 to +6.4)")
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


@pytest.mark.parametrize(
    ("by", "last", "title"), [("step", 20, "Step"), ("flops", 100 / 1e12, "Operations so far (TFLOP)")]
)
def test_curves_are_in_percent_by_step_or_operations(by, last, title):
    figure = outcomes.curves(experiments.curves(evaluations()).query("seeds == 3"), by)
    (line,) = [trace for trace in theme.traces(figure) if trace.name == "GRPO" and trace.mode == "lines+markers"]
    assert line.y.tolist() == pytest.approx([40, 50, 62])
    assert line.x[-1] == pytest.approx(last)
    assert figure.layout.xaxis.title.text == title
    assert "mean over 3 seeds, bands 95%" in figure.layout.meta["caption"]


def test_trained_layers_have_a_colour_each():
    figure = outcomes.curves(experiments.curves(evaluations()).query("internal_steps < 20"))
    lines = [trace for trace in theme.traces(figure) if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == ["GRPO", "BuPO, layer 1, 10 steps", "BuPO, layer 6, 10 steps"]
    assert len({line.line.color for line in lines}) == 3


def test_more_than_three_groups_have_no_bands():
    figure = outcomes.curves(experiments.curves(evaluations()))
    assert not [trace for trace in theme.traces(figure) if trace.fill]
    assert "bands" not in figure.layout.meta["caption"]


def test_a_gain_is_a_share_of_that_of_grpo_at_the_same_rate():
    frame = evaluations()
    frame.loc[frame["method"] == "grpo", "learning_rate"] = 2e-4
    assert experiments.predicted(frame, alignment()).empty
    runs = [each for seed in range(3) for each in run("grpo-matched", seed, {60.0: 0.6, 100.0: 0.7}, layer=-1)]
    matched = experiments.predicted(pd.concat([frame, pd.DataFrame(runs)]), alignment())
    assert matched["gain"].tolist() == pytest.approx([0.1, 0.25, -2 / 3])  # 2 and 5 points of 20, -20 of 30


@pytest.mark.parametrize(("style", "first"), [("screen", "1"), ("paper", "2")])
def test_predicted_gains_are_named_by_their_layer(style, first):
    figure = outcomes.predicted(experiments.predicted(evaluations(), alignment()), style)
    (points,) = theme.traces(figure)
    assert points.text[0] == first
    assert points.y.tolist() == pytest.approx([0.2, 0.5, -1.0])
    assert points.error_x.array.tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_the_numbers_of_the_page_are_those_of_the_files():
    page = laptop.PAGE.read_text(encoding="utf-8")
    assert laptop.filled(page) == page, "run python notebooks/laptop.py"
    assert len(re.findall("<!-- end -->", page)) == 6


def test_the_sizes_of_the_page_are_the_defaults():
    page, sizes = " ".join(laptop.PAGE.read_text(encoding="utf-8").split()), Sizes()
    for said in (
        f"{sizes.steps} steps of {sizes.prompts} prompts x {sizes.samples} responses",
        f"each with {sizes.updates} updates",
        f"{sizes.exam} problems, before training, every {sizes.every} steps ({sizes.way_samples} responses to each)",
        f"takes {sizes.short} of the {sizes.steps} steps, a long one {sizes.long}",
        f"layer {plan.LOW}, layer {plan.MIDDLE}, and layer {plan.ALIGNED}",
        "whichever of {:g}, {:g} and {:g}".format(*plan.RATES).replace("e-05", "e-5"),
        f"{plan.SEEDS['demo-qwen3']} for each method on `demo-qwen3`, {plan.SEEDS['demo-llama']} on `demo-llama`",
    ):
        assert said in page


def test_bupo_is_compared_with_grpo_at_the_same_rate_where_there_are_such_runs():
    runs = [each for seed in range(3) for each in run("grpo-matched", seed, {60.0: 0.6, 100.0: 0.7}, layer=-1)]
    said = laptop.matched(pd.concat([evaluations(), pd.DataFrame(runs)]))
    assert "- `a`, BuPO, layer 6, 10 steps: -6.0 points" in said
    assert "end above delayed GRPO" in said


def test_a_list_of_differences_says_how_many_are_shown():
    said = laptop.compared(experiments.bupo(experiments.table(evaluations()), long=False), "delayed")
    assert "Of 2 first phases 1 end above GRPO, 0 below, and 1 show no difference" in said
    assert "- `a`, BuPO, layer 6, 10 steps: +14.0 points (+9.6 to +18.4: above GRPO)" in said
