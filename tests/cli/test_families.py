"""Listing the model families and their proofs."""

import json
from dataclasses import replace

import pytest

from internal_policy.__main__ import main
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
