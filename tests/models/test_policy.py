"""A hidden state times the unembedding is a policy; inside `as_policy` the model is that policy, and only there."""

import copy
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import FEW, LLAMA_SHAPED, all_points, hook_count, read, tiny_model
from safetensors.torch import load_file
from transformers import TextIteratorStreamer

from internal_policy.errors import InputError
from internal_policy.models.families import family_of
from internal_policy.models.head import logit_transform
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.modules import decoder_layers, final_norm
from internal_policy.models.policy import Readout, as_policy, policy_logits, unembed
from internal_policy.models.rows import FAMILIES

LAST = HookPoint(2, "resid_post")
CELLS = [(family, site) for family in FEW for site in FAMILIES[family].sites]
LINEAR = [name for name in FEW if not FAMILIES[name].cap and "resid_mid" in FAMILIES[name].sites]


def endless(model):
    """`model` without an end-of-text token: responses have the requested length."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1
    return model


def greedy(model, ids, n, **options):
    return model.generate(ids, max_new_tokens=n, do_sample=False, **options)


def step_by_step(model, point, ids, n, readout: Readout = "raw"):
    for _ in range(n):
        logits = policy_logits(model, point, readout, input_ids=ids)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids


def touched(model):
    """Names of the parameters with a nonzero gradient."""
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


# unembed, policy_logits


def test_hidden_states_are_unembedded_by_the_models_own_matrix(model, input_ids):
    point = HookPoint(0, "mlp_out")
    state = read(model, [point], input_ids)[point]
    assert torch.equal(
        policy_logits(model, point, input_ids=input_ids), logit_transform(model)(state @ model.lm_head.weight.T)
    )


def test_the_norm_readout_goes_through_the_final_norm(model, input_ids):
    point = HookPoint(0, "resid_post")
    state = read(model, [point], input_ids)[point]
    expected = logit_transform(model)(final_norm(model)(state) @ model.lm_head.weight.T)
    assert torch.equal(policy_logits(model, point, "norm", input_ids=input_ids), expected)


def test_the_raw_policy_of_the_last_layer_is_not_the_models_own(model, input_ids):
    logits = policy_logits(model, LAST, input_ids=input_ids)
    assert (logits - model(input_ids).logits).abs().max() > 0.1


def test_the_normed_policy_of_the_last_layer_is_the_models_own(model, input_ids):
    assert torch.equal(policy_logits(model, LAST, "norm", input_ids=input_ids), model(input_ids).logits)


def test_final_is_never_normed_twice(model, input_ids):
    assert torch.equal(policy_logits(model, FINAL, "norm", input_ids=input_ids), model(input_ids).logits)


@pytest.mark.parametrize("family", LINEAR)
def test_logits_add_up_along_the_residual_stream(model, input_ids):
    pre, out, mid = (
        policy_logits(model, HookPoint(1, site), input_ids=input_ids) for site in ("resid_pre", "attn_out", "resid_mid")
    )
    torch.testing.assert_close(mid, pre + out, rtol=1e-12, atol=1e-12)  # unembedding is linear


def test_a_tied_model_unembeds_with_its_embedding(family, input_ids):
    tied: Any = tiny_model(family, tie_word_embeddings=True)
    state = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unembed(tied, state), logit_transform(tied)(state @ tied.get_input_embeddings().weight.T))


@pytest.mark.parametrize(("family", "site"), CELLS)
def test_gradient_stops_at_the_hook_point(model, input_ids, site):
    policy_logits(model, HookPoint(1, site), input_ids=input_ids).log_softmax(-1)[..., 7].sum().backward()
    names, row = touched(model), family_of(model.config)
    embedding = next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    assert {embedding, "lm_head.weight"} <= names
    assert any(name.startswith(f"{row.layers}.0.mlp.") for name in names)
    assert not [name for name in names if name.startswith((f"{row.layers}.2.", row.final_norm))]


@pytest.mark.parametrize(
    "family", [name for name in FEW if name != "gpt_oss"]
)  # because not all of its experts are used
def test_gradients_reach_every_module_up_to_the_layer(model, input_ids):
    policy_logits(model, HookPoint(1, "resid_post"), input_ids=input_ids).log_softmax(-1)[..., 7].sum().backward()
    path, names = family_of(model.config).layers, [name for name, _ in model.named_parameters()]
    wanted = [name for name in names if name.startswith((f"{path}.0.", f"{path}.1."))]
    assert {name for name in wanted if not name.endswith("k_proj.bias")} <= touched(model)  # softmax ignores it


@pytest.mark.parametrize("family", LLAMA_SHAPED)
@pytest.mark.parametrize(
    ("site", "last"), [("attn_out", "self_attn.o_proj.weight"), ("resid_post", "mlp.down_proj.weight")]
)
def test_gradients_reach_every_module_up_to_the_hook_point(model, input_ids, site, last):
    policy_logits(model, HookPoint(1, site), input_ids=input_ids).log_softmax(-1)[..., 7].sum().backward()
    order = [name for name, _ in model.named_parameters() if not name.endswith("k_proj.bias")]  # softmax ignores it
    wanted = [name for name in order if ".layers.0." in name or ".layers.1." in name]
    if site == "attn_out":
        wanted = [name for name in wanted if ".layers.1.mlp" not in name and ".layers.1.post_att" not in name]
    assert f"model.layers.1.{last}" in wanted
    assert set(wanted) <= touched(model)


# as_policy: the logits


@pytest.mark.parametrize("readout", ["raw", "norm"])
@pytest.mark.parametrize(("family", "site"), CELLS)
def test_inside_as_policy_the_logits_are_the_internal_policys(model, input_ids, site, readout):
    for layer in range(3):
        point = HookPoint(layer, site)
        expected = policy_logits(model, point, readout, input_ids=input_ids)
        with as_policy(model, point, readout):
            assert torch.equal(model(input_ids).logits, expected)


def test_policies_can_be_read_inside_as_policy(model, input_ids):
    point = HookPoint(1, "attn_out")
    expected = policy_logits(model, HookPoint(0, "mlp_in"), input_ids=input_ids)
    with as_policy(model, point):
        assert torch.equal(policy_logits(model, HookPoint(0, "mlp_in"), input_ids=input_ids), expected)


def test_as_policy_at_final_is_the_model_itself(model, input_ids):
    alone, hooks = model(input_ids).logits, hook_count(model)
    with as_policy(model, FINAL):
        assert hook_count(model) == hooks
        assert torch.equal(model(input_ids).logits, alone)


def test_every_pass_inside_as_policy_is_the_policys(llama, input_ids):
    point = HookPoint(1, "mlp_out")
    with as_policy(llama, point):
        passes = [llama(ids).logits for ids in (input_ids, input_ids[:1, :4], input_ids)]
    assert torch.equal(passes[0], passes[2])
    assert torch.equal(passes[1], policy_logits(llama, point, input_ids=input_ids[:1, :4]))


@pytest.mark.parametrize(("layer", "calls"), [(0, [0]), (1, [0, 1]), (2, [0, 1, 2])])
def test_as_policy_does_not_compute_the_layers_above(model, input_ids, layer, calls):
    called = []
    for number, block in enumerate(decoder_layers(model)):
        block.register_forward_pre_hook(lambda _, __, number=number: called.append(number))
    with as_policy(model, HookPoint(layer, "attn_out")):
        model(input_ids)
    assert called == calls


def test_inside_as_policy_the_loss_is_the_internal_policys(model, input_ids):
    point = HookPoint(1, "mlp_out")
    logits = policy_logits(model, point, input_ids=input_ids)[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, input_ids[:, 1:].flatten())
    with as_policy(model, point):
        loss = model(input_ids, labels=input_ids).loss
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=0)  # transformers takes the loss in float32


@pytest.mark.parametrize("site", ["attn_out", "resid_post"])
@pytest.mark.parametrize("readout", ["raw", "norm"])
def test_inside_as_policy_gradients_equal_those_of_policy_logits(model, input_ids, site, readout):
    point, other = HookPoint(1, site), copy.deepcopy(model)
    policy_logits(other, point, readout, input_ids=input_ids).pow(2).sum().backward()
    with as_policy(model, point, readout):
        model(input_ids).logits.pow(2).sum().backward()
    for (name, mine), (_, theirs) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        same = mine.grad is theirs.grad is None or torch.equal(mine.grad, theirs.grad)
        assert same, name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # v5.0 has no other
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_gradient_checkpointing_gives_the_same_gradients(model, input_ids, site):
    def gradients(each):
        calls = []
        decoder_layers(each)[0].get_submodule("mlp").register_forward_pre_hook(lambda *_: calls.append(1))
        each.train()
        with as_policy(each, HookPoint(1, site)):
            for _ in range(2):  # the second pass would see leftovers of recomputing the first
                each.zero_grad()
                each(input_ids).logits.log_softmax(-1)[..., 7].sum().backward()
        return {name: p.grad for name, p in each.named_parameters() if p.grad is not None}, len(calls)

    checkpointing = copy.deepcopy(model)
    checkpointing.gradient_checkpointing_enable({"use_reentrant": False})
    (plain, once), (recomputed, twice) = gradients(model), gradients(checkpointing)
    assert (once, twice) == (2, 4)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


# as_policy: generating


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "point", [HookPoint(0, "resid_post"), HookPoint(1, "attn_out"), HookPoint(2, "mlp_in")], ids=str
)
def test_generate_inside_as_policy_takes_the_internal_policys_tokens(model, input_ids, point, use_cache):
    endless(model)
    expected = step_by_step(model, point, input_ids, 6)
    with as_policy(model, point):
        assert torch.equal(greedy(model, input_ids, 6, use_cache=use_cache), expected)


def test_generate_inside_as_policy_differs_from_the_model(model, input_ids):
    endless(model)
    with as_policy(model, HookPoint(1, "resid_post")):
        inside = greedy(model, input_ids, 6)
    assert not torch.equal(inside, greedy(model, input_ids, 6))


def test_generate_inside_as_policy_can_use_the_norm_readout(model, input_ids):
    endless(model)
    expected = step_by_step(model, HookPoint(1, "mlp_out"), input_ids, 6, "norm")
    with as_policy(model, HookPoint(1, "mlp_out"), "norm"):
        assert torch.equal(greedy(model, input_ids, 6), expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padding_does_not_change_what_generate_returns_inside_as_policy(model, input_ids, use_cache):
    endless(model.float())  # in float64, Gemma 2's attention gives NaN at a position that sees nothing
    point, short = HookPoint(1, "mlp_out"), input_ids[:1, :4]
    padded = torch.cat([torch.cat([torch.full((1, 7), 1), short], 1), input_ids[1:]])
    with as_policy(model, point):
        found = greedy(model, padded, 6, attention_mask=(padded != 1).long(), use_cache=use_cache)
    assert torch.equal(found[0, 11:], step_by_step(model, point, short, 6)[0, 4:])
    assert torch.equal(found[1], step_by_step(model, point, input_ids[1:], 6)[0])


@pytest.mark.parametrize(
    ("family", "window"),
    [
        ("mistral", {"sliding_window": 5}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("gemma2", {"sliding_window": 5}),
        ("gpt_oss", {"sliding_window": 5}),
    ],
    ids=["mistral", "qwen2", "gemma2", "gpt_oss"],
)
def test_generate_inside_as_policy_works_with_a_sliding_window(family, window, input_ids):
    model, point = endless(tiny_model(family, **window)), HookPoint(1, "resid_post")
    expected = step_by_step(model, point, input_ids, 8)
    with as_policy(model, point):
        assert torch.equal(greedy(model, input_ids, 8), expected)


def test_generate_inside_as_policy_samples_from_the_internal_policy(llama):
    endless(llama).lm_head.weight.data.mul_(0.1)  # a policy with high entropy
    point, ids, n = HookPoint(1, "resid_post"), torch.tensor([[7, 9, 30]]), 4000
    expected = policy_logits(llama, point, input_ids=ids)[0, -1].softmax(-1)
    torch.manual_seed(0)
    with as_policy(llama, point):
        sampled = llama.generate(
            ids, max_new_tokens=1, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=n
        )
    found = sampled[:, -1].bincount(minlength=320) / n
    # (found - expected)^2 n / expected summed is chi squared, 319 degrees of freedom: 319 +- 25
    assert ((found - expected).square() * n / expected).sum() < 319 + 8 * 25
    assert expected.max() < 0.5


@pytest.mark.parametrize("inner", [HookPoint(0, "resid_post"), HookPoint(2, "mlp_out"), FINAL])
def test_nested_as_policy_is_rejected(llama, inner):
    with (
        as_policy(llama, HookPoint(1, "mlp_out")),
        pytest.raises(InputError, match="is already one of its internal policies"),
        as_policy(llama, inner),
    ):
        pass


def test_hooks_can_visit_generate_inside_as_policy(model, input_ids):
    endless(model)
    shapes = []
    with (
        as_policy(model, HookPoint(1, "attn_out")),
        hooked(model, [HookPoint(0, "mlp_in")], lambda _, hidden: shapes.append(hidden.shape)),
    ):
        greedy(model, input_ids, 3)
    assert shapes == [(2, 11, 32), (2, 1, 32), (2, 1, 32)]  # the prompt, then a token at a time


def test_a_thread_started_inside_as_policy_generates_from_the_policy(llama, input_ids, tokenizer):
    endless(llama)
    point, ids = HookPoint(1, "attn_out"), input_ids[:1]
    expected = step_by_step(llama, point, ids, 6)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    with as_policy(llama, point):
        thread = Thread(target=greedy, args=(llama, ids, 6), kwargs={"streamer": streamer})
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text == tokenizer.decode(expected[0, 11:])


# as_policy: compiled models and failed passes


@pytest.fixture
def compiled(llama, input_ids):
    for layer in decoder_layers(llama):
        layer.compile(backend="eager")
    with torch.no_grad():
        llama(input_ids)  # compiles them without hooks
    return llama


def test_compiled_layers_have_the_same_policies(compiled, input_ids):
    point = HookPoint(1, "attn_out")
    expected = policy_logits(tiny_model("llama"), point, input_ids=input_ids)
    torch.testing.assert_close(policy_logits(compiled, point, input_ids=input_ids), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("point", [HookPoint(0, "attn_in"), HookPoint(1, "attn_out"), HookPoint(2, "resid_post")])
def test_as_policy_works_with_compiled_layers(compiled, input_ids, point):
    expected = policy_logits(tiny_model("llama"), point, input_ids=input_ids)
    with as_policy(compiled, point):
        torch.testing.assert_close(compiled(input_ids).logits, expected, rtol=1e-9, atol=1e-9)


def test_inside_as_policy_the_final_norm_works_between_passes(llama, input_ids):
    point, state = HookPoint(1, "mlp_out"), torch.randn(2, 32, dtype=torch.float64)
    expected = final_norm(llama)(state), policy_logits(llama, HookPoint(0, "mlp_in"), "norm", input_ids=input_ids)
    with as_policy(llama, point):
        llama(input_ids)
        assert torch.equal(final_norm(llama)(state), expected[0])
        assert torch.equal(policy_logits(llama, HookPoint(0, "mlp_in"), "norm", input_ids=input_ids), expected[1])


def test_inside_as_policy_the_final_norm_works_after_a_failed_pass(llama, input_ids):
    state = torch.randn(2, 32, dtype=torch.float64)
    expected = final_norm(llama)(state)
    with as_policy(llama, HookPoint(1, "mlp_out")):
        handle = decoder_layers(llama)[0].get_submodule("mlp").register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle of a pass"):
            llama(input_ids)
        handle.remove()
        assert torch.equal(final_norm(llama)(state), expected)


def test_a_policy_whose_point_a_pass_does_not_reach_is_an_error(llama, input_ids):
    decoder_layers(llama)[1].forward = lambda hidden, **_: hidden
    with pytest.raises(InputError, match=r"visited 1\.attn_out 0 times"), as_policy(llama, HookPoint(1, "attn_out")):
        llama(input_ids)


# as_policy: leaving


def leave(model, point, how, input_ids):
    if how == "quietly":
        with as_policy(model, point):
            greedy(model, input_ids, 2)
    elif how == "by an exception":
        with pytest.raises(KeyboardInterrupt), as_policy(model, point):
            raise KeyboardInterrupt
    else:
        handle = decoder_layers(model)[0].get_submodule("mlp").register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle of a pass"), as_policy(model, point):
            model(input_ids)
        handle.remove()


def fail(module, args, output):
    raise RuntimeError("in the middle of a pass")


@pytest.fixture(params=["quietly", "by an exception", "by a failing pass"])
def how(request):
    return request.param


@pytest.fixture(params=[HookPoint(0, "attn_out"), HookPoint(2, "resid_post"), FINAL], ids=str)
def point(request):
    return request.param


def test_leaving_as_policy_restores_the_weights(llama, input_ids, point, how):
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in llama.state_dict().items()}
    leave(llama, point, how, input_ids)
    after = llama.state_dict()
    assert list(after) == list(before)
    assert all(tensor.data_ptr() == before[name][0] for name, tensor in after.items())
    assert all(torch.equal(tensor, before[name][1]) for name, tensor in after.items())


def test_leaving_as_policy_restores_the_module_objects(llama, input_ids, point, how):
    before = dict(llama.named_modules())
    leave(llama, point, how, input_ids)
    after = dict(llama.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_leaving_as_policy_leaves_no_hook(llama, input_ids, point, how):
    before = hook_count(llama)
    leave(llama, point, how, input_ids)
    assert hook_count(llama) == before


def test_leaving_as_policy_restores_the_configuration(llama, input_ids, point, how):
    before = llama.config.to_dict(), llama.generation_config.to_dict()
    leave(llama, point, how, input_ids)
    assert (llama.config.to_dict(), llama.generation_config.to_dict()) == before


def test_leaving_as_policy_restores_the_logits(llama, input_ids, point, how):
    before = llama(input_ids).logits
    leave(llama, point, how, input_ids)
    assert torch.equal(llama(input_ids).logits, before)


def test_leaving_as_policy_restores_the_checkpoint(llama, input_ids, point, how, tmp_path):
    llama.save_pretrained(tmp_path / "before")
    leave(llama, point, how, input_ids)
    llama.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / which / "model.safetensors") for which in ("before", "after"))
    assert before.keys() == after.keys() == llama.state_dict().keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_as_policy_keeps_existing_hooks(llama, input_ids):
    called = []
    final_norm(llama).register_forward_hook(lambda *_: called.append("norm"))
    decoder_layers(llama)[2].register_forward_hook(lambda *_: called.append("layer 2"))
    leave(llama, HookPoint(0, "resid_post"), "by an exception", input_ids)
    llama(input_ids)
    assert called == ["layer 2", "norm"]


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_missing_layer_is_rejected_before_anything_changes(llama, input_ids, layer):
    before, hooks = dict(llama.named_modules()), hook_count(llama)
    with pytest.raises(InputError, match="the model's layers are 0 to 2"), as_policy(llama, HookPoint(layer, "mlp_in")):
        pass
    assert dict(llama.named_modules()) == before
    assert hook_count(llama) == hooks


def test_every_hook_point_of_the_model_is_a_policy(model, input_ids):
    for point in all_points(model):
        with as_policy(model, point):
            assert model(input_ids).logits.isfinite().all()


# points by name


@pytest.mark.parametrize("point", [HookPoint(1, "attn_out"), FINAL], ids=str)
def test_policy_logits_take_the_name_of_a_point(llama, input_ids, point):
    assert torch.equal(
        policy_logits(llama, str(point), input_ids=input_ids), policy_logits(llama, point, input_ids=input_ids)
    )


def test_as_policy_takes_the_name_of_a_point(llama, input_ids):
    with as_policy(llama, "1.resid_post"):
        assert torch.equal(llama(input_ids).logits, policy_logits(llama, "1.resid_post", input_ids=input_ids))


def test_unembed_passes_the_named_point_to_a_lens(llama, input_ids):
    points = []

    def doubled(hidden, point):
        points.append(point)
        return 2 * hidden

    hidden = torch.zeros(3, llama.config.hidden_size, dtype=llama.dtype)
    unembed(llama, hidden, doubled, "1.resid_post")
    assert points == [HookPoint(1, "resid_post")]


def test_a_bad_name_is_rejected_before_the_model_changes(llama):
    layers = decoder_layers(llama)
    with pytest.raises(InputError, match=r"Can't read '1\.attention' as a hook point"), as_policy(llama, "1.attention"):
        pass
    assert decoder_layers(llama) is layers
