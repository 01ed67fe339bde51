"""What is special about the newest Llama and Qwen families."""

import pytest
import torch
from conftest import all_points, read, tiny_model

from internal_policy.models.families import kind_of, places_at
from internal_policy.models.hooks import HookPoint
from internal_policy.models.modules import decoder_layers

HYBRIDS = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"]


@pytest.mark.parametrize("family", HYBRIDS)
def test_linear_attention_is_the_attention_of_its_layer(family, input_ids):
    model = tiny_model(family)
    states = read(model, all_points(model), input_ids)
    assert [kind_of(model.config, layer) for layer in range(3)] == [
        "linear_attention",
        "full_attention",
        "linear_attention",
    ]
    for number in (0, 2):
        expected = decoder_layers(model)[number].get_submodule("linear_attn")(states[HookPoint(number, "attn_in")])
        assert torch.equal(states[HookPoint(number, "attn_out")], expected)


def test_every_layer_of_a_hybrid_has_every_site():
    for family in HYBRIDS:
        config = tiny_model(family).config
        assert {len(places_at(config, layer)) for layer in range(3)} == {7}


def test_experts_that_flatten_the_batch_are_read_in_the_shape_of_the_stream(input_ids):
    model = tiny_model("llama4_text")
    states = read(model, all_points(model), input_ids)
    experts = decoder_layers(model)[1].get_submodule("feed_forward")
    flat, _ = experts(states[HookPoint(1, "mlp_in")])
    assert flat.shape == (22, 32)
    assert torch.equal(states[HookPoint(1, "mlp_out")], flat.view(2, 11, 32))
