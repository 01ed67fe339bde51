"""Every row of FAMILIES, proved on a tiny random model in float64: exact equality."""

import pytest
import torch
from conftest import FAMILY_NAMES, all_points, hook_count, read, tiny_model

from internal_policy.errors import InputError
from internal_policy.families import FAMILIES, decoder_layers, family_of, final_norm
from internal_policy.hooks import FINAL, SITES, HookPoint, hooked
from internal_policy.policy import policy_logits


@pytest.fixture
def states(model, input_ids):
    return read(model, all_points(model), input_ids)


def test_every_row_is_proved_here():
    assert set(FAMILIES) == set(FAMILY_NAMES)


def test_every_row_names_every_site_in_the_order_they_are_reached():
    assert all(tuple(row.sites) == SITES for row in FAMILIES.values())


def test_a_row_is_found_by_the_models_own_type(model, family):
    assert model.config.model_type == family


def test_attention_is_what_is_added_to_the_stream(states):
    for layer in range(3):
        pre, out = states[HookPoint(layer, "resid_pre")], states[HookPoint(layer, "attn_out")]
        assert torch.equal(states[HookPoint(layer, "resid_mid")], pre + out)


def test_the_mlp_is_what_is_added_to_the_stream(states):
    for layer in range(3):
        mid, out = states[HookPoint(layer, "resid_mid")], states[HookPoint(layer, "mlp_out")]
        assert torch.equal(states[HookPoint(layer, "resid_post")], mid + out)


def test_a_layer_reads_what_the_layer_before_wrote(states):
    for layer in range(2):
        assert torch.equal(states[HookPoint(layer, "resid_post")], states[HookPoint(layer + 1, "resid_pre")])


def test_the_stream_is_the_embedding_and_all_that_was_added(states):
    stream = states[HookPoint(0, "resid_pre")]  # Eq. 4: H^l = H^0 + sum of A^i + F^i
    for layer in range(3):
        stream = stream + states[HookPoint(layer, "attn_out")] + states[HookPoint(layer, "mlp_out")]
        torch.testing.assert_close(states[HookPoint(layer, "resid_post")], stream, rtol=1e-13, atol=1e-13)


def test_the_stream_starts_with_the_embedding(model, states, input_ids):
    assert torch.equal(states[HookPoint(0, "resid_pre")], model.get_input_embeddings()(input_ids))


def test_resid_pre_is_transformers_hidden_state(model, states, input_ids):
    hidden_states = model(input_ids, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(states[HookPoint(layer, "resid_pre")], hidden_states[layer])


def test_final_is_transformers_last_hidden_state(model, states, input_ids):
    assert torch.equal(states[FINAL], model(input_ids, output_hidden_states=True).hidden_states[-1])


def test_attn_in_is_the_layers_own_norm_of_the_stream(model, states):
    for number, layer in enumerate(decoder_layers(model)):
        normed = layer.get_submodule("input_layernorm")(states[HookPoint(number, "resid_pre")])
        assert torch.equal(states[HookPoint(number, "attn_in")], normed)


def test_mlp_in_is_the_layers_own_norm_of_the_stream(model, states):
    for number, layer in enumerate(decoder_layers(model)):
        normed = layer.get_submodule("post_attention_layernorm")(states[HookPoint(number, "resid_mid")])
        assert torch.equal(states[HookPoint(number, "mlp_in")], normed)


def test_mlp_out_is_the_mlp_of_mlp_in(model, states):
    for number, layer in enumerate(decoder_layers(model)):
        out = layer.get_submodule("mlp")(states[HookPoint(number, "mlp_in")])
        assert torch.equal(states[HookPoint(number, "mlp_out")], out)


def test_final_is_the_final_norm_of_the_last_stream(model, states):
    assert torch.equal(states[FINAL], final_norm(model)(states[HookPoint(2, "resid_post")]))


def test_final_policy_is_the_models_own(model, input_ids):
    assert torch.equal(policy_logits(model, FINAL, input_ids=input_ids), model(input_ids).logits)


def test_hook_points_come_in_order(model, input_ids):
    points = all_points(model)
    assert list(read(model, reversed(points), input_ids)) == points


def test_no_hook_stays_behind_after_an_exception(model):
    before = hook_count(model)
    with hooked(model, all_points(model), print):
        assert hook_count(model) == before + 22  # 3 layers of 7 sites, and FINAL
    with pytest.raises(KeyboardInterrupt), hooked(model, all_points(model), print):
        raise KeyboardInterrupt
    assert hook_count(model) == before


def test_no_hook_stays_behind_after_a_visitor_fails(model, input_ids):
    def fail(point, hidden):
        raise RuntimeError(f"at {point}")

    before = hook_count(model)
    with pytest.raises(RuntimeError, match=r"at 0\.resid_pre"), hooked(model, all_points(model), fail):
        model(input_ids)
    assert hook_count(model) == before


def test_unknown_family_is_refused_with_the_known_ones_and_the_place_to_add_it():
    sentence = r"'opt'; known are llama, mistral, qwen2, qwen3\. Add a row to FAMILIES in internal_policy/families\.py"
    with pytest.raises(InputError, match=sentence):
        family_of("opt")


def test_a_model_of_an_unknown_family_is_refused(input_ids):
    model = tiny_model("gpt_neox")
    with pytest.raises(InputError, match="Unknown model family 'gpt_neox'"):
        policy_logits(model, FINAL, input_ids=input_ids)
