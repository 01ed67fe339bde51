"""The Python that the dashboard copies draws the same figure, and its files have safe names."""

import re
import shutil
from dataclasses import replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from internal_policy import bundle
from internal_policy.look import alignment, alignment_catalogue, catalogue, pairs, recipe, run_catalogue, runs, view
from internal_policy.look.alignment_catalogue import AlignmentChoice
from internal_policy.look.catalogue import Choice
from internal_policy.look.pairs import Side
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.runs import RunTables
from internal_policy.look.scan import Scan
from internal_policy.look.view import View
from internal_policy.scans import records, store

SCANS = bundle.DATA / "scans"
DEMO, OTHER = (View(SCANS / name, "norm", "correct", 1, 40) for name in ("demo-qwen3", "demo-llama"))
ROLLOUT = int(view.rollouts(DEMO)["rollout"].iloc[-1])
CHOICES = {
    "distribution": Choice(site="mlp_out", measure="kl"),
    "readouts": Choice(site="attn_out", measure="entropy"),
    "tokens": Choice(rollout=ROLLOUT, position=8, measure="rank"),
    "cell": Choice(rollout=ROLLOUT, position=8, layer=5),
    "compare": Choice(measure="change", average="rollouts"),
}
"""Choices that the figures show, for those that have their own."""
SAFE = re.compile(r"[A-Za-z0-9._-]+")


def ran(python: str) -> Any:
    """What the last line of some Python returns."""
    *lines, last = python.splitlines()
    known: dict[str, Any] = {}
    exec("\n".join(lines), known)
    return eval(last, known)


def drawn(python: str) -> str:
    """The figure that some Python returns, as JSON."""
    figure = ran(python)
    assert isinstance(figure, go.Figure)
    return str(figure.to_json())


@pytest.mark.parametrize("name", catalogue.FIGURES)
def test_the_copied_python_draws_the_figure_of_a_scan(name):
    one = replace(DEMO, readout="raw") if name == "norm-control" else DEMO  # only raw is split
    views = [one, OTHER] if name == "compare" else [one]
    data = catalogue.data(name, views, CHOICES.get(name, Choice()))
    made = recipe.of_scan(name, data)
    assert drawn(made.python) == catalogue.FIGURES[name].draw(data).to_json()
    assert SAFE.fullmatch(made.file)


@pytest.mark.parametrize("name", [name for name in run_catalogue.FIGURES if name not in ("pass-at-k", "exam")])
def test_the_copied_python_draws_the_figure_of_a_run(name):
    several = "against" in run_catalogue.USES[name]
    names = ["experiments/bupo", "experiments/grpo"] if several else ["experiments/bupo"]
    chosen = [RunTables(runs.listed()[name], name) for name in names]
    choice = RunChoice("entropy", "mlp_out", difference=True) if name == "dynamics" else RunChoice()
    made = recipe.of_runs(name, chosen, choice)
    assert drawn(made.python) == run_catalogue.draw(name, chosen, choice).to_json()
    assert SAFE.fullmatch(made.file)


def test_the_python_of_an_alignment_draws_it_from_its_name_or_folder(tmp_path):
    bundled = SCANS / "demo-qwen3-alignment"
    for folder in (bundled, shutil.copytree(bundled, tmp_path / "my own")):
        choice = AlignmentChoice("resid_post")
        made = recipe.of_alignment("alignment", folder, choice)
        assert drawn(made.python) == alignment_catalogue.draw("alignment", [alignment.read(folder)], choice).to_json()
        assert SAFE.fullmatch(made.file)
    assert "'demo-qwen3-alignment'" in recipe.of_alignment("alignment", bundled, AlignmentChoice()).python


def test_a_file_is_named_by_model_digest_figure_readout_and_filter():
    digest = store.record(SCANS / "demo-qwen3")["digest"][:6]
    made = recipe.of_scan("distribution", catalogue.data("distribution", [DEMO], CHOICES["distribution"]))
    assert made.file == f"demo-qwen3_{digest}_distribution-mlp_out-kl_norm_correct-rollouts-positions-1-to-40"
    made = recipe.of_scan("flow", catalogue.data("flow", [View(SCANS / "demo-qwen3")], Choice()))
    assert made.file == f"demo-qwen3_{digest}_flow_raw"


def test_the_name_of_a_hostile_model_is_safe_in_a_file_and_in_python(tmp_path):
    folder = tmp_path / 'it\'s "quoted"\\n'
    shutil.copytree(SCANS / "demo-qwen3", folder)
    record = records.read(folder / store.RECORD)
    records.write(folder / store.RECORD, {**record, "model": "../<b>\u202e$x/..%2f\n"})
    data = catalogue.data("flow", [View(folder)], Choice())
    made = recipe.of_scan("flow", data)
    assert SAFE.fullmatch(made.file)
    assert drawn(made.python) == catalogue.flow(data).to_json()


def test_the_address_names_the_scan_and_its_readout():
    made = recipe.of_scan("compare", catalogue.data("compare", [DEMO, OTHER], CHOICES["compare"]))
    assert made.address == (("scan", "demo-qwen3"), ("readout", "norm"), ("compare", "demo-llama"))


@pytest.mark.parametrize(("site", "measure"), [("resid_post", "kl"), ("mlp_out", "change"), ("attn_out", None)])
def test_the_copied_python_makes_the_lens_grid_of_a_response(site, measure):
    made = recipe.of_response(DEMO, ROLLOUT, site, measure)
    expected = Scan(DEMO.source, "norm", "correct", 1, 40).tokens(ROLLOUT, site, measure or "entropy")
    pd.testing.assert_frame_equal(ran(made.python), expected)
    assert "<iframe" in ran(made.python)._repr_html_()
    assert made.address == (("scan", "demo-qwen3"), ("readout", "norm"), ("rollout", str(ROLLOUT)))


def test_the_copied_python_makes_linked_lens_grids():
    a, b = Side(DEMO, ROLLOUT), Side(replace(DEMO, readout="raw"), ROLLOUT)
    made = recipe.of_pair(a, b, "mlp_out", "rank")
    pd.testing.assert_frame_equal(ran(made.python), pairs.differences(a, b, "mlp_out", "rank"), check_frame_type=False)
    assert dict(made.address).keys() == {"scan", "readout", "rollout", "against_readout", "against_rollout"}


def test_there_is_no_python_for_responses_that_cant_be_subtracted():
    a, b = Side(DEMO, ROLLOUT), Side(OTHER, int(view.rollouts(OTHER)["rollout"].iloc[0]))
    made = recipe.of_pair(a, b, "resid_post")
    assert made.python == ""
    assert ("compare", "demo-llama") in made.address
