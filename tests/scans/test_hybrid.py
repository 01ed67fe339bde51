"""Scans of models whose layers don't all have the same sites."""

import pytest
from conftest import random_rollout, saved, tiny_model
from hybrids import hybrid

from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.scans import records, scan, store
from internal_policy.scans.selection import Selection, lacking

LACKING = {"attn_in": [1, 3], "attn_out": [1, 3], "mlp_in": [0, 2], "mlp_out": [0, 2]}


def test_a_scan_records_which_layers_lack_a_site(monkeypatch, tokenizer):
    tables = scan.scan(hybrid(monkeypatch), tokenizer, [random_rollout()])
    assert tables.record["lacking"] == LACKING
    for site, layers in LACKING.items():
        rows = tables.policies[tables.policies["layer"].isin(layers)]
        assert rows[f"{site}.entropy"].isna().all()
        assert not (set(layers) & set(tables.layers.loc[tables.layers["site"] == site, "layer"]))


def test_only_selected_layers_and_sites_count_as_lacking():
    sites = {0: ("attn_out", "resid_post"), 1: ("mlp_out", "resid_post")}
    assert lacking(Selection((1,), ("attn_out", "resid_post")), sites) == {"attn_out": [1]}
    assert lacking(Selection((0, 1), ("resid_post",)), sites) == {}


def test_a_site_of_some_attention_layers_is_measured_where_it_is(monkeypatch, tokenizer):
    tables = scan.scan(hybrid(monkeypatch, mid=True), tokenizer, [random_rollout()])
    assert tables.record["lacking"] == {**LACKING, "resid_mid": [1, 3]}
    assert set(tables.layers.loc[tables.layers["site"] == "resid_mid", "layer"]) == {0, 2}


def test_an_ordinary_scan_lacks_nothing(tokenizer):
    assert scan.scan(tiny_model("llama"), tokenizer, [random_rollout()]).record["lacking"] == {}


def test_a_scan_in_a_folder_records_the_same(here, monkeypatch, tokenizer, capsys):
    saved(hybrid(monkeypatch).float(), tokenizer, here / "model")
    words = ["scan", "--model", "model", "--text", "The answer is 12.", "--text", "What is 3 + 4?", "-o", "out"]
    assert main(words) == 0
    assert store.record(here / "out")["lacking"] == LACKING
    assert "2 of 4 layers have an FFN" not in capsys.readouterr().out  # two rollouts are too few for stages


@pytest.mark.parametrize("damaged", [["mlp_out"], {"mlp_out": 3}, {"mlp_out": ["3"]}])
def test_a_damaged_list_of_lacking_sites_is_rejected(copied, damaged):
    record = records.read(copied / store.RECORD)
    record.pop("checksum", None)
    records.write(copied / store.RECORD, {**record, "lacking": damaged})
    with pytest.raises(InputError, match=r"'lacking' holds .*; expected an object of lists of whole numbers"):
        store.record(copied)


def test_all_sites_are_those_that_some_layer_of_the_model_has(monkeypatch, tokenizer):
    model = hybrid(monkeypatch, ("attention", "attention"))
    tables = scan.scan(model, tokenizer, [random_rollout()])
    assert tables.record["selection"]["sites"] == ("resid_pre", "attn_in", "attn_out", "resid_post")
