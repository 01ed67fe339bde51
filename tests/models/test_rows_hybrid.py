"""What is special about hybrids, state-space models and Gemma 4: layers of several kinds, and what else they add."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import read, saved, tiny_model
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.models.families import check_sites, family_of, layer_sites, sites_of
from internal_policy.models.hooks import HookPoint
from internal_policy.models.modules import decoder_layers, part
from internal_policy.models.proofs import prove
from internal_policy.models.rows import FAMILIES
from internal_policy.models.rows.refused import REFUSED

FEW = ["nemotron_h", "granitemoehybrid", "falcon_h1", "mamba", "gemma4_text"]
"""One of each kind."""


@pytest.mark.parametrize("name", FEW)
def test_one_row_of_each_kind_is_proved(name):
    assert not any(prove(name).values())


# layers of several kinds


def test_a_layer_of_nemotron_h_has_only_attention_or_an_ffn():
    config = tiny_model("nemotron_h").config
    attention = ("resid_pre", "attn_in", "attn_out", "resid_post")
    ffn = ("resid_pre", "mlp_in", "mlp_out", "resid_post")
    assert layer_sites(config) == {0: attention, 1: ffn, 2: attention, 3: ffn}
    assert sites_of(config) == ("resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post")


def test_a_site_that_a_layer_lacks_is_refused_with_the_layers_that_have_it():
    sentence = (
        "There is no mlp_out in layers 0,2 of nemotron_h, because each of its layers is either attention, a Mamba "
        "block or an FFN. Choose the layers 1,3, or all sites."
    )
    with pytest.raises(InputError) as error:
        check_sites(tiny_model("nemotron_h").config, range(4), ["mlp_out"])
    assert str(error.value) == sentence


def test_a_state_space_model_has_no_ffn():
    with pytest.raises(InputError, match="mamba has no mlp_out because its layers have no FFN, only a Mamba block"):
        check_sites(tiny_model("mamba").config, [0], ["mlp_out"])


@pytest.mark.parametrize(
    ("name", "attention"),
    [("granitemoehybrid", ["mamba", "self_attn", "mamba"]), ("lfm2", ["conv", "self_attn", "conv"])],
)
def test_the_mixer_of_a_layer_is_its_attention(name, attention, input_ids):
    model, outputs = tiny_model(name), []
    for layer, path in zip(decoder_layers(model), attention, strict=True):
        part(layer, path).register_forward_hook(lambda *given: outputs.append(given[-1]))
    states = read(model, [f"{layer}.attn_out" for layer in range(3)], input_ids)
    factor = 0.22 if name == "granitemoehybrid" else 1
    for output, state in zip(outputs, states.values(), strict=True):
        assert torch.equal(state, (output[0] if isinstance(output, tuple) else output) * factor)


@pytest.mark.parametrize("name", ["nemotron_h", pytest.param("granitemoehybrid", marks=pytest.mark.slow)])
def test_all_sites_of_a_hybrid_are_scanned_and_those_a_layer_lacks_are_null(name, tokenizer, problems, here, capfd):
    folder = saved(tiny_model(name).float(), tokenizer, here / "model")
    asked = ["scan", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "3"]
    assert main([*asked, "--sites", "all", "--output", str(here / "scan")]) == 0
    assert "kernel" not in capfd.readouterr().err  # transformers says for each model that kernels are missing
    table = pd.concat(pd.read_parquet(path) for path in (here / "scan").glob("policies-*.parquet"))
    known = layer_sites(AutoConfig.from_pretrained(folder))
    for layer, sites in known.items():
        for site in sites_of(AutoConfig.from_pretrained(folder)):
            measured = table.loc[table["layer"] == layer, f"{site}.entropy"].notna()
            assert measured.all() if site in sites else not measured.any()


def test_naming_a_site_that_a_layer_lacks_is_refused_on_the_command_line(tokenizer, problems, here, capsys):
    folder = saved(tiny_model("nemotron_h").float(), tokenizer, here / "model")
    asked = ["scan", "--model", str(folder), "--problems", str(problems), "--sites", "mlp_out"]
    assert main(asked) == 2
    assert "There is no mlp_out in layers 0,2 of nemotron_h" in capsys.readouterr().err
    assert main([*asked, "--layers", "1,3", "--max-new-tokens", "3", "--output", str(here / "scan")]) == 0


# what is added


def test_attention_of_falcon_h1_is_a_sum_of_multiplied_outputs(input_ids):
    model, outputs = tiny_model("falcon_h1"), {}
    layer = decoder_layers(model)[1]
    part(layer, "mamba").register_forward_hook(lambda *given: outputs.update(mamba=given[-1]))
    part(layer, "self_attn").register_forward_hook(lambda *given: outputs.update(attention=given[-1][0]))
    [state] = read(model, ["1.attn_out"], input_ids).values()
    assert torch.equal(state, outputs["mamba"] * 0.3 + outputs["attention"] * 0.7)


def test_a_layer_of_gemma_4_adds_an_embedding_and_rescales_the_stream(input_ids):
    model, added = tiny_model("gemma4_text"), []
    layer = decoder_layers(model)[1]
    part(layer, "post_per_layer_input_norm").register_forward_hook(lambda *given: added.append(given[-1]))
    states = read(model, ["1.resid_mid", "1.mlp_out", "1.resid_post"], input_ids)
    mid, out, post = (states[HookPoint(1, site)] for site in ("resid_mid", "mlp_out", "resid_post"))
    scale = layer.get_buffer("layer_scalar")
    assert torch.equal(post, (mid + out + added[0]) * scale)
    assert scale != 1


@pytest.mark.parametrize("change", [{"extra": ""}, {"scale": ""}])
def test_a_row_without_what_is_added_or_rescaled_is_contradicted(monkeypatch, change):
    monkeypatch.setitem(FAMILIES, "gemma4_text", replace(FAMILIES["gemma4_text"], **change))
    found = [text for text in prove("gemma4_text").values() if text]
    assert len(found) == 1
    assert found[0].startswith("0.resid_post is not resid_mid + mlp_out")


def test_a_row_with_another_factor_is_contradicted(monkeypatch):
    row = FAMILIES["falcon_h1"]
    sites = {**row.sites, "attn_out": ("mamba*ssm_out_multiplier+self_attn", "output")}
    monkeypatch.setitem(FAMILIES, "falcon_h1", replace(row, sites=sites))
    assert any("resid_mid is not resid_pre + attn_out" in text for text in prove("falcon_h1").values())


# refusals


def test_a_refused_type_has_no_row():
    assert REFUSED.keys() <= set(CONFIG_MAPPING.keys())
    assert not REFUSED.keys() & {row.model_type or name for name, row in FAMILIES.items()}


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_without_one_stream_is_refused_with_the_reason(model_type):
    config = type("Refused", (PreTrainedConfig,), {"model_type": model_type})()
    with pytest.raises(InputError) as error:
        family_of(config)
    assert str(error.value) == f"{model_type} isn't supported: {REFUSED[model_type]}."


def test_rwkv_that_halves_its_stream_is_refused():
    config = tiny_model("rwkv").config
    config.rescale_every = 6
    with pytest.raises(InputError, match="rwkv with rescale_every 6 isn't supported"):
        family_of(config)
