"""Rows of attention-only families: scans agree with plain transformers, and outputs are read after dropout."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from conftest import all_points, random_rollout, read, tiny_model

from internal_policy.errors import InputError
from internal_policy.measure.metrics import entropy
from internal_policy.measure.sites import SITES
from internal_policy.models.families import family_of, multiplier
from internal_policy.models.head import logit_transform
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.policy import as_policy, policy_logits
from internal_policy.models.rows import FAMILIES, dense, experts, older, parallel
from internal_policy.models.tiny import tiny_config
from internal_policy.scans import blocks
from internal_policy.scans.scan import scan

ROWS = {**dense.ROWS, **experts.ROWS, **parallel.ROWS, **older.ROWS}
BIASED = ["phi", "phimoe", "gptj", "codegen", "ctrl"]
"""Families whose unembedding has a bias."""
QUICK = ["starcoder2", "granitemoeshared", "falcon", "phi", "opt", "nanochat"]
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ROWS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_a_scan_agrees_with_plain_transformers(name, dtype, tokenizer):
    model: Any = tiny_model(name).to(dtype)
    one = random_rollout(3, 20)
    found = scan(model, tokenizer, [one], readouts=["raw"]).policies.sort_values("position")
    with torch.inference_mode():
        out = model(torch.tensor([one.ids]), output_hidden_states=True)
        head, transform = model.get_output_embeddings(), logit_transform(model)
        bias = 0 if head.bias is None else head.bias.double()
        for layer, hidden in enumerate(out.hidden_states):
            site = "final" if layer == 3 else "resid_pre"
            expected = entropy(transform(hidden[0, 2:-1].double() @ head.weight.double().T + bias)).numpy()
            entropies = found.loc[found["layer"] == layer, f"{site}.entropy"]
            np.testing.assert_allclose(entropies, expected, atol=2e-4, err_msg=f"{layer}.{site}")
    if dtype == torch.float32:
        theirs = torch.log_softmax(out.logits[0, 2:-1].double(), -1).gather(-1, torch.tensor([one.response_ids]).T)
        logprobs = found.loc[found["layer"] == 3, "final.logprob"]
        np.testing.assert_allclose(logprobs, theirs[:, 0], atol=2e-4)


@pytest.mark.parametrize("name", ["seed_oss", "starcoder2"])
def test_module_outputs_are_read_after_dropout(name, input_ids):
    model = tiny_model(name).train()
    states = read(model, all_points(model), input_ids)
    for site in ("attn_out", "mlp_out"):
        assert (states[HookPoint(1, site)] == 0).float().mean() > 0.3


@pytest.mark.parametrize("name", EVERY)
def test_neither_batches_nor_pieces_change_a_scan(monkeypatch, name, tokenizer):
    model: Any = tiny_model(name)
    rollouts = [random_rollout(n, m, seed) for seed, (n, m) in enumerate([(3, 5), (1, 20), (9, 2)])]
    alone = scan(model, tokenizer, rollouts, batch_size=1).policies
    together = scan(model, tokenizer, rollouts, batch_size=8).policies
    monkeypatch.setattr(blocks, "STATE_BYTES", 5 * len(all_points(model)) * 32 * 8 * len(rollouts))
    in_pieces = scan(model, tokenizer, rollouts, batch_size=8).policies
    for other in (together, in_pieces):
        for column in alone.columns:
            if column.endswith((".entropy", ".logprob", ".kl", ".norm")):
                np.testing.assert_allclose(other[column], alone[column], rtol=1e-5, atol=1e-5, err_msg=column)


def test_every_tiny_configuration_matches_its_own_row_alone():
    for name, row in ROWS.items():
        config = tiny_config(name)
        fitting = [
            other
            for other, each in FAMILIES.items()
            if (each.model_type or other) == config.model_type
            and all(getattr(config.get_text_config(), key) in values for key, values in each.needs.items())
        ]
        assert fitting == [name]
        assert {*row.sites, *row.absent} == {*SITES}


def test_an_output_that_the_layer_overwrites_is_read_as_it_was(input_ids):
    model: Any = tiny_model("falcon")
    states = read(model, all_points(model), input_ids)  # the layer adds attention's output to the FFN's in place
    alone = model.transformer.h[1].mlp(states[HookPoint(1, "mlp_in")])
    assert torch.equal(states[HookPoint(1, "mlp_out")], alone)


@pytest.mark.parametrize("name", [*BIASED[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in BIASED[1:])])
def test_the_bias_of_an_unembedding_is_part_of_every_policy(name, input_ids):
    model: Any = tiny_model(name)
    point = HookPoint(1, "resid_post")
    state, head = read(model, [point], input_ids)[point], model.get_output_embeddings()
    assert head.bias.abs().min() > 0
    # GPT-J's attention is in float32, which rounds differently with a cache
    torch.testing.assert_close(policy_logits(model, point, input_ids=input_ids), head(state), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("bloom", {"slow_but_exact": True}), ("falcon", {"hidden_dropout": 0.1})],
)
def test_configurations_that_a_row_does_not_support_are_refused(name, changes):
    with pytest.raises(InputError, match=rf"{name} with .* isn't supported"):
        family_of(tiny_config(name, **changes))


def test_a_norm_that_also_normalizes_the_embedding_is_final_only_the_second_time(input_ids):
    model: Any = tiny_model("nanochat")
    seen = []
    with hooked(model, [FINAL], lambda _, hidden: seen.append(hidden)):
        model(input_ids)
        model(input_ids)
    expected = model(input_ids, output_hidden_states=True).hidden_states[-1]
    assert [torch.equal(state, expected) for state in seen] == [True, True]


@pytest.mark.parametrize("readout", ["raw", "norm"])
def test_a_norm_that_also_normalizes_the_embedding_normalizes_it_in_every_policy(readout, input_ids):
    model: Any = tiny_model("nanochat")
    expected = policy_logits(model, "1.attn_out", readout, input_ids=input_ids)
    with as_policy(model, "1.attn_out", readout):
        for _ in range(2):
            assert torch.equal(model(input_ids, use_cache=False).logits, expected)


def test_flat_states_are_read_in_the_shape_of_the_batch_on_the_autograd_graph(input_ids):
    model: Any = tiny_model("opt")
    points = [HookPoint(1, site) for site in ("resid_mid", "mlp_in", "mlp_out", "resid_post")]
    states = read(model, points, input_ids)
    assert {state.shape for state in states.values()} == {(2, 11, 32)}
    mid, mlp_in, out, post = states.values()
    assert torch.equal(post, mid + out)
    (known,) = torch.autograd.grad(post[0, 3].sum(), mlp_in)
    assert known[0, 3].any()
    assert not known[1].any()


def test_flat_states_of_two_threads_keep_their_own_shapes():
    model: Any = tiny_model("opt")
    point = HookPoint(0, "mlp_out")
    texts = [torch.full((batch, 7), 9) for batch in (1, 2, 3, 4) * 3]
    with ThreadPoolExecutor(4) as pool:
        shapes = pool.map(lambda ids: read(model, [point], ids)[point].shape, texts)
    assert [shape[0] for shape in shapes] == [len(ids) for ids in texts]


def test_a_multiplier_may_depend_on_the_depth():
    model: Any = tiny_model("minicpm3")
    assert multiplier(model.config, "mlp_out") == model.model.layers[0].residual_scale == 0.4 / 3**0.5
