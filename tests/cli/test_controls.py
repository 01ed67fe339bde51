"""`internal-policy scan --controls`."""

import json

import pyarrow.parquet as pq
import pytest
from conftest import one_sentence

from internal_policy.__main__ import main
from internal_policy.look import view
from internal_policy.measure.metrics import CONTROLS, KNOWN, MEASURES
from internal_policy.scans import store

pytestmark = pytest.mark.usefixtures("here")


def planned(capsys, folder, *words) -> dict:
    """What a scan would do."""
    assert main(["scan", "--model", str(folder), "--text", "47 + 385 = 432", *words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_controls_are_measured_beside_the_rest(folder, tmp_path, capsys):
    scanned = tmp_path / "scan"
    assert main(["scan", "--model", str(folder), "--text", "47 + 385", "--controls", "-o", str(scanned), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["selection"]["measures"] == [*KNOWN]
    assert found["controls"] == {"seed": 0, "directions": 64}
    names = pq.read_schema(store.part_path(scanned, "layers", 0)).names
    assert {*CONTROLS} <= {*names}


def test_one_question_has_one_digest_however_it_was_typed(folder, capsys):
    listed = planned(capsys, folder, "--measures", ",".join(reversed(KNOWN)))
    assert listed["measures"] == [*KNOWN]
    assert planned(capsys, folder, "--controls")["scan"] == listed["scan"]
    few = planned(capsys, folder, "--measures", "entropy", "--controls")
    assert few["measures"] == ["entropy", *CONTROLS]
    assert few["scan"] != listed["scan"]


def test_a_scan_without_controls_keeps_its_digest(folder, capsys):
    without = planned(capsys, folder)
    assert without["measures"] == [*MEASURES]
    assert without["scan"] == planned(capsys, folder, "--measures", ",".join(MEASURES))["scan"]


def test_the_forecast_counts_them(folder, capsys):
    without, found = planned(capsys, folder), planned(capsys, folder, "--controls")
    for name in ("unembeddings_per_token", "gflop_per_token", "disk_bytes_at_most", "kernel_bytes_at_most"):
        assert found[name] > without[name], name
    assert found["hidden_states_per_token"] == without["hidden_states_per_token"]


def test_hidden_states_on_a_server_have_no_controls(capsys, here):
    words = ["--model", "org/name", "--text", "47 + 385", "--reader", "nnsight", "--remote", "--controls"]
    assert main(["scan", *words]) == 2
    one_sentence(capsys, "--controls needs hidden states, but with --remote they stay on the server.", here)


def test_a_figure_of_a_control_that_was_not_measured_names_the_option(capsys, here):
    words = ["plot", "demo-qwen3", "readouts", "--measure", "renyi_2", "-o", "x.html"]
    assert main(words) == 2
    one_sentence(capsys, "has no renyi_2. Scan again with --controls.", here)


def test_figures_know_every_control():
    assert view.CONTROLS == CONTROLS
    assert {*view.AVERAGED} == {*KNOWN, "top1"} - {"topk"}
