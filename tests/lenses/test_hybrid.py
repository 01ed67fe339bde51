"""Lenses of a model whose layers have attention or an FFN, but not both."""

from dataclasses import replace
from typing import Any

import pytest
from conftest import random_rollout, saved
from hybrids import hybrid

import internal_policy as ip
from internal_policy.__main__ import main
from internal_policy.lenses import fit, held_out
from internal_policy.lenses.lens import of
from internal_policy.look import lens
from internal_policy.models.families import layer_sites, sites_of
from internal_policy.scans.scan import scan


def test_a_lens_is_fitted_and_used_at_the_sites_that_each_layer_has(monkeypatch, tokenizer):
    model: Any = hybrid(monkeypatch).float()
    points = fit.points_of(layer_sites(model.config), sites_of(model.config))
    assert {point.layer for point in points if point.site == "mlp_out"} == {1, 3}
    rollouts = [replace(random_rollout(seed=n), problem=f"problem {n}") for n in range(4)]
    translators = fit.fit(model, rollouts, points, steps=2, batch_tokens=16)
    found = held_out.tables(model, rollouts, translators)["kl"]
    assert found["mean"].notna().all()
    assert {*zip(found["layer"], found["site"], strict=True)} == {(point.layer, point.site) for point in points}
    tables = scan(model, tokenizer, rollouts[:1], readouts=[of(translators, model)])
    assert tables.layers["entropy"].notna().all()


def test_a_lens_of_one_site_names_the_layers_to_scan(here, monkeypatch, tokenizer, capsys):
    saved(hybrid(monkeypatch).float(), tokenizer, here / "model")
    (here / "texts.jsonl").write_text('{"text": "The answer is 12."}\n{"text": "What is 3 + 4?"}\n')
    words = ["fit-lens", "--model", "model", "--rollouts", "texts.jsonl", "--sites", "attn_out", "--steps", "2"]
    assert main([*words, "-o", "lens.safetensors"]) == 0
    command = "scan --model model --lens lens.safetensors --sites attn_out --layers 0,2"
    assert command in capsys.readouterr().out.replace("\n  ", " ")
    assert main([*command.split(), "--rollouts", "texts.jsonl", "-o", "out"]) == 0


@pytest.mark.parametrize("all_positions", [False, True])
def test_the_logit_lens_reads_the_layers_that_have_the_site(monkeypatch, tokenizer, all_positions):
    table = ip.lens(hybrid(monkeypatch), tokenizer, "What is 3", site="mlp_out", all_positions=all_positions)
    assert sorted(table["layer"].unique()) == [1, 3, 4]
    assert table["entropy"].notna().all()
    assert "layers 1 and 3" in lens.verdict(table)
    assert "nan" not in table._repr_html_()


def test_the_last_layer_with_the_site_is_named(monkeypatch, tokenizer):
    table = ip.lens(hybrid(monkeypatch), tokenizer, "What is 3", site="attn_out")
    table["target_rank"] = table["target_rank"].where(table["layer"] != 0, 1).where(table["layer"] != 2, 7)
    assert lens.verdict(table).endswith("is the top token in layer 0, but rank 7 in layer 2 (layers 0 and 2).")
    table["target_rank"] = table["target_rank"].where(table["layer"] != 2, 1).where(table["layer"] != 0, 7)
    assert lens.verdict(table).endswith("is the top token from layer 2 on (layers 0 and 2).")
