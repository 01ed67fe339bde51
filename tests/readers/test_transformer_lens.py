"""TransformerLens reads the same hidden states as our hooks, and its own readout agrees with ours."""

import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import all_points, hook_count, read, same, tiny_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import boot_native
    from transformer_lens.tools.analysis import logit_readout

import internal_policy
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.sites import SITES
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import unembed
from internal_policy.models.rows import FAMILIES
from internal_policy.readers import compared, transformer_lens
from internal_policy.readers.transformer_lens import boot, measure_cache
from internal_policy.scans import blocks, store
from internal_policy.scans.reader import reader_of
from internal_policy.scans.scan import scan
from internal_policy.tasks.rollouts import of_ids


def states(bridge, points, input_ids) -> dict:
    """The hidden states that the reader visits, in the order they are reached."""
    seen = {}
    with torch.no_grad():
        reader_of(bridge).run(points, seen.__setitem__, input_ids=input_ids, use_cache=False)
    return seen


def pair(family: str, tokenizer, dtype=torch.float32, attention: str = "eager"):
    """A model, and a bridge over another with the same weights."""
    heads = {"num_key_value_heads": 4} if family in HEADS else {}
    model, wrapped = tiny_model(family, **heads), tiny_model(family, **heads)
    for one in (model, wrapped):
        torch.nn.Module.to(one, dtype)
        one.set_attn_implementation(attention)
    return model, boot(wrapped, tokenizer)


FEW = ("gemma2", "gpt_neox", "gpt_oss", "jetmoe", "llama", "qwen2", "qwen3", "qwen3_moe")
HEADS = {"gpt_neox", "gpt_neox_sequential"}
"""Families without grouped heads; their tiny models have some that are never used."""


@pytest.fixture(
    params=[pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in transformer_lens.FAMILIES]
)
def family(request) -> str:
    return request.param


@pytest.fixture
def bridge(tokenizer) -> TransformerBridge:
    return boot(tiny_model("qwen3").float(), tokenizer)


@pytest.fixture
def rollouts(tokenizer):
    texts = torch.randint(5, 256, (3, 17), generator=torch.Generator().manual_seed(2)).tolist()
    return of_ids(tokenizer, [texts[0], texts[1][:9], texts[2][:12]], prompt=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hidden_states_equal_ours_bit_for_bit(family, dtype, tokenizer, input_ids):
    model, bridge = pair(family, tokenizer, dtype)
    ours, theirs = read(model, all_points(model), input_ids), states(bridge, all_points(model), input_ids)
    assert list(theirs) == all_points(model)
    assert all(torch.equal(theirs[point], ours[point]) for point in ours)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bridge_computes_sdpa_models_eagerly(family, dtype, tokenizer, input_ids):
    model, bridge = pair(family, tokenizer, dtype, "sdpa")
    theirs = states(bridge, all_points(model), input_ids)
    away = max((theirs[p] - hidden).abs().max() for p, hidden in read(model, all_points(model), input_ids).items())
    assert 0 < away < 500 * torch.finfo(dtype).eps
    model.set_attn_implementation("eager")
    assert all(torch.equal(theirs[p], hidden) for p, hidden in read(model, all_points(model), input_ids).items())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_measures_equal_ours_bit_for_bit(family, dtype, tokenizer, rollouts):
    model, bridge = pair(family, tokenizer, dtype)
    same(
        scan(bridge, tokenizer, rollouts, readouts=("raw", "norm")),
        scan(model, tokenizer, rollouts, readouts=("raw", "norm")),
    )


def test_reading_in_pieces_does_not_change_the_numbers(tokenizer, rollouts, monkeypatch):
    model, bridge = pair("llama", tokenizer)
    monkeypatch.setattr(blocks, "STATE_BYTES", 20_000)
    monkeypatch.setattr(blocks, "PREFILL", 2)
    same(scan(bridge, tokenizer, rollouts), scan(model, tokenizer, rollouts))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_scans_rotate_each_text_as_if_read_alone(tokenizer, rollouts, monkeypatch, kind):
    rope = {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0}
    changes: dict[str, Any] = {"rope_parameters": rope, "max_position_embeddings": 10}
    if kind == "longrope":
        rope |= {
            "original_max_position_embeddings": 10,
            "short_factor": [1.0] * 4,
            "long_factor": [1.0, 3.0, 9.0, 20.0],
        }
        changes["max_position_embeddings"] = 40
    expected = [scan(tiny_model("llama", **changes), tokenizer, [one]).policies for one in rollouts]
    monkeypatch.setattr(blocks, "STATE_BYTES", 40_000)
    monkeypatch.setattr(blocks, "PREFILL", 2)
    found = scan(boot(tiny_model("llama", **changes), tokenizer), tokenizer, rollouts).policies
    for number, one in enumerate(expected):
        rows = found[found["rollout"] == number].drop(columns="rollout").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, one.drop(columns="rollout"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("readout", "normed"), [("raw", False), ("norm", True)])
def test_transformer_lens_readout_agrees_with_our_entropies(bridge, tokenizer, readout, normed):
    tokens = torch.randint(5, 256, (1, 40), generator=torch.Generator().manual_seed(3))
    ours = scan(bridge, tokenizer, of_ids(tokenizer, tokens.tolist()), readouts=(readout,), top_k=3).policies
    hidden = states(bridge, all_points(bridge.original_model), tokens)
    for layer in range(3):
        rows = ours[ours["layer"] == layer]
        for site in SITES:
            theirs = logit_readout(bridge, hidden[HookPoint(layer, site)][0, :-1], apply_ln=normed, top_k=3)
            away = torch.tensor(rows[f"{site}.entropy"].to_numpy()) - theirs.entropy
            assert away.abs().max() < 1e-5
            assert rows[f"{site}.topk_ids"].map(list).tolist() == torch.as_tensor(theirs.top_ids).tolist()


def test_a_readout_worked_by_hand_agrees(bridge, input_ids):
    hidden = states(bridge, [HookPoint(1, "mlp_out")], input_ids)[HookPoint(1, "mlp_out")]
    reader = reader_of(bridge)
    assert torch.equal(reader.unembedding(hidden), hidden @ bridge.W_U)
    assert torch.equal(reader.unembedding.weight, tiny_model("qwen3").float().lm_head.weight)
    torch.testing.assert_close(unembed(tiny_model("qwen3").float(), hidden), hidden @ bridge.W_U)


def test_a_bridge_whose_unembedding_has_a_bias_is_rejected(bridge):
    bridge.unembed.original_component.bias.data.fill_(1)
    with pytest.raises(InputError, match="The unembedding has a bias"):
        reader_of(bridge)


def test_a_folded_bridge_is_rejected(bridge, tokenizer, rollouts):
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(InputError, match="weights were folded, which changes its raw policies"):
        scan(bridge, tokenizer, rollouts)


def test_folding_does_change_the_raw_policies(bridge, input_ids):
    """This is why folding is rejected: equal numbers would need no error."""
    point = HookPoint(2, "resid_post")
    before = states(bridge, [point], input_ids)[point] @ bridge.W_U
    bridge.enable_compatibility_mode(disable_warnings=True)
    _, store = bridge.run_with_cache(input_ids, names_filter=transformer_lens.name(point))
    after = store[transformer_lens.name(point)] @ bridge.W_U
    assert (after.softmax(-1) - before.softmax(-1)).abs().max() > 0.01


def test_a_bridge_with_only_compatible_names_is_read(bridge, tokenizer, rollouts):
    expected = scan(bridge, tokenizer, rollouts)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    same(scan(bridge, tokenizer, rollouts), expected)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gpt2", "it computes other hidden states than the model"),
        ("olmo2", "it has no hook point for some states of these layers"),
        ("gemma3", "it would install packages by itself for a model that also reads images"),
        ("diffllama", "it doesn't know this family"),
    ],
)
def test_a_family_that_it_reads_otherwise_is_rejected_before_it_runs(family, why, tokenizer):
    with pytest.raises(InputError, match=f"^TransformerLens can't read {family}, because {why}\\. Scan"):
        boot(tiny_model(family), tokenizer)


def test_every_row_is_readable_or_has_a_reason():
    named = [*compared.SAME.split(), *compared.WITHOUT.split(), *compared.OTHERWISE.split()]
    assert len(named) == len(set(named))
    assert set(named) <= set(FAMILIES)


def test_hooks_of_the_user_run_and_are_kept(bridge, input_ids):
    point = HookPoint(1, "mlp_out")
    bridge.add_hook("blocks.1.hook_mlp_out", lambda hidden, **_: torch.zeros_like(hidden))
    bridge(input_ids)  # hooks that the bridge itself registers in its first run
    before = hook_count(bridge.original_model)
    for _ in range(2):
        assert not states(bridge, [point], input_ids)[point].any()
    assert hook_count(bridge.original_model) == before


def test_no_hook_is_left_after_an_exception(bridge, input_ids):
    def fail(point, hidden):
        raise KeyboardInterrupt

    bridge(input_ids)
    before = hook_count(bridge.original_model)
    with pytest.raises(KeyboardInterrupt):
        reader_of(bridge).run([HookPoint(0, "attn_in"), FINAL], fail, input_ids=input_ids)
    assert hook_count(bridge.original_model) == before


def test_the_final_logits_are_not_computed(bridge, input_ids):
    computed = []
    bridge.unembed.register_forward_hook(lambda *_: computed.append(1))
    states(bridge, [FINAL], input_ids)
    assert not computed


def test_booting_does_not_change_the_tokenizer(tokenizer):
    before = (tokenizer.padding_side, tokenizer.pad_token, tokenizer.bos_token, tokenizer("a b")["input_ids"])
    boot(tiny_model("llama"), tokenizer)
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.bos_token, tokenizer("a b")["input_ids"]) == before


def test_measuring_a_cache_equals_a_scan(bridge, tokenizer, input_ids, monkeypatch):
    _, store = bridge.run_with_cache(input_ids)
    expected = scan(bridge, tokenizer, of_ids(tokenizer, input_ids.tolist(), prompt=3))
    same(measure_cache(bridge, store, input_ids, prompt=3), expected)
    monkeypatch.setattr(blocks, "STATE_BYTES", 20_000)
    monkeypatch.setattr(blocks, "PREFILL", 1)
    in_pieces = measure_cache(bridge, store, input_ids, prompt=3)
    pd.testing.assert_frame_equal(in_pieces.policies, expected.policies, rtol=1e-5, atol=1e-6)


def test_a_cache_of_only_the_stream_gives_its_sites(bridge, tokenizer, input_ids):
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    _, store = bridge.run_with_cache(input_ids, names_filter=["blocks.0.hook_resid_pre", *names, "ln_final.hook_out"])
    measured = measure_cache(bridge, store, input_ids)
    assert {str(name).partition(".")[0] for name in measured.policies.filter(like=".entropy")} == {
        "resid_pre",
        "resid_post",
        "final",
    }
    expected = scan(bridge, tokenizer, of_ids(tokenizer, input_ids.tolist()), sites=("resid_pre", "resid_post"))
    same(measured, expected)


def test_a_cache_without_a_batch_is_measured(bridge, tokenizer, input_ids):
    one = input_ids[:1]
    _, store = bridge.run_with_cache(one, remove_batch_dim=True)
    same(measure_cache(bridge, store, one), scan(bridge, tokenizer, of_ids(tokenizer, one.tolist())))


def test_a_cache_too_large_for_memory_is_an_error(bridge, input_ids, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    _, cached = bridge.run_with_cache(input_ids)
    monkeypatch.setattr(Kernel, "numbers", full)
    with pytest.raises(InputError, match=r"doesn't fit into memory\. Measure fewer rows"):
        measure_cache(bridge, cached, input_ids)


def test_an_error_names_what_a_cache_lacks(bridge, input_ids):
    _, store = bridge.run_with_cache(input_ids, names_filter=lambda name: name.endswith("hook_mlp_out"))
    with pytest.raises(InputError, match=r"The cache lacks ln_final\.hook_out\. Use names_filter=None"):
        measure_cache(bridge, store, input_ids, measures=("entropy",))


def test_a_cache_of_other_tokens_is_rejected(bridge, input_ids):
    _, store = bridge.run_with_cache(input_ids)
    with pytest.raises(InputError, match="is cached for 2 x 11 tokens, but the given tokens are 2 x 9"):
        measure_cache(bridge, store, input_ids[:, :9])


def test_a_bridge_without_a_hugging_face_model_is_rejected():
    sizes = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 16, "d_vocab": 20, "d_mlp": 16}
    with pytest.raises(InputError, match=r"The bridge wraps a NativeModel\. Boot it with a Hugging Face model"):
        reader_of(boot_native({**sizes, "act_fn": "relu"}))


def test_the_example_on_the_page_about_scans_runs(bridge, tokenizer, rollouts):
    text = (Path(__file__).parents[2] / "docs" / "scan.md").read_text()
    (example,) = re.findall(r"```py\n(from internal_policy.readers.transformer_lens.*?)```", text, re.DOTALL)
    tokens = torch.randint(5, 256, (2, 20), generator=torch.Generator().manual_seed(4))
    given = {"model": tiny_model("qwen3").float(), "tokenizer": tokenizer, "rollouts": rollouts, "tokens": tokens}
    names: dict[str, Any] = {"ip": internal_policy, **given}
    exec(example, names)
    same(names["live"].source, scan(bridge, tokenizer, rollouts))
    same(names["cached"], scan(bridge, tokenizer, of_ids(tokenizer, tokens.tolist(), prompt=12)))


def test_the_command_line_scans_through_transformer_lens(tmp_path):
    asked = ["scan", "--limit", "3", "--max-new-tokens", "12", "--dtype", "float32", "--attn-implementation", "eager"]
    for reader in ("hooks", "transformer-lens"):
        assert main([*asked, "--reader", reader, "--output", str(tmp_path / reader)]) == 0
    for kind in ("rollouts", "policies", "layers"):
        ours, theirs = (store.read(tmp_path / reader, kind) for reader in ("hooks", "transformer-lens"))
        pd.testing.assert_frame_equal(theirs, ours, check_exact=True)
    said = store.record(tmp_path / "transformer-lens")
    assert said["reader"] == "transformer-lens"
    assert said["versions"]["transformer-lens"] == metadata.version("transformer-lens")
    assert "reader" not in store.record(tmp_path / "hooks")


def test_the_command_line_rejects_another_attention_for_transformer_lens(capsys):
    assert main(["scan", "--reader", "transformer-lens", "--attn-implementation", "sdpa"]) == 2
    assert "TransformerLens computes attention eagerly, but --attn-implementation is sdpa" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("What is 2 + 2?", "a str"),
        (["What is 2 + 2?"], "a list"),
        (torch.arange(5), r"of shape \(5,\)"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"of shape \(1, 2, 3\)"),
        (torch.zeros(1, 4), r"of shape \(1, 4\)"),
    ],
)
def test_tokens_of_the_wrong_type_or_shape_are_rejected_with_the_remedy(bridge, input_ids, tokens, said):
    _, cached = bridge.run_with_cache(input_ids)
    with pytest.raises(InputError, match=f"tokens is {said}; expected token ids of shape"):
        measure_cache(bridge, cached, tokens)
