"""Every row of FAMILIES, proved on a tiny random model in float64: exact equality."""

from typing import Any

import pytest
import torch
from conftest import EVERY_FAMILY, FEW, LLAMA_SHAPED, all_points, hook_count, read, tiny_model
from torch import nn
from transformers import PreTrainedConfig

from internal_policy.errors import InputError
from internal_policy.measure.sites import SITES
from internal_policy.models.families import family_of, multiplier, sites_of
from internal_policy.models.head import bias_of, logit_transform, unembedding, weight_alone
from internal_policy.models.hooks import FINAL, HookPoint, hooked, locate
from internal_policy.models.modules import backbone, decoder_layers, final_norm
from internal_policy.models.policy import as_policy, policy_logits
from internal_policy.models.proofs import PROOFS, prove
from internal_policy.models.rows import FAMILIES
from internal_policy.models.tiny import tiny_config

DETAILED = [*FEW, "gemma3", "phi3", "gpt_neox_sequential"]
"""Families whose sites are also compared with transformers' own modules by name; the proofs know no names."""
NORMS = {
    **dict.fromkeys(DETAILED, ("input_layernorm", "post_attention_layernorm")),
    **dict.fromkeys(["gemma2", "gemma3"], ("input_layernorm", "pre_feedforward_layernorm")),
    "olmo2": (None, None),
    "gpt2": ("ln_1", "ln_2"),
}
"""The norms before attention and FFN in transformers' own code; the modules of OLMo 2 read the stream itself."""
AFTER = dict.fromkeys(["gemma2", "gemma3", "olmo2"], "post_feedforward_layernorm")
"""The norm between the FFN and the stream."""
DROPOUT = {
    "phi3": {"resid_pdrop": 0.5},
    "gpt2": {"resid_pdrop": 0.5},
    "gpt_neox": {"hidden_dropout": 0.5},
    "gpt_neox_sequential": {"hidden_dropout": 0.5},
}
"""Some families that drop some of what a module wrote, in training."""
PARALLEL = [name for name in DETAILED if "resid_mid" in FAMILIES[name].absent]
MULTIPLIED = [name for name in DETAILED if FAMILIES[name].multiplier]


@pytest.fixture(params=DETAILED)
def family(request):
    return request.param


@pytest.fixture
def states(model, input_ids):
    return read(model, all_points(model), input_ids)


# the proofs, as `internal-policy families` runs them


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_row_is_proved(family):
    assert prove(family) == dict.fromkeys(PROOFS, "")


# rows


def test_every_row_lists_its_sites_in_forward_order():
    for row in FAMILIES.values():
        for sites in (row.sites, *row.kinds.values()):
            assert tuple(sites) == tuple(site for site in SITES if site in sites)
            assert {*sites, *row.absent} == set(SITES)


def test_every_row_is_found_by_its_configuration_and_no_other_fits_as_well():
    for name, row in FAMILIES.items():
        config = tiny_config(name)
        text = config.get_text_config()
        assert config.model_type == (row.model_type or name)
        assert family_of(config) is row
        conditions = {
            other: len(each.needs)
            for other, each in FAMILIES.items()
            if (each.model_type or other) == config.model_type
            and all(getattr(text, key) in values for key, values in each.needs.items())
        }
        assert [other for other, n in conditions.items() if n == max(conditions.values())] == [name]


# what the sites are


@pytest.mark.parametrize("family", [name for name in DETAILED if name not in PARALLEL])
def test_attn_out_is_what_attention_adds_to_the_stream(states):
    for layer in range(3):
        pre, out = states[HookPoint(layer, "resid_pre")], states[HookPoint(layer, "attn_out")]
        assert torch.equal(states[HookPoint(layer, "resid_mid")], pre + out)


def test_mlp_out_is_what_the_mlp_adds_to_the_stream(family, states):
    for layer in range(3):
        out, post = states[HookPoint(layer, "mlp_out")], states[HookPoint(layer, "resid_post")]
        if family in PARALLEL:
            attn, pre = states[HookPoint(layer, "attn_out")], states[HookPoint(layer, "resid_pre")]
            assert torch.equal(post, out + attn + pre)
        else:
            assert torch.equal(post, states[HookPoint(layer, "resid_mid")] + out)


@pytest.mark.parametrize("family", DROPOUT)
def test_module_outputs_are_read_after_dropout(family, input_ids):
    model = tiny_model(family, **DROPOUT[family]).train()
    states = read(model, all_points(model), input_ids)
    for layer in range(3):
        out = states[HookPoint(layer, "mlp_out")]
        assert (out == 0).float().mean() > 0.3
        if family in PARALLEL:
            added = out + states[HookPoint(layer, "attn_out")] + states[HookPoint(layer, "resid_pre")]
        else:
            mid = states[HookPoint(layer, "resid_mid")]
            assert torch.equal(mid, states[HookPoint(layer, "attn_out")] + states[HookPoint(layer, "resid_pre")])
            added = mid + out
        assert torch.equal(states[HookPoint(layer, "resid_post")], added)


def test_a_layer_reads_the_output_of_the_layer_before(states):
    for layer in range(2):
        assert torch.equal(states[HookPoint(layer, "resid_post")], states[HookPoint(layer + 1, "resid_pre")])


def test_the_stream_is_the_embedding_plus_all_module_outputs(states):
    stream = states[HookPoint(0, "resid_pre")]  # Eq. 4: H^l = H^0 + sum of A^i + F^i
    for layer in range(3):
        stream = stream + states[HookPoint(layer, "attn_out")] + states[HookPoint(layer, "mlp_out")]
        torch.testing.assert_close(states[HookPoint(layer, "resid_post")], stream, rtol=1e-13, atol=1e-13)


def test_the_stream_starts_with_the_embedding(family, model, states, input_ids):
    embedded = model.get_input_embeddings()(input_ids)  # Gemma scales inside it
    if family == "gpt2":
        embedded = embedded + model.get_submodule("transformer.wpe")(torch.arange(11))
    if family == "granite":
        embedded = embedded * 3.0
    assert torch.equal(states[HookPoint(0, "resid_pre")], embedded)


def test_resid_pre_is_transformers_hidden_state(model, states, input_ids):
    hidden_states = model(input_ids, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(states[HookPoint(layer, "resid_pre")], hidden_states[layer])


def test_final_is_transformers_last_hidden_state(model, states, input_ids):
    assert torch.equal(states[FINAL], model(input_ids, output_hidden_states=True).hidden_states[-1])


def test_a_module_reads_the_normed_stream(family, model, states):
    for number, layer in enumerate(decoder_layers(model)):
        pre = states[HookPoint(number, "resid_pre")]
        streams = {"attn_in": pre, "mlp_in": states.get(HookPoint(number, "resid_mid"), pre)}
        for (site, stream), norm in zip(streams.items(), NORMS[family], strict=True):
            expected = layer.get_submodule(norm)(stream) if norm else stream
            assert torch.equal(states[HookPoint(number, site)], expected)


def test_mlp_out_is_the_mlp_applied_to_mlp_in(family, model, states):
    for number, layer in enumerate(decoder_layers(model)):
        out = layer.get_submodule("mlp")(states[HookPoint(number, "mlp_in")])
        out = out[0] if isinstance(out, tuple) else out
        if family in AFTER:
            out = layer.get_submodule(AFTER[family])(out)
        assert torch.equal(states[HookPoint(number, "mlp_out")], out * multiplier(model.config, "mlp_out"))


@pytest.mark.parametrize("family", MULTIPLIED)
def test_multiplied_outputs_are_read_after_multiplication(family, model, states):
    assert multiplier(model.config, "attn_out") == multiplier(model.config, "mlp_out") == 0.22
    assert {multiplier(model.config, site) for site in SITES if not site.endswith("_out")} == {1.0}


def test_final_is_the_final_norm_of_the_last_layers_output(model, states):
    assert torch.equal(states[FINAL], final_norm(model)(states[HookPoint(2, "resid_post")]))


def test_final_policy_is_the_models_own(model, input_ids):
    assert torch.equal(policy_logits(model, FINAL, input_ids=input_ids), model(input_ids).logits)


@pytest.mark.parametrize(("family", "name", "value"), [("granite", "divisor", 2.0), ("gemma2", "cap", 3.0)])
def test_the_logit_transform_follows_the_configuration(family, name, value):
    assert getattr(logit_transform(tiny_model(family)), name) == value


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_logits_are_not_capped_without_a_cap_in_the_configuration(family, input_ids):
    model = tiny_model(family, final_logit_softcapping=None)
    assert torch.equal(policy_logits(model, FINAL, input_ids=input_ids), model(input_ids).logits)
    assert model(input_ids).logits.abs().max() > 3


def test_hook_points_come_in_order(model, input_ids):
    points = all_points(model)
    assert list(read(model, reversed(points), input_ids)) == points


def test_no_hook_is_left_after_an_exception(model):
    before, points = hook_count(model), all_points(model)
    with hooked(model, points, print):
        assert hook_count(model) >= before + len(points)
    with pytest.raises(KeyboardInterrupt), hooked(model, points, print):
        raise KeyboardInterrupt
    assert hook_count(model) == before


def test_no_hook_is_left_after_a_visitor_fails(model, input_ids):
    def fail(point, hidden):
        raise RuntimeError(f"at {point}")

    before = hook_count(model)
    with pytest.raises(RuntimeError, match=r"at 0\.resid_pre"), hooked(model, all_points(model), fail):
        model(input_ids)
    assert hook_count(model) == before


# refusals


SENTENCE = (
    r"gpt_neox has no resid_mid because attention and FFN read the same stream and are added to it together\. "
    r"Its sites are resid_pre, attn_in, attn_out, mlp_in, mlp_out, resid_post\."
)


@pytest.mark.parametrize("family", PARALLEL)
def test_a_site_the_family_lacks_is_rejected_with_the_reason(model, input_ids):
    point = HookPoint(1, "resid_mid")
    assert "resid_mid" not in sites_of(model.config)
    with pytest.raises(InputError, match=SENTENCE), hooked(model, [point], print):
        pass
    with pytest.raises(InputError, match=SENTENCE):
        policy_logits(model, point, input_ids=input_ids)
    with pytest.raises(InputError, match=SENTENCE), as_policy(model, point):
        pass


def test_only_a_bias_other_than_0_counts():
    model = tiny_model("llama")
    last: Any = model.get_output_embeddings()
    assert bias_of(unembedding(model)) is None
    last.bias = nn.Parameter(torch.zeros(320, dtype=torch.float64))
    assert bias_of(unembedding(model)) is None
    last.bias = nn.Parameter(torch.ones(320, dtype=torch.float64))
    assert bias_of(unembedding(model)) is last.bias
    with pytest.raises(InputError, match="The unembedding has a bias, which only scans of the model itself"):
        weight_alone(last)


def test_a_bias_on_a_gpu_counts_too():
    class OnGpu(nn.Parameter):
        is_cuda = True

    last: Any = tiny_model("llama").get_output_embeddings()
    last.bias = OnGpu(torch.ones(320, dtype=torch.float64))
    assert bias_of(last) is last.bias


def test_a_model_without_an_unembedding_is_rejected(input_ids):
    body = tiny_model("llama").model
    with pytest.raises(InputError, match=r"This LlamaModel has no module model\. Load the whole model with Auto"):
        policy_logits(body, FINAL, input_ids=input_ids)
    with pytest.raises(InputError, match=r"This model has no unembedding\. Load it with AutoModelForCausalLM"):
        unembedding(body)


def packed(linear):
    """A four-bit matrix, as bitsandbytes stores it."""
    linear.weight = nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    return linear


@pytest.mark.parametrize("change", [packed, lambda linear: nn.Sequential(linear)], ids=["packed", "wrapped"])
def test_an_unembedding_that_is_not_one_matrix_is_rejected(change):
    model = tiny_model("llama")
    model.lm_head = change(model.lm_head)
    with pytest.raises(InputError, match=r"whose weight isn't one plain matrix\. Load the model without quantizing"):
        unembedding(model)


def test_layers_outside_a_module_list_are_rejected():
    model = tiny_model("llama")
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(InputError, match=r"model\.layers of this LlamaForCausalLM is a Sequential"):
        decoder_layers(model)


def test_a_layer_that_lacks_a_module_is_rejected():
    model = tiny_model("llama")
    del model.model.layers[1].post_attention_layernorm
    with pytest.raises(InputError, match="This LlamaDecoderLayer has no module post_attention_layernorm"):
        locate(model, HookPoint(1, "mlp_in"))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_backbone_is_transformers_decoder(model):
    decoder = model.get_decoder()
    assert backbone(model) is getattr(decoder, "model", decoder)  # Llama 4 gives the model around its decoder


def test_a_type_without_a_row_is_refused_with_the_remedy():
    with pytest.raises(InputError) as error:
        family_of(UnheardOf())
    assert str(error.value) == (
        "The model type 'unheard_of' has no row in the table of families. Call ip.admit(model) to try the known rows, "
        "or `internal-policy families MODEL` to see why none fits."
    )


class UnheardOf(PreTrainedConfig):
    """A configuration of a type without a row."""

    model_type = "unheard_of"


def test_a_model_of_an_unknown_family_is_rejected(input_ids):
    model = tiny_model("llama")
    model.config = UnheardOf()
    with pytest.raises(InputError, match="The model type 'unheard_of' has no row"):
        policy_logits(model, FINAL, input_ids=input_ids)


@pytest.mark.parametrize("family", ["gemma3_text", "gemma3"])
def test_a_bidirectional_model_is_rejected(family):
    config = tiny_model(family, use_bidirectional_attention=True).config
    with pytest.raises(
        InputError, match=rf"{family} with use_bidirectional_attention True isn't supported\. Add a row"
    ):
        family_of(config)


@pytest.mark.parametrize("family", LLAMA_SHAPED)
def test_llamas_module_names_fit_many_families(family):
    assert FAMILIES[family].sites == FAMILIES["llama"].sites
    assert FAMILIES[family].layers == "model.layers"
