"""Listing the model families and their proofs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from internal_policy.__main__ import main
from internal_policy.cli.families import all_sites, differences
from internal_policy.models.proofs import PROOFS
from internal_policy.models.rows import FAMILIES

pytestmark = pytest.mark.usefixtures("here")


def keep_families(monkeypatch, *kept: str) -> None:
    """Remove the other rows of the table of families, because each takes time to prove."""
    for name in FAMILIES.keys() - {*kept}:
        monkeypatch.delitem(FAMILIES, name)


def test_families_lists_each_family_its_proofs_and_how_to_add_one(monkeypatch, capsys):
    keep_families(monkeypatch, "llama", "gemma2", "gpt_neox")
    assert main(["families"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*FAMILIES, *PROOFS, "internal_policy/models/rows"))
    assert "no resid_mid: attention and FFN read" in " ".join(printed.split())
    assert printed.count("✓" * len(PROOFS)) == len(FAMILIES)
    assert "✗" not in printed


def test_a_mistyped_model_type_suggests_near_ones(capsys):
    assert main(["families", "qwne2"]) == 2
    assert "Or did you mean the model type qwen2" in capsys.readouterr().err
    assert main(["families", "nosuch/model"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.slow
def test_families_as_json_says_the_same(capsys):
    assert main(["families", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(FAMILIES)
    assert all(row["proved"] and row["contradictions"] == dict.fromkeys(PROOFS, "") for row in found.values())
    assert found["gpt_neox"]["absent"] == FAMILIES["gpt_neox"].absent


def test_a_family_whose_row_is_wrong_is_shown_as_wrong_and_fails(monkeypatch, capsys):
    keep_families(monkeypatch, "llama", "gemma2")
    monkeypatch.setitem(FAMILIES, "gemma2", replace(FAMILIES["gemma2"], sites=FAMILIES["llama"].sites))
    assert main(["families"]) == 1
    printed = capsys.readouterr().out
    assert "✗✓✓✓✓✓✓" in printed
    assert "gemma2, 1: 0.resid_mid is not resid_pre + attn_out" in printed
    assert main(["families", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {name: row["proved"] for name, row in found.items()} == {"llama": True, "gemma2": False}


# one model, or all types


def test_a_model_type_of_the_table_is_proved(capsys):
    assert main(["families", "qwen2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("qwen2 is read with the row qwen2, proved just now on the tiny model of that row:")
    assert printed.count("✓") == len(PROOFS)


def test_the_model_in_a_folder_is_shown(folder, capsys):
    assert main(["families", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model_type"], found["name"], found["proved"], found["refusal"]) == ("qwen3", "qwen3", "table", None)
    assert found["contradictions"] == dict.fromkeys(PROOFS, "")


def test_a_type_without_a_row_is_tried(monkeypatch, capsys):
    keep_families(monkeypatch, "llama", "gpt2")
    assert main(["families", "arcee"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "arcee has no row of its own. The row llama passes every proof on a tiny model of it:" in printed
    assert "Norms: before." in printed
    assert main(["families", "arcee", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["proved"], found["row"]["layers"]) == ("llama", "here", "model.layers")


def test_a_type_that_no_row_fits_fails_with_every_proof(monkeypatch, capsys):
    keep_families(monkeypatch, "llama", "gpt2")
    assert main(["families", "gemma2"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(
        "The model type 'gemma2' has no row, and none of the known rows fits it: llama comes closest"
    )
    assert "✗ the stream is exactly what attention and FFN add to it: 0.resid_mid is not" in printed
    assert "✓ no hook is left behind" in printed


@pytest.mark.parametrize("model_type", ["deepseek_v4", "bert"])
def test_a_type_that_cannot_be_read_is_refused_with_the_reason(model_type, capsys):
    assert main(["families", model_type]) == 1
    assert f"{model_type} isn't supported: its " in capsys.readouterr().out


def test_all_types_of_transformers_are_tried(monkeypatch, capsys):
    keep_families(monkeypatch, "llama")
    some = dict.fromkeys(("llama", "arcee", "bert", "minimax", "opt", "musicgen"), "")
    monkeypatch.setattr("transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", some)
    assert main(["families", "--all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["families"]) == ["llama"]
    assert {kind: entry["proved"] for kind, entry in found["types"].items()} == {
        **dict.fromkeys(some),
        "llama": "table",
        "arcee": "here",
    }
    assert found["types"]["bert"]["refusal"].startswith("not a decoder: ")
    assert main(["families", "--all"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "Of 6 causal model types of transformers in their default configurations, 1 have a row, 1 are read" in printed
    )
    assert "4 are refused." in printed


def test_all_and_a_model_exclude_each_other(capsys):
    assert main(["families", "llama", "--all"]) == 2
    assert "--all tries every model type. Leave out the model, or --all." in capsys.readouterr().err


def test_sites_of_a_hybrid_are_those_that_any_layer_has():
    row = asdict(FAMILIES["nemotron_h"])
    assert all_sites(row) == ["resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post"]


def test_a_reason_for_missing_sites_is_given_once():
    said = {name: "; ".join(differences(asdict(FAMILIES[name]))) for name in ("nemotron_h", "mllama", "mamba2")}
    assert (
        "; some layers have no attn_in, attn_out, mlp_in, mlp_out: each of its layers is either" in said["nemotron_h"]
    )
    assert "; no resid_mid: each of its layers is either" in said["nemotron_h"]
    assert said["mllama"].endswith(
        "; some layers have no site: the layers that read images are skipped in a text without any"
    )
    assert said["mamba2"].count("its layers have no FFN") == 1


def test_the_readme_counts_the_model_types():
    types = {row.model_type or name for name, row in FAMILIES.items()}
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"**Models**: {len(types)} model types" in readme
