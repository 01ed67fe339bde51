"""Scans of models where some layers have only attention and others only an FFN: figures and findings."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import random_rollout
from hybrids import hybrid

import internal_policy as ip
from internal_policy.errors import InputError
from internal_policy.look import catalogue, findings, highlights, layer_figures, summary, theme, tokens, view
from internal_policy.look.catalogue import Choice
from internal_policy.look.lens_grid.payload import payload
from internal_policy.look.scan import of
from internal_policy.scans import scan

N = 4
ATTENTION, FFN = [0, 2], [1, 3]


@pytest.fixture(scope="module")
def scanned(tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        model = hybrid(patch)
        return of(scan.scan(model, tokenizer, [random_rollout(seed=seed) for seed in range(8)], top_k=3))


def test_changes_and_stages_are_those_of_layers_with_the_module(scanned):
    changes = scanned.changes()
    by_change = {change: sorted(rows["layer"].unique()) for change, rows in changes.groupby("change")}
    assert by_change == {"layer": [0, 1, 2, 3], "attn": ATTENTION, "mlp": FFN}
    assert np.isfinite(changes[["mean", "low_all", "high_all"]]).all(axis=None)
    assert scanned.stages()["layer"].tolist() == FFN
    assert scanned.target() in (None, *FFN)


def test_a_window_of_positions_has_the_same_rows_as_the_whole(scanned):
    window, whole = (
        one.layers().sort_values(["rollout", "layer", "site"], ignore_index=True)
        for one in (scanned.view(last=98), scanned)
    )
    names = ["rollout", "layer", "site", "tokens"]
    pd.testing.assert_frame_equal(window[names], whole[names], check_dtype=False)
    pd.testing.assert_frame_equal(scanned.view(last=98).changes(), scanned.changes(), atol=1e-5)


def test_findings_count_the_layers_with_an_ffn(scanned):
    said = " ".join(scanned.findings)
    assert "2 of 4 layers have an FFN." in said
    assert "were measured" not in said
    assert "nan" not in said.lower()


def test_captions_count_the_layers_of_each_module(scanned):
    assert scanned.about.modules == "attention in 2 of 4 layers, FFN in 2 of 4 layers"
    assert "FFN in 2 of 4 layers" in scanned.plot.flow().layout.meta["caption"]
    assert ip.open_scan("demo-qwen3").about.modules == ""


@pytest.mark.parametrize("name", [name for name in catalogue.FIGURES if name != "ablation"])  # which it lacks
@pytest.mark.parametrize("style", ["screen", "paper"])
def test_every_figure_is_drawn_without_nan(scanned, name, style):
    views = [scanned, scanned.view(readout="norm")] if name == "compare" else [scanned]
    site = Choice(site="mlp_out") if {"site"} <= {*catalogue.USES[name]} else Choice()
    drawn = catalogue.draw(name, views, replace(site, style=style))
    texts = [text for trace in theme.traces(drawn) if "hovertext" in trace for text in trace.hovertext or ()]
    assert not any("nan" in str(text) for text in texts)


def test_a_stage_is_drawn_once_across_layers_without_an_ffn():
    frame = pd.DataFrame({"layer": [1, 3, 5], "change": "mlp", "part": "total", "mean": 1.0, "low": 0.5, "high": 2.0})
    spans = [("exploration", 1, 1), ("exploration", 3, 3), ("convergence", 5, 5)]
    layout = layer_figures.change(frame, about(), spans).layout
    assert [note.text for note in layout.annotations] == ["E", "C"]
    assert [note.hovertext for note in layout.annotations] == ["exploration, layers 1 and 3", "convergence, layer 5"]
    assert [shape.x0 for shape in layout.shapes if shape.x0 == shape.x1] == [4.5]


def test_bars_of_a_module_that_only_some_layers_have_are_as_wide_as_the_others(scanned):
    bars = [trace for trace in scanned.plot.norm_control().data if trace.type == "bar"]
    assert {bar.width for bar in bars} == {0.75}
    assert [bar.x.tolist() for bar in bars[::2]] == [[0, 1, 2, 3], ATTENTION, FFN]


def about():
    return view.About("model", "raw", 8, 72, 6, 320)


def test_quantiles_are_of_the_layers_that_have_the_site(scanned):
    found = tokens.quantiles(scanned, "mlp_out")
    assert found["layer"].tolist() == FFN
    assert np.isfinite(found).all(axis=None)
    assert tokens.quantiles(scanned, "final")["layer"].tolist() == [N]


def test_cells_are_those_of_the_layers_that_have_the_site(scanned):
    for measure in ("entropy", "change"):
        assert sorted(scanned.tokens(0, "mlp_out", measure)["layer"].unique()) == FFN
    assert scanned.tokens(0, "mlp_out")["value"].notna().all()
    assert sorted(tokens.at_site(scanned, 0, "attn_out")["layer"].unique()) == ATTENTION
    pair = scanned.compare_tokens(scanned.view(readout="norm"), 0, "mlp_out")
    assert sorted(pair["layer"].unique()) == FFN
    assert pair["difference"].notna().all()


def test_predictions_are_those_of_the_sites_that_the_layer_has(scanned):
    found = [list(dict.fromkeys(tokens.predictions(scanned, 0, 2, layer)["site"])) for layer in range(N)]
    assert found[:2] == [["resid_pre", "attn_out", "resid_post"], ["resid_pre", "mlp_out", "resid_post"]]


def test_the_closest_layer_with_attention_is_found(scanned):
    assert [highlights.closest(scanned, layer, "attn_out") for layer in range(N)] == [0, 0, 2, 2]
    assert [highlights.closest(scanned, layer, "mlp_out") for layer in range(N)] == [1, 1, 1, 3]


def test_the_lens_grid_is_told_which_layers_lack_a_site(scanned):
    sent = payload(scanned, 0)
    assert sent["lacking"] == {"attn_in": FFN, "attn_out": FFN, "mlp_in": ATTENTION, "mlp_out": ATTENTION}
    assert sent["planes"]["raw"]["mlp_out"]["layers"] == [0, 1, 2, 3]


def test_tables_leave_the_cells_of_missing_modules_empty(scanned):
    names, *rows = summary.cells(summary.by_layer(scanned))
    assert [row[names.index("FFN")] == "" for row in rows] == [True, False, True, False, True]
    assert not any("nan" in cell for row in rows for cell in row)
    html = scanned._repr_html_()
    assert "nan" not in html.lower().replace("finance", "")


def test_a_scan_of_layers_without_the_site_says_so(tokenizer, monkeypatch):
    tables = scan.scan(hybrid(monkeypatch), tokenizer, [random_rollout()], layers=ATTENTION)
    one = of(tables)
    assert one.about.modules == "FFN in 0 of 2 layers"
    for refused in (lambda: tokens.quantiles(one, "mlp_out"), lambda: tokens.cells(one, 0, "mlp_out")):
        with pytest.raises(InputError, match="no entropy at mlp_out, because none of its layers has it"):
            refused()
    assert "nan" not in " ".join(findings.findings(one).sentences)
