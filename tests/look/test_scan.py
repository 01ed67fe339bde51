"""A scan is the same object whether its tables are in a folder or in memory."""

import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import internal_policy as ip
from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.jupyter import notebook
from internal_policy.look import catalogue, findings, statistics, targets, tokens, view
from internal_policy.look.scan import Scan, of, open_scan
from internal_policy.look.view import View
from internal_policy.scans import store
from internal_policy.scans.scan import scan as measure
from internal_policy.scans.store import Tables
from internal_policy.tasks.rollouts import Rollout

DEMO = bundle.DATA / "scans" / "demo-qwen3"
HOSTILE = "<script>alert(1)</script>$x$"


@pytest.fixture(scope="module")
def on_disk() -> Scan:
    return open_scan("demo-qwen3")


def loaded(**record) -> Tables:
    """The demo scan in memory, with other facts in its record."""
    kinds = (*store.KINDS, "vocabulary")
    return Tables(
        {**store.record(DEMO), **record}, {kind: pa.concat_tables(store.pieces(DEMO, kind)) for kind in kinds}
    )


@pytest.fixture(scope="module")
def in_memory() -> Scan:
    return of(loaded())


ASK = {
    "means": lambda scan: scan.means("kl", average="rollouts"),
    "changes": lambda scan: scan.changes(),
    "stages": lambda scan: scan.stages(),
    "targets": lambda scan: scan.targets(),
    "tokens": lambda scan: scan.tokens(4, "mlp_out", "change"),
    "layers": lambda scan: scan.layers(),
    "rollouts": lambda scan: scan.rollouts,
    "by layer": lambda scan: scan.by_layer(),
    "policies": lambda scan: scan.policies(["mlp_out.entropy", "final.rank"]),
    "means of a window": lambda scan: scan.view(readout="norm", first=3, last=9).means(),
    "quantiles": lambda scan: tokens.quantiles(scan.view(outcome="correct"), "resid_post"),
    "predictions": lambda scan: tokens.predictions(scan, 4, 5, 3),
    "settled": tokens.settled,
}


@pytest.mark.parametrize("ask", [*ASK])
def test_tables_in_memory_give_the_same_results_as_the_folder(on_disk, in_memory, ask):
    pd.testing.assert_frame_equal(ASK[ask](in_memory), ASK[ask](on_disk))


@pytest.mark.parametrize("name", [name for name in catalogue.FIGURES if name != "compare"])
def test_every_figure_of_the_catalogue_is_a_method_and_the_same_in_memory(on_disk, in_memory, name):
    drawn = [getattr(scan.plot, name.replace("-", "_"))(style="paper") for scan in (on_disk, in_memory)]
    expected = catalogue.draw(name, [View(DEMO)], catalogue.Choice(style="paper"))
    assert [figure.to_json() for figure in drawn] == [expected.to_json()] * 2


def test_a_figure_is_drawn_from_its_data_alone(on_disk):
    for name in catalogue.FIGURES:
        views = [on_disk, open_scan("demo-llama")] if name == "compare" else [on_disk]
        choice = catalogue.Choice(layer=3 if name == "cell" else 0)
        found = catalogue.data(name, views, choice)
        drawn = catalogue.FIGURES[name].draw(pickle.loads(pickle.dumps(found)))
        assert drawn.to_json() == catalogue.draw(name, views, choice).to_json()


def test_the_data_of_a_figure_names_its_response_and_position(on_disk):
    found = catalogue.data("cell", [on_disk.view(outcome="incorrect", first=4)], catalogue.Choice())
    assert (found.choice.rollout, found.choice.position) == (
        on_disk.rollouts.query("reward == 0")["rollout"].iloc[0],
        4,
    )


def test_a_comparison_takes_other_scans(on_disk):
    other = open_scan("demo-llama")
    expected = catalogue.draw("compare", [on_disk, other], catalogue.Choice(measure="change"))
    assert on_disk.plot.compare(other, measure="change").to_json() == expected.to_json()


def test_a_measured_model_gives_the_same_object(llama, tokenizer):
    rollouts = [Rollout("?", None, 0, (5, 6, 7), (8, 9, 10 + n), "abc", None, True) for n in range(4)]
    found = of(measure(llama, tokenizer, rollouts, readouts=("raw", "norm")))
    assert (found.about.rollouts, found.about.tokens, found.readout) == (4, 12, "raw")
    assert set(found.means()["layer"]) == {0, 1, 2, 3}
    assert len(found.stages()) == 3
    assert found.plot.convergence().data
    assert found.view(readout="norm").about.readout == "norm"


def test_the_paper_quantities_are_those_of_statistics(on_disk):
    layers = view.layers(View(DEMO))
    pd.testing.assert_frame_equal(on_disk.changes(), statistics.changes(layers))
    assert on_disk.target() == targets.target(targets.stages(statistics.changes(layers))) == 6
    assert on_disk.target("direction") == on_disk.targets().set_index("part").loc["direction", "target"]


def test_a_narrowed_view_leaves_the_scan_as_it_was(on_disk):
    narrowed = on_disk.view(readout="norm", outcome="correct", first=2, last=5)
    assert (narrowed.readout, narrowed.outcome, narrowed.first, narrowed.last) == ("norm", "correct", 2, 5)
    assert narrowed.about.which == "correct rollouts, positions 2 to 5"
    assert (on_disk.readout, on_disk.about.which) == ("raw", "")


def test_the_tokens_of_a_response_have_their_texts_and_values(on_disk):
    found = on_disk.tokens(3)
    assert list(found.columns) == ["layer", "position", "id", "token", "value"]
    cells = tokens.cells(View(DEMO), 3, "resid_post")
    assert found["value"].tolist() == cells["value"].tolist()
    texts = tokens.response(View(DEMO), 3)
    assert found.drop_duplicates("position")["token"].tolist() == texts["token"].tolist()
    assert on_disk.tokens().equals(on_disk.tokens(0))


def test_numbers_of_tokens_are_the_rows_of_the_view(on_disk):
    found = on_disk.view(outcome="correct", last=2).policies(["mlp_out.entropy"])
    assert list(found.columns) == ["rollout", "position", "layer", "mlp_out.entropy"]
    right = on_disk.rollouts.query("reward == 1")["rollout"]
    assert set(found["rollout"]) == set(right)
    assert set(found["position"]) == {0, 1, 2}
    assert {"resid_post.topk_ids", "final.entropy"} <= {*on_disk.policies().columns}


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda scan: scan.view(readout="tuned"), "not measured with the readout 'tuned', only with raw and norm"),
        (lambda scan: scan.view(readout="foo"), "There is no readout 'foo'. Choose from raw, norm."),
        (lambda scan: scan.view(first=9999), "no response tokens among positions from 9999"),
        (lambda scan: scan.means("surprise"), "There is no measure 'surprise'"),
        (lambda scan: scan.tokens(999), "has no rollout 999"),
        (lambda scan: scan.policies(["mlp_in.cosine"]), "There is no cosine at mlp_in"),
        (lambda scan: scan.plot.flow(scan), "Only compare draws several scans"),
        (lambda scan: scan.plot.readouts(measure="surprise"), "Can't draw readouts by 'surprise'"),
    ],
)
def test_what_a_scan_lacks_is_refused_the_same_way_in_memory(on_disk, in_memory, ask, said):
    for scan in (on_disk, in_memory):
        with pytest.raises(InputError, match=re.escape(said)):
            ask(scan)


UNKNOWN_WORDS = """
from internal_policy.errors import InputError
from internal_policy.look.scan import open_scan
scan = open_scan("demo-qwen3")
for ask in (
    lambda: scan.view(outcome="right"), lambda: scan.means(average="token"), lambda: scan.stages("all"),
):
    try:
        ask()
    except InputError as error:
        print(error)
"""


@pytest.mark.parametrize("window", [{"first": -1}, {"first": True}, {"last": -1}])
def test_an_invalid_window_is_refused(on_disk, window):
    with pytest.raises(InputError, match="Give a position of a response, a whole number from 0"):
        on_disk.view(**window)


@pytest.mark.parametrize("ask", [lambda scan: scan.means("topk"), lambda scan: scan.tokens(0, measure="top1")])
def test_an_unknown_measure_is_refused_with_the_known_ones(on_disk, ask):
    with pytest.raises(InputError, match=r"There is no measure .* here\. Choose one of entropy, "):
        ask(on_disk)


def test_true_is_not_a_rollout_number(on_disk, in_memory):
    for scan in (on_disk, in_memory):
        with pytest.raises(InputError, match="True isn't the number of a rollout"):
            scan.tokens(True)


@pytest.mark.parametrize("name", ["experiments/bupo", "bupo", bundle.DATA / "experiments" / "bupo"])
def test_opening_a_training_run_as_a_scan_says_how_to_open_it(name):
    with pytest.raises(
        InputError, match=r"is a training run, not a scan\. Open it with internal_policy\.open_run\('.*bupo'\)"
    ):
        open_scan(name)


@pytest.mark.parametrize("other", ["demo-llama", ["demo-llama"], 3])
def test_a_comparison_with_something_else_is_refused(on_disk, other):
    with pytest.raises(InputError, match=r"Give opened scans, such as ip\.open_scan\('demo-llama'\)\."):
        on_disk.plot.compare(other)


def test_unknown_words_are_refused_with_the_known_ones():
    """Run in a separate interpreter, where no type checks refuse the words first."""
    done = subprocess.run([sys.executable, "-c", UNKNOWN_WORDS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "There is no outcome 'right'. Choose one of all, correct, incorrect.",
        "There is no average over 'token'. Choose tokens or rollouts.",
        "There is no part 'all' of an entropy change. Choose one of total, direction, norm.",
    ]


def test_tables_in_memory_are_called_this_scan(in_memory):
    with pytest.raises(InputError, match=r"^This scan has no rollout 999"):
        in_memory.tokens(999)


def test_the_remedy_for_a_scan_in_memory_is_python(on_disk, in_memory):
    said = []
    for scan in (on_disk, in_memory):
        with pytest.raises(InputError) as refusal:
            scan.policies(["resid_post.surprise"])
        said.append(str(refusal.value).partition("surprise. ")[2])
    assert said == ["Scan again with --measures all.", "Scan again with all measures."]


def test_a_model_name_cannot_move_the_cursor_in_a_repr():
    assert repr(of(loaded(model="a\x1b[2J\u202eb"))).startswith("<Scan of a\\x1b[2J\\u202eb: ")


def test_an_impossible_file_name_is_refused():
    for opened in (ip.open_scan, ip.open_run, ip.load):
        with pytest.raises(InputError) as refusal:
            opened("x" * 5000)
        assert len(str(refusal.value)) < 1000


def test_an_unknown_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="There is no scan 'nothing'"):
        open_scan("nothing")


def test_a_scan_prints_as_its_model_and_what_is_in_view(on_disk):
    said = "<Scan of demo-qwen3: 20 rollouts, 819 tokens, raw hidden states>"
    assert repr(on_disk) == said
    assert (
        repr(on_disk.view(last=2))
        == "<Scan of demo-qwen3: 20 rollouts, 60 tokens, raw hidden states, positions 0 to 2>"
    )


def test_a_notebook_shows_the_flow_and_the_table_without_a_network(on_disk):
    page = on_disk._repr_html_()
    assert "Entropy by layer" in page
    assert page.count("<polyline") >= 3
    assert page.index("<th>resid_pre</th>") < page.index("<th>mlp_out</th>") < page.index("<th>change_mlp</th>")
    assert f"{on_disk.by_layer().loc[6, 'change_mlp']:.4g}" in page
    assert not re.search(r"<script|https?:|src=|@import|url\(", page)
    assert len(page) < 100_000


def test_a_scan_has_its_findings_as_sentences_and_a_notebook_lists_them(on_disk):
    assert on_disk.findings == findings.findings(View(DEMO)).sentences
    assert f"<li>{on_disk.findings[0]}" in on_disk._repr_html_().replace("&#x27;", "'")


def test_a_hostile_model_name_is_shown_as_text():
    page = of(loaded(model=HOSTILE))._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.startswith('<div class="mathjax_ignore tex2jax_ignore">')


def test_a_scan_without_entropy_says_so_in_the_notebook(in_memory):
    source = in_memory.source
    layers = source.arrow["layers"].drop_columns(["entropy"])
    record = {**source.record, "selection": {**source.record["selection"], "measures": ["norm"]}}
    page = of(dataclasses.replace(source, record=record, arrow={**source.arrow, "layers": layers}))._repr_html_()
    assert page.count("<p>This scan has no entropy. Scan again with all measures.</p>") == 2


def test_without_plotly_the_notebook_shows_the_table(on_disk, monkeypatch):
    monkeypatch.setattr(notebook, "find_spec", {}.get)
    with pytest.raises(InputError, match="Figures need plotly"):
        _ = on_disk.plot
    page = on_disk._repr_html_()
    assert "<p>Figures need plotly." in page
    assert "<th>resid_post</th>" in page


def test_the_tables_of_a_scan_need_no_plotly():
    code = """
        import sys
        sys.modules["plotly"] = None
        import internal_policy as ip
        scan = ip.open_scan("demo-qwen3")
        scan.means(), scan.by_rollout(), scan.findings, scan.layers()
        assert "Figures need plotly" in scan.tokens(3)._repr_html_()
        assert "Figures need plotly" in scan.compare_tokens(scan.view(readout="norm"), 3)._repr_html_()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_nan_does_not_stop_the_notebook(in_memory):
    source = in_memory.source
    layers = source.layers.assign(entropy=np.nan)
    arrow = {**source.arrow, "layers": pa.Table.from_pandas(layers, preserve_index=False)}
    assert "resid_post" in of(dataclasses.replace(source, arrow=arrow))._repr_html_()


def test_the_method_of_a_figure_takes_only_what_the_figure_uses():
    scan, run = ip.open_scan("demo-qwen3"), ip.open_run("experiments/bupo")
    assert [*inspect.signature(scan.plot.flow).parameters] == ["average", "style"]
    assert [*inspect.signature(scan.plot.compare).parameters] == ["others", "average", "measure", "style"]
    assert [*inspect.signature(run.plot.training).parameters] == ["others", "smooth", "style"]
    with pytest.raises(InputError, match="rollout only applies to tokens and cell, not to flow"):
        scan.plot.flow(rollout=0)
    with pytest.raises(InputError, match="site only applies to dynamics and layer, not to training"):
        run.plot.training(site="mlp_out")
