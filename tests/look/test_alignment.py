"""An alignment is found by its model and its name, and its figure shows the gains and the suggested layer."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import internal_policy as ip
from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import alignment, alignment_catalogue, theme
from internal_policy.look.alignment import AlignmentTable
from internal_policy.look.alignment_catalogue import AlignmentChoice

LLAMA, QWEN = (bundle.DATA / "scans" / f"demo-{name}-alignment" for name in ("llama", "qwen3"))


@pytest.fixture
def found() -> AlignmentTable:
    return alignment.read(QWEN)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path))
    return tmp_path


def kept(cache: Path, name: str) -> Path:
    """A copy of an alignment in the cache."""
    return Path(shutil.copytree(QWEN, cache / "demo-qwen3" / name))


def drawn(found: AlignmentTable, **chosen) -> dict:
    """The traces of the figure by name, those of the first panel."""
    figure = alignment_catalogue.draw("alignment", [found], AlignmentChoice(**chosen))
    return {trace.name: trace for trace in reversed(theme.traces(figure))}


def caption(found: AlignmentTable) -> str:
    figure = alignment_catalogue.draw("alignment", [found], AlignmentChoice())
    return figure.layout.to_plotly_json()["meta"]["caption"]


def test_the_alignments_of_a_model_are_found_by_its_weights(cache):
    identity = alignment.record(QWEN)["asked"]["identity"]
    assert alignment.of_model(identity) == [QWEN]
    mine = kept(cache, "0123456789ab")
    assert alignment.of_model(identity) == [mine, QWEN]
    assert alignment.of_model(alignment.record(LLAMA)["asked"]["identity"]) == [LLAMA]
    assert alignment.of_model("sha256 of another") == []


@pytest.mark.parametrize("harm", ["not json", json.dumps({"asked": {}}), None])
def test_a_damaged_or_unfinished_alignment_is_passed_over(cache, harm):
    mine = kept(cache, "0123456789ab")
    identity = alignment.record(QWEN)["asked"]["identity"]
    if harm is None:
        (mine / alignment.TABLE).unlink()
    else:
        (mine / alignment.RECORD).write_text(harm)
    assert alignment.of_model(identity) == [QWEN]


@pytest.mark.parametrize("harm", ["a measure is missing", "a measure is another", "a row is there twice"])
def test_a_table_without_each_measure_once_is_refused(cache, harm):
    mine = kept(cache, "0123456789ab")
    table = pd.read_parquet(mine / alignment.TABLE)
    table = {
        "a measure is missing": table.drop(table.index[table["measure"] == "gain"][:1]),
        "a measure is another": table.assign(measure="x"),
        "a row is there twice": pd.concat([table, table[table["measure"] == "gain"].head(1)]),
    }[harm]
    table.to_parquet(mine / alignment.TABLE)
    with pytest.raises(InputError, match="isn't the table of an alignment"):
        alignment.table(mine)


def test_a_record_without_its_time_is_refused(cache):
    mine = kept(cache, "0123456789ab")
    record = json.loads((mine / alignment.RECORD).read_text())
    del record["created"]
    record.pop("checksum", None)
    (mine / alignment.RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match="isn't the record of an alignment"):
        alignment.record(mine)


def test_an_alignment_is_opened_by_its_name_or_folder(cache):
    mine = kept(cache, "0123456789ab")
    assert alignment.find("0123") == mine
    for name in (QWEN, str(QWEN), "demo-qwen3-alignment", "demo-q"):
        opened = ip.open_alignment(name)
        assert opened.about["model"] == "demo-qwen3"
        best = opened.best(readout="norm")
        assert best is not None
        assert best.layer == 5
    for name in ("demo", "nothing", ""):  # of two, of none
        with pytest.raises(InputError, match="Known are 0123456789ab, demo-llama-alignment and demo-qwen3-alignment"):
            ip.open_alignment(name)


def test_a_notebook_shows_its_sentences_its_figure_and_its_table():
    opened = ip.open_alignment("demo-qwen3-alignment")
    assert repr(opened).startswith("<Alignment of demo-qwen3>\nraw: layer 4 is best worth training first.")
    shown = opened._repr_html_()
    assert "<script" not in shown
    assert all(part in shown for part in ("<svg", "suggested layer", "<table", "96 prompts"))


def test_the_figure_has_the_gains_the_cost_and_the_suggested_layer(found):
    lines = drawn(found)
    rows = found.table[found.table["readout"] == "raw"].set_index("measure")
    for name, measure in (("on the same prompts", "gain_in_batch"), ("on other prompts", "gain")):
        assert list(lines[name].y) == rows.loc[measure, "mean"].tolist()
    assert list(lines["cost of the step"].y) == rows.loc["gain", "cost"].tolist()
    star = lines["suggested layer"]
    best = alignment.best(found.table, 8)
    assert best is not None
    assert (list(star.x), list(star.y)) == ([best.layer], [best.gain])


def test_the_caption_names_the_readouts_and_counts_prompts_and_responses(found):
    assert caption(found) == (
        "demo-qwen3 · raw and through the final norm · 96 prompts x 8 responses, 50 with spread · bands 95%"
    )
    uneven = AlignmentTable({**found.about, "responses": 767}, found.table)
    assert "767 responses to 96 prompts" in caption(uneven)


def test_layers_count_from_1_in_print(found):
    assert list(drawn(found, style="paper")["on the same prompts"].x) == list(range(1, 9))
    assert list(drawn(found)["on the same prompts"].x) == list(range(8))


def test_without_a_significant_gain_no_layer_is_marked(found):
    unsure = AlignmentTable(found.about, found.table.assign(low=-1.0))
    assert "suggested layer" not in drawn(unsure)


def test_the_site_is_chosen_and_one_that_was_not_measured_is_refused(found):
    both = pd.concat([found.table, found.table.assign(site="mlp_out", mean=0.25)])
    lines = drawn(AlignmentTable(found.about, both), site="mlp_out")
    assert set(lines["on other prompts"].y) == {0.25}
    with pytest.raises(InputError, match=r"has no attn_out, but resid_post\. Align again with --sites attn_out"):
        drawn(found, site="attn_out")


def test_the_data_of_the_figure_have_the_gain_for_its_cost(found):
    rows = alignment_catalogue.data("alignment", [found], AlignmentChoice())
    assert list(rows) == ["layer", "site", "readout", "cost", "measure", "mean", "low", "high", "gain_per_cost"]
    assert set(rows["measure"]) == {"gain", "gain_in_batch"}
    assert (rows["gain_per_cost"] == rows["mean"] / rows["cost"]).all()


def test_only_one_alignment_is_drawn_at_a_time(found):
    opened = ip.open_alignment("demo-qwen3-alignment")
    with pytest.raises(InputError, match="a single alignment, but 2 are given"):
        opened.plot.alignment(opened)
    with pytest.raises(InputError, match=r"Give opened alignments, such as ip\.open_alignment"):
        opened.plot.alignment(found.table)
