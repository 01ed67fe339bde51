"""Known rows are tried on a tiny model of a type without one: what passes every proof is used, the rest refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_rollout, saved, tiny_model
from made_up import (
    BackwardsConfig,
    BackwardsForCausalLM,
    DoubledConfig,
    DoubledForCausalLM,
    FittingConfig,
    FittingForCausalLM,
)
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import internal_policy as ip
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.look import summary, view
from internal_policy.models import families, trial
from internal_policy.models.families import family_of, row_of
from internal_policy.models.hooks import FINAL
from internal_policy.models.policy import policy_logits
from internal_policy.models.proofs import PROOFS
from internal_policy.models.rows import FAMILIES

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CLASSES = {FittingConfig: FittingForCausalLM, DoubledConfig: DoubledForCausalLM, BackwardsConfig: BackwardsForCausalLM}


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Nothing was tried before."""
    monkeypatch.setattr(families, "ADMITTED", {})
    monkeypatch.setattr(trial, "ADMITTED", families.ADMITTED)
    monkeypatch.setattr(trial, "_trials", {})


@pytest.fixture
def registered():
    """transformers knows the made-up types."""
    for config, model in CLASSES.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


def test_a_type_that_a_row_fits_is_read_with_it(registered, input_ids):
    model = AutoModelForCausalLM.from_config(FittingConfig(**SIZES), dtype=torch.float64)
    with pytest.raises(InputError, match=r"Call ip\.admit\(model\)"):
        policy_logits(model, FINAL, input_ids=input_ids)
    assert ip.admit(model) == "llama"
    assert family_of(model.config) is FAMILIES["llama"]
    assert row_of(model.config) == ("llama", "here")
    assert torch.equal(policy_logits(model, FINAL, input_ids=input_ids), model(input_ids).logits)


def test_a_type_that_no_row_fits_is_refused_with_its_contradiction(registered):
    with pytest.raises(
        InputError, match=r"^The model type 'doubled' has no row, and none of the known rows fits it: llama"
    ) as error:
        trial.admit_config(DoubledConfig(**SIZES))
    assert "llama comes closest, but 0.resid_post is not resid_mid + mlp_out" in str(error.value)
    assert "\n" not in str(error.value)
    assert not families.ADMITTED


def test_a_model_whose_tokens_see_later_ones_is_refused(registered):
    with pytest.raises(InputError, match="backwards isn't supported: its tokens see later tokens"):
        trial.admit_config(BackwardsConfig(**SIZES))


def test_a_missing_module_is_named():
    with pytest.raises(InputError, match=r"opt comes closest, but the model has no module model\.decoder"):
        trial.admit_config(AutoConfig.for_model("bart"))


def test_a_type_that_cannot_be_built_is_refused_in_a_sentence():
    with pytest.raises(InputError, match=r"'reformer' has no row.*: a tiny model of it can't be run"):
        trial.admit_config(AutoConfig.for_model("reformer"))


def test_a_type_of_the_table_is_not_tried(monkeypatch):
    monkeypatch.setattr(trial, "proved", None)
    assert ip.admit(tiny_model("qwen2")) == "qwen2"
    trial.admit_config(LlamaConfig())


def test_a_trial_shows_every_proof_and_is_remembered(registered, monkeypatch):
    found = trial.trial(FittingConfig(**SIZES))
    assert (found.row, found.contradictions, found.refusal) == ("llama", dict.fromkeys(PROOFS, ""), "")
    monkeypatch.setattr(trial, "proved", None)
    assert trial.trial(FittingConfig(**{**SIZES, "num_hidden_layers": 48, "vocab_size": 100_000})) is found


def test_a_configuration_with_other_features_is_tried_again(registered, monkeypatch):
    trial.trial(FittingConfig(**SIZES))
    monkeypatch.setattr(trial, "proved", lambda _: {"a claim": "it was tried"})
    assert "it was tried" in trial.trial(FittingConfig(**SIZES, attention_bias=True)).refusal


def test_one_process_reads_a_type_with_one_row(registered, monkeypatch):
    trial.admit_config(FittingConfig(**SIZES))
    families.ADMITTED["fitting"] = "gpt2"
    with pytest.raises(InputError, match="fits the row llama, but another in this process fitted gpt2"):
        trial.admit_config(FittingConfig(**SIZES))


def test_a_trial_that_takes_too_long_is_ended(registered, monkeypatch):
    monkeypatch.setattr(trial, "LIMIT", -1.0)
    with pytest.raises(InputError, match="trying them took longer than"):
        trial.admit_config(FittingConfig(**SIZES))


def test_a_trial_leaves_no_row_behind(registered):
    trial.trial(DoubledConfig(**SIZES))
    with pytest.raises(InputError, match="has no row in the table"):
        family_of(DoubledConfig(**SIZES))


def test_distinct_rows_read_elsewhere():
    found = trial.distinct()
    places = [row.sites for row in found.values()]
    assert all(FAMILIES[name].sites in places for name in ("llama", "gpt2", "olmo2", "gemma2", "gpt_neox"))
    assert "mistral" not in found
    assert len(found) < len(FAMILIES)


def test_a_scan_says_and_records_which_row_was_proved(registered, tokenizer, here, problems, capsys):
    folder = saved(FittingForCausalLM(FittingConfig(**SIZES)), tokenizer, here / "model")
    asked = ["scan", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "4", "--limit", "2"]
    assert main([*asked, "--output", "scan"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "'fitting' has no row of its own. It is read as llama, which passed every proof on a tiny model" in said
    assert json.loads(Path("scan/scan.json").read_text())["row"] == {"name": "llama", "proved": "here"}
    shown = summary.provenance(view.View(Path("scan")))["family"]
    assert shown.startswith("fitting (read as llama, proved on a tiny model for this scan), 3 layers")


def test_a_scan_in_memory_records_its_row(tokenizer):
    record = ip.scan(tiny_model("qwen3"), tokenizer, [random_rollout()]).record
    assert record["row"] == {"name": "qwen3", "proved": "table"}


# models with their own code


@pytest.fixture
def own_code(tmp_path, tokenizer) -> Path:
    """A folder with a model whose classes are in a file beside its weights."""
    folder = saved(FittingForCausalLM(FittingConfig(**SIZES)), tokenizer, tmp_path / "own")
    code = (Path(__file__).parents[1] / "made_up.py").read_text()
    (folder / "made_up.py").write_text(code.replace('"fitting"', '"unregistered"'))
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "unregistered"
    config["auto_map"] = {"AutoConfig": "made_up.FittingConfig", "AutoModelForCausalLM": "made_up.FittingForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_of_a_model_only_runs_with_the_flag(own_code):
    with pytest.raises(InputError, match=r"comes with Python code of its own.* add --trust-remote-code"):
        ip.load(str(own_code))
    model: Any = ip.load(str(own_code), trust_remote_code=True)[0]
    assert row_of(model.config) == ("llama", "here")
    assert type(model).__module__ != "made_up"
