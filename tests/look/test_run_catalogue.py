"""Figures of a training run are drawn by name."""

import pandas as pd
import pytest

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import run_catalogue, runs, theme
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.runs import RunTables

EXPERIMENTS = bundle.DATA / "experiments"


@pytest.fixture
def run() -> RunTables:
    return RunTables(EXPERIMENTS / "bupo", "bupo")


@pytest.fixture
def other() -> RunTables:
    return RunTables(EXPERIMENTS / "grpo", "grpo")


@pytest.mark.parametrize("name", [name for name in run_catalogue.FIGURES if name not in ("pass-at-k", "exam")])
def test_every_figure_of_a_run_has_data(run, name):
    frame = run_catalogue.data(name, [run], RunChoice())
    assert isinstance(frame, pd.DataFrame)
    assert len(frame)


def test_the_data_of_dynamics_are_its_site_and_final(run):
    frame = run_catalogue.data("dynamics", [run], RunChoice("change", "mlp_out"))
    assert set(frame["site"]) <= {"mlp_out", "final"}
    assert "mlp_out" in set(frame["site"])


def test_the_data_of_the_trained_layer_begin_with_it(run):
    frame = run_catalogue.data("trained", [run], RunChoice())
    assert frame["layer"].min() == runs.trained(run.metrics(), run.dynamics())


def test_a_measure_or_site_that_a_run_lacks_is_refused_with_what_it_has(run):
    with pytest.raises(InputError, match=r"has no colour\. Choose one of entropy"):
        run_catalogue.draw("dynamics", [run], RunChoice("colour"))
    with pytest.raises(InputError, match=r"has no entropy at attn\. Choose one of resid_post"):
        run_catalogue.data("dynamics", [run], RunChoice("entropy", "attn"))


def test_the_data_of_a_difference_begin_after_step_0_and_are_those_of_the_heatmap(run):
    plain = run_catalogue.data("dynamics", [run], RunChoice("entropy", "resid_post")).set_index(["step", "layer"])
    found = run_catalogue.data("dynamics", [run], RunChoice("entropy", "resid_post", difference=True))
    assert found["step"].min() == 4
    row = found[found["layer"] == 3].iloc[-1]
    assert row["entropy"] == plain["entropy"][row["step"], 3] - plain["entropy"][0, 3]
    heat = theme.traces(run_catalogue.draw("dynamics", [run], RunChoice("entropy", "resid_post", difference=True)))[0]
    assert heat.customdata[3, -1] == pytest.approx(row["entropy"], rel=1e-5)


def test_several_runs_are_lines_of_one_figure(run, other):
    for name in ("training", "layer"):
        figure = run_catalogue.draw(name, [run, other], RunChoice())
        assert {trace.name for trace in theme.traces(figure)} == {"bupo", "grpo"}
        assert set(run_catalogue.data(name, [run, other], RunChoice())["run"]) == {"bupo", "grpo"}


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs_ = [RunTables(tmp_path / day / "one", "one") for day in ("monday", "tuesday")]
    assert runs.labels([*runs_, RunTables(tmp_path / "two", "two")]) == ["monday/one", "tuesday/one", "two"]


@pytest.mark.parametrize(
    ("name", "times", "choice", "said"),
    [
        ("trained", 2, RunChoice(), "2 runs can't be drawn in trained. Give it a single run"),
        ("training", 7, RunChoice(), "7 runs can't be drawn in training. Give it at most 6 runs"),
        ("training", 2, RunChoice(), "bupo is given twice"),
        ("training", 1, RunChoice(smooth=0), "Can't average over 0 steps"),
        ("layer", 1, RunChoice(layer=9), "has no entropy at layer 9"),
        ("dynamics", 1, RunChoice(smooth=2), "smooth only applies to training and seeds, not to dynamics"),
    ],
)
def test_what_a_figure_of_runs_cannot_draw_is_refused(run, name, times, choice, said):
    with pytest.raises(InputError, match=said):
        run_catalogue.draw(name, [run] * times, choice)
