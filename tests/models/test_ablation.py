"""Ablation takes away exactly what a layer or module adds to the stream, and leaves the model as it was."""

from typing import Any

import pytest
import torch
from conftest import EVERY_FAMILY, FEW, hook_count, read, tiny_model
from torch import Tensor, nn

import internal_policy as ip
from internal_policy.errors import InputError
from internal_policy.models.ablation import WRITES, ablatable, ablated, can_restart, recorded, restarted
from internal_policy.models.head import logit_transform
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.modules import decoder_layers, final_norm
from internal_policy.models.policy import as_policy

LLAMA = (("input_layernorm", "self_attn", ""), ("post_attention_layernorm", "mlp", ""))
STEPS = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "mixtral": LLAMA,
    "granite": LLAMA,
    "gemma2": (
        ("input_layernorm", "self_attn", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    ),
    "olmo2": (("", "self_attn", "post_attention_layernorm"), ("", "mlp", "post_feedforward_layernorm")),
    "gpt_neox": (("input_layernorm", "attention", ""), ("post_attention_layernorm", "mlp", "")),
    "lfm2": (("operator_norm", "conv self_attn", ""), ("ffn_norm", "feed_forward", "")),
    "nemotron_h": (("norm", "mixer", ""),),
}
"""Family -> for attention and for the FFN: the norm before, names of the module (the layer has one), the norm after."""
PARALLEL = ("gpt_neox",)
TIMES = {"granite": 0.22}
"""Family -> what multiplies each output."""
CELLS = [(family, module) for family in STEPS for module in WRITES]
VECTOR = torch.linspace(-1, 1, 32, dtype=torch.float64)


def by_hand(model: Any, family: str, ids: Tensor, point: HookPoint, replacement: Tensor) -> Tensor:
    """The logits of a forward pass written by hand, in which `replacement` is added at `point`."""
    layers, given = decoder_layers(model), {}
    modules = [
        [
            next(module for name in names.split() if (module := getattr(layer, name, None)))
            for _, names, _ in STEPS[family]
        ]
        for layer in layers
    ]

    def keep(module: nn.Module, args: Any, options: dict) -> None:  # masks and positions, which are always the same
        given[module] = args[1:], {name: value for name, value in options.items() if name != "hidden_states"}

    handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for mixers in modules for m in mixers]
    seen: dict[HookPoint, Tensor] = {}
    with hooked(model, ["0.resid_pre"], seen.__setitem__):
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    (stream,) = seen.values()
    for number, layer in enumerate(layers):
        before = stream
        kinds = [module for at, module in ablatable(model) if at == number and module != "layer"]
        for kind, module, (norm, _, after) in zip(kinds, modules[number], STEPS[family], strict=True):
            state = before if family in PARALLEL else stream
            args, options = given[module]
            output = module(getattr(layer, norm, nn.Identity())(state), *args, **options)
            output = getattr(layer, after, nn.Identity())(output[0] if isinstance(output, tuple) else output)
            is_gone = point == HookPoint(number, WRITES[kind])
            stream = stream + (replacement if is_gone else output * TIMES.get(family, 1.0))
        if point == HookPoint(number, "resid_post"):
            stream = before + replacement
    return logit_transform(model)(model.lm_head(final_norm(model)(stream)))


@pytest.mark.parametrize(("family", "module"), CELLS)
def test_ablation_equals_a_forward_pass_written_by_hand(model, family, module, input_ids):
    layer = next(layer for layer, each in ablatable(model) if each == module and layer > 0)
    point = HookPoint(layer, WRITES[module])
    for replacement in (None, VECTOR):
        with ablated(model, point, replacement):
            logits = model(input_ids, use_cache=False).logits
        expected = by_hand(model, family, input_ids, point, VECTOR if replacement is not None else 0 * VECTOR)
        exact = 1e-9 if logits.dtype == torch.float64 else 1e-5  # Nemotron-H returns float32
        torch.testing.assert_close(logits, expected.to(logits.dtype), rtol=exact, atol=exact)


@pytest.mark.parametrize("family", ["granitemoehybrid", "falcon_h1"])
def test_the_sum_of_several_modules_is_replaced_once(model, input_ids):
    for site in ("attn_out", "mlp_out"):
        point = HookPoint(1, site)
        with ablated(model, point, VECTOR):
            state = read(model, [point], input_ids)[point]
        torch.testing.assert_close(state, VECTOR.expand_as(state), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_stream_gets_the_replacement_instead_of_what_was_written(model, input_ids):
    vector = torch.linspace(-1, 1, model.config.get_text_config().hidden_size, dtype=torch.float64)
    for layer, module in ablatable(model):
        if module == "layer":
            points = [HookPoint(layer, "resid_pre"), HookPoint(layer, "resid_post")]
            with ablated(model, points[1], vector), torch.no_grad():
                states = read(model, points, input_ids)
            same = states[points[1]], states[points[0]] + vector.to(states[points[0]])
        else:
            point = HookPoint(layer, WRITES[module])
            with ablated(model, point, vector), torch.no_grad():
                state = read(model, [point], input_ids)[point]
            same = state, vector.to(state).expand_as(state)
        torch.testing.assert_close(*same, rtol=1e-6, atol=1e-6)


def test_removing_a_module_that_writes_zero_changes_nothing(llama, input_ids):
    llama.get_parameter("model.layers.1.mlp.down_proj.weight").data.zero_()
    own = llama(input_ids).logits
    with ablated(llama, "1.mlp_out"):
        assert torch.equal(llama(input_ids).logits, own)


def interrupt(same: bool) -> None:
    assert not same
    raise KeyboardInterrupt


def test_the_model_is_as_before_even_after_an_exception(model, input_ids):
    own, hooks = model(input_ids).logits, hook_count(model)
    with pytest.raises(KeyboardInterrupt), ablated(model, "1.resid_post"):
        interrupt(torch.equal(model(input_ids).logits, own))
    assert hook_count(model) == hooks
    assert torch.equal(model(input_ids).logits, own)


def test_ablated_is_public_and_samples_from_the_ablated_model(tokenizer, llama):
    llama.generation_config.eos_token_id = None
    options = {"max_new_tokens": 6, "temperature": 0.0, "chat": None}
    own = ip.generate(llama, tokenizer, ["What is 3 + 4?"], **options)
    with ip.ablated(llama, "0.resid_post"):
        (cached,) = ip.generate(llama, tokenizer, ["What is 3 + 4?"], **options)
        for length in range(6):  # token by token without a cache
            ids = torch.tensor([[*cached.prompt_ids, *cached.response_ids[:length]]])
            assert int(llama(ids).logits[0, -1].argmax()) == cached.response_ids[length]
    assert cached.response_ids != own[0].response_ids


@pytest.mark.parametrize("point", ["1.attn_in", "final", "1.resid_mid", "9.mlp_out"])
def test_a_point_where_nothing_is_written_is_refused(llama, point):
    with pytest.raises(InputError, match=r"ablate|no hook point"), ablated(llama, point):
        pass


def test_a_pass_that_does_not_reach_the_point_is_an_error(llama, input_ids):
    with ablated(llama, "1.mlp_out"), as_policy(llama, "0.resid_post"), pytest.raises(InputError, match="0 times"):
        llama(input_ids)


def test_a_replacement_of_another_width_is_refused(llama):
    with pytest.raises(InputError, match=r"\(3,\).*\(32,\)"), ablated(llama, "1.mlp_out", torch.zeros(3)):
        pass


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_pass_that_restarts_ends_as_a_whole_pass(family, input_ids):
    model = tiny_model(family)
    with torch.no_grad():
        restarts = can_restart(model, input_ids)
    shares_more = family == "mllama" or (family.startswith("gemma4") and not family.endswith(("_plain", "_experts")))
    assert restarts == (not shares_more)


@pytest.mark.parametrize("family", FEW)
def test_an_ablation_after_a_restart_equals_that_in_a_whole_pass(model, input_ids):
    with torch.no_grad():
        with recorded(model, [0]) as outputs:
            own = model(input_ids, use_cache=False).logits
        for site in WRITES.values():
            with ablated(model, HookPoint(1, site)):
                whole = read(model, [FINAL], input_ids)[FINAL]
                with restarted(model, 1, outputs[0]):
                    assert torch.equal(read(model, [FINAL], input_ids)[FINAL], whole)
    assert torch.equal(model(input_ids, use_cache=False).logits, own)
    assert "forward" not in vars(decoder_layers(model)[0])


def test_a_model_whose_layers_read_more_than_the_stream_does_not_restart(llama, input_ids):
    shared = {}
    layers = decoder_layers(llama)
    layers[0].register_forward_hook(lambda *given: shared.__setitem__("state", given[-1]))
    layers[2].register_forward_hook(lambda *given: given[-1] + shared.pop("state"))
    assert not can_restart(llama, input_ids)
