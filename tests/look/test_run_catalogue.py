"""Figures of a training run are drawn by name."""

import pandas as pd
import pytest

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import run_catalogue, runs
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.runs import RunTables


@pytest.fixture
def run() -> RunTables:
    return RunTables(bundle.DATA / "experiments" / "bupo", "bupo")


@pytest.mark.parametrize("name", [name for name in run_catalogue.FIGURES if name != "pass-at-k"])
def test_every_figure_of_a_run_has_data(run, name):
    frame = run_catalogue.data(name, run, RunChoice())
    assert isinstance(frame, pd.DataFrame)
    assert len(frame)


def test_the_data_of_dynamics_are_its_site_and_final(run):
    frame = run_catalogue.data("dynamics", run, RunChoice("change", "mlp_out"))
    assert set(frame["site"]) <= {"mlp_out", "final"}
    assert "mlp_out" in set(frame["site"])


def test_the_data_of_the_trained_layer_begin_with_it(run):
    frame = run_catalogue.data("trained", run, RunChoice())
    assert frame["layer"].min() == runs.trained(run.metrics(), run.dynamics())


def test_a_measure_or_site_that_a_run_lacks_is_refused_with_what_it_has(run):
    with pytest.raises(InputError, match=r"has no colour\. Choose one of entropy"):
        run_catalogue.draw("dynamics", run, RunChoice("colour"))
    with pytest.raises(InputError, match=r"has no entropy at attn\. Choose one of resid_post"):
        run_catalogue.data("dynamics", run, RunChoice("entropy", "attn"))
