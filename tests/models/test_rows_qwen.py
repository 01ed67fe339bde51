"""What is special about the newest Llama and Qwen families."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import all_points, random_rollout, read, tiny_model
from torch import Tensor

from internal_policy.measure.metrics import entropy
from internal_policy.models.families import kind_of, places_at
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import HookPoint
from internal_policy.models.modules import decoder_layers
from internal_policy.models.passes import sampled_together
from internal_policy.models.policy import as_policy
from internal_policy.scans import blocks as blocks_module
from internal_policy.scans.scan import scan
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import Message, Problem

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


# batches and pieces

ROLLOUTS = [random_rollout(*lengths, seed) for seed, lengths in enumerate([(4, 9), (7, 3), (1, 14), (5, 9)])]
FAMILIES = ["llama4_text", "qwen3_next", "qwen3_5", "qwen2_5_vl", "qwen3_vl", "mllama"]
SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama4", "qwen2_vl", "qwen3_5_moe", "qwen3_vl_moe")]


def measured(monkeypatch, model, batch, length=1000) -> Tensor:
    """The states at every hook point of all response tokens; reads `batch` rollouts and `length` tokens at a time."""
    points, states = all_points(model), []
    monkeypatch.setattr(blocks_module, "STATE_BYTES", length * batch * len(points) * 32 * 8)
    with torch.inference_mode():
        for first in range(0, len(ROLLOUTS), batch):
            parts = list(blocks_module.blocks(model, ROLLOUTS[first : first + batch], points))
            order = torch.cat([number for number, _, _ in parts]).argsort()
            states.append(torch.cat([hidden for _, _, hidden in parts], 1)[:, order])
    return torch.cat(states, 1)


def precise(monkeypatch, model) -> None:
    """Let the gated delta rule compute in float64; in float32, as in transformers, rounding depends on the pieces."""
    for module in {type(each).__module__ for each in model.modules() if "GatedDeltaNet" in type(each).__name__}:
        double = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
        monkeypatch.setattr(sys.modules[module], "torch", double)


@pytest.mark.parametrize("family", [*FAMILIES, *SLOWLY])
def test_neither_batches_nor_pieces_change_the_states(monkeypatch, family):
    model = tiny_model(family)
    precise(monkeypatch, model)
    alone = measured(monkeypatch, model, 1)
    tolerance = 1e-5 if family.startswith("llama4") else 1e-9  # its norm and rotation are computed in float32
    for batch, length in ((4, 1000), (4, 1), (4, 3), (2, 5)):
        found = measured(monkeypatch, model, batch, length)
        torch.testing.assert_close(found, alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES[:4], *SLOWLY[1:]])
def test_a_scan_agrees_with_plain_transformers_in_lower_precision(family, dtype, tokenizer):
    model: Any = tiny_model(family).to(dtype)
    one = ROLLOUTS[0]
    found: Any = scan(model, tokenizer, [one]).policies
    found = found[found["readout"] == "raw"].set_index("layer")
    with torch.inference_mode():
        own = model(torch.tensor([one.ids]), output_hidden_states=True)
    logits = torch.empty(0)
    expected = {(0, "resid_post"): 1, (1, "resid_post"): 2, (3, "final"): -1}  # place -> number in hidden_states
    for (layer, site), number in expected.items():
        logits = own.hidden_states[number][0, 3:-1].double() @ unembedding(model).weight.detach().double().T
        error = found.loc[layer, f"{site}.entropy"].to_numpy() - entropy(logits).numpy()
        assert abs(error).max() < 1e-4, site
    rounding = 1e-4 if dtype == torch.float32 else 0.05  # its own logits are in bfloat16
    torch.testing.assert_close(logits.softmax(-1), own.logits[0, 3:-1].double().softmax(-1), rtol=0, atol=rounding)


# generation

PROBLEMS = [Problem((Message(role="user", content=text),), None) for text in ("a", "What is 12 + 5?", "Count to 3")]


def sampled(model: Any, tokenizer: Any, batch_size: int, n: int = 8) -> list[tuple[int, ...]]:
    """Greedy responses."""
    batches = generate(model, tokenizer, PROBLEMS, temperature=0.0, batch_size=batch_size, max_new_tokens=n, chat=None)
    return [rollout.response_ids for batch in batches for rollout in batch]


@pytest.mark.parametrize("family", [*FAMILIES, *SLOWLY])
@pytest.mark.parametrize("point", ["final", "0.resid_post", "2.attn_out"])
def test_left_padding_does_not_change_what_is_sampled(family, point, tokenizer):
    model = tiny_model(family)
    with as_policy(model, point):
        assert sampled(model, tokenizer, 3) == sampled(model, tokenizer, 1)


def test_prompts_are_sampled_apart_once_llama_4_may_change_its_temperature():
    config = tiny_model("llama4_text", floor_scale=100).config
    assert sampled_together(config, [5, 9, 5], 90) == [[0, 1, 2]]  # 99 tokens; the 100th is read at another temperature
    assert sampled_together(config, [5, 9, 5], 91) == [[0, 2], [1]]
    config.attn_temperature_tuning = False
    assert sampled_together(config, [5, 9, 5], 91) == [[0, 1, 2]]


@pytest.mark.parametrize("family", ["llama4_text", "qwen3_5", "mllama"])
@pytest.mark.parametrize("point", ["0.resid_post", "2.attn_out"])
def test_inside_as_policy_a_cache_does_not_change_the_tokens(family, point, input_ids):
    model: Any = tiny_model(family)
    model.generation_config.eos_token_id = None
    with as_policy(model, point):
        ids = input_ids
        for _ in range(6):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(model.generate(input_ids, do_sample=False, max_new_tokens=6), ids)
