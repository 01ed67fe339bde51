"""A correct row is proved on a tiny random model, and a wrong one isn't."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from internal_policy.models.proofs import prove
from internal_policy.models.rows import FAMILIES
from internal_policy.models.tiny import tiny

LLAMA, GEMMA, PARALLEL, SEQUENTIAL = (
    dict(FAMILIES[name].sites) for name in ("llama", "gemma2", "gpt_neox", "gpt_neox_sequential")
)
ADDS_UP = "exactly what attention and FFN add"
WRONG = {
    "a norm after the module is left out": ("gemma2", {"sites": LLAMA}, [ADDS_UP]),
    "dropout after the module is left out": ("phi3", {"sites": LLAMA}, [ADDS_UP]),
    "the FFN's input is read elsewhere": (
        "gemma2",
        {"sites": {**GEMMA, "mlp_in": ("post_attention_layernorm", "output")}},
        ["attn_in and mlp_in"],
    ),
    "the multiplier is left out": ("granite", {"multiplier": None}, [ADDS_UP]),
    "the divisor is left out": ("granite", {"divisor": None}, ["at final", "as_policy"]),
    "the cap is left out": ("gemma2", {"cap": None}, ["at final", "as_policy"]),
    "parallel modules are read as sequential": ("gpt_neox", {"sites": SEQUENTIAL}, [ADDS_UP]),
    "sequential modules are read as parallel": ("gpt_neox_sequential", {"sites": PARALLEL}, ["attn_in and mlp_in"]),
    "the stream is read after the norm": (
        "llama",
        {"sites": {**LLAMA, "resid_pre": ("input_layernorm", "output")}},
        [ADDS_UP, "hidden state"],
    ),
    "the final norm is another": (
        "llama",
        {"final_norm": "model.layers.2.input_layernorm"},
        ["hidden state", "at final", "as_policy"],
    ),
    "sites are not in order": ("llama", {"sites": dict(list(LLAMA.items())[::-1])}, ["in order"]),
}
"""Mistake -> the family, what of its row is wrong, and words of the claims that it contradicts."""


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_row_is_not_proved(monkeypatch, mistake):
    name, change, claims = WRONG[mistake]
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], **{"absent": {}, **change}))
    failed = [claim for claim, found in prove(name).items() if found]
    for words in claims:
        assert any(words in claim for claim in failed), (words, failed)


def test_a_row_with_a_missing_module_is_not_proved(monkeypatch):
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], final_norm="model.nowhere"))
    *found, pieces, batches = prove("llama").values()
    assert all("nowhere" in text for text in found)
    assert (pieces, batches) == ("", "")  # these need no hook points


def test_a_row_whose_model_cannot_be_built_is_not_proved(monkeypatch):
    monkeypatch.setitem(FAMILIES, "nowhere", FAMILIES["llama"])
    assert set(map(bool, prove("nowhere").values())) == {True}


def test_a_hook_that_is_left_behind_is_found(monkeypatch):
    monkeypatch.setattr("torch.utils.hooks.RemovableHandle.remove", lambda _: None)
    found = prove("llama")["no hook is left behind after an exception"]
    assert found == "24 hooks are left behind"  # 3 layers of 7 sites, FINAL, and the start and end of a pass


def test_a_broken_as_policy_is_found(monkeypatch):
    monkeypatch.setattr("internal_policy.models.proofs.as_policy", lambda *_: nullcontext())
    assert "1.resid_pre isn't that policy" in prove("llama")["as_policy turns the model into each of its policies"]


def test_proving_does_not_change_the_state_of_torch():
    before = torch.get_rng_state(), torch.get_num_threads()
    prove("llama")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_a_tiny_model_is_always_the_same():
    one, other = (tiny("qwen3").state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_tiny_model_is_changed_by_its_configuration():
    assert tiny("gpt2", num_hidden_layers=1).config.num_hidden_layers == 1
    assert tiny("gemma3", num_hidden_layers=1).config.get_text_config().num_hidden_layers == 1
