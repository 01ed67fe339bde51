"""The exams of a run are drawn with their intervals, beside the reward in training."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from small_figures import HOSTILE, traces, values

from internal_policy.look import exam_figure, runs, theme


def metrics(reward: float = 0.5) -> pd.DataFrame:
    phase = ["internal"] * 3 + ["final"] * 7
    return pd.DataFrame({"step": range(1, 11), "reward": reward, "phase": phase, "target": phase})


def exams(*sets: str, samples: int = 8, reward: float = 0.5) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([[0, 4, 8, 10], sets], names=["step", "problems"])
    mean = np.random.default_rng(0).random(len(index))
    shares = {
        f"{name}{end}": mean + by for name in runs.SHARES for end, by in (("", 0), ("_low", -0.1), ("_high", 0.1))
    }
    return runs.with_reward(pd.DataFrame({"samples": samples, **shares}, index).reset_index(), metrics(reward))


def test_an_exam_draws_its_scores_with_bands_and_the_reward_on_the_same_axis():
    table = exams(HOSTILE)
    figure: Any = exam_figure.exam(table, metrics(), "demo")
    (average, passed), (reward,) = (
        [trace for trace in theme.traces(figure) if trace.name == name]
        for name in (theme.inert(HOSTILE), "training reward")
    )
    assert average.x.tolist() == [0, 4, 8, 10]  # in one line, although the last exam is nearer
    assert values(average).tolist() == table["avg_at_k"].tolist()
    assert (reward.x.tolist(), reward.yaxis, average.yaxis, passed.yaxis) == ([4, 8, 10], "y", "y", "y2")
    assert len([trace for trace in theme.traces(figure) if trace.fill]) == 2
    assert [axis.title.text for axis in (figure.layout.yaxis, figure.layout.yaxis2)] == ["Avg@8", "Pass@8"]
    assert {shape.x0 for shape in figure.layout.shapes} == {3.5}
    assert HOSTILE not in str(figure.to_dict())


def test_a_reward_in_other_units_has_an_axis_of_its_own():
    figure: Any = exam_figure.exam(exams("a", reward=-2.0), metrics(-2.0))
    (reward,) = traces(figure, "training reward")
    assert (reward.yaxis, figure.layout.yaxis3.title.text) == ("y3", "Training reward")


def test_several_sets_are_lines_and_all_problems_come_first():
    figure: Any = exam_figure.exam(exams("a", "b", "all"), metrics())
    assert list(dict.fromkeys(trace.name for trace in theme.traces(figure) if trace.showlegend)) == [
        "all", "a", "b", "training reward",
    ]  # fmt: skip


def test_with_one_response_pass_at_k_is_left_out():
    figure: Any = exam_figure.exam(exams("a", samples=1), metrics())
    assert len(traces(figure, "a")) == 1


@pytest.mark.parametrize(("samples", "title"), [((8, 8), "Avg@8"), ((8, 4), "Avg@K")])
def test_several_runs_are_lines_over_all_problems(samples, title):
    tables = {f"run {n}": (exams("a", "all", samples=k), metrics()) for n, k in enumerate(samples)}
    figure: Any = exam_figure.several(tables)
    assert {trace.name for trace in theme.traces(figure) if trace.name} == {"run 0", "run 1"}
    assert figure.layout.yaxis.title.text == title
    (average, *_) = traces(figure, "run 1")
    assert values(average).tolist() == runs.overall(tables["run 1"][0])["avg_at_k"].tolist()


@pytest.mark.parametrize(("last", "tick"), [(3, 1), (120, None)])
def test_ticks_are_at_whole_steps_where_steps_are_few(last, tick):
    figure: Any = go.Figure(go.Scatter(x=[0, last], y=[1.0, 2.0]))
    theme.name_steps(figure)
    assert (figure.layout.xaxis.title.text, figure.layout.xaxis.dtick) == ("Step", tick)
