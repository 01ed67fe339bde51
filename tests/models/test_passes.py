"""A forward pass depends only on its own text, not on its batch, pieces, earlier texts or training mode."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import random_rollout, tiny_model
from torch.distributions import Categorical
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from internal_policy.errors import InputError
from internal_policy.lenses import fit
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.passes import alone, positions
from internal_policy.models.policy import policy_logits
from internal_policy.scans import blocks as blocks_module
from internal_policy.scans import scan as scan_module
from internal_policy.scans.scan import scan
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import Message, Problem
from internal_policy.train import dynamics

FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 3.0, 9.0, 20.0]}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 20},
    "longrope": {**FACTORS, "factor": 4.0, "original_max_position_embeddings": 20},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 20,
    },
    "proportional": {"factor": 4.0},
}
LENGTHS = [8, 21, 60, 20, 35, 61]
"""Text lengths on both sides of 20, ordered so that shorter texts follow longer ones."""
POINT = HookPoint(1, "attn_out")


def roped(kind, family="llama", **changes):
    """A tiny model with this kind of rotary embedding, and 20 trained positions."""
    rope = {"rope_type": kind, "rope_theta": 100.0, **ROPES[kind]}
    trained = 20 if kind in ("dynamic", "linear", "yarn") else 80
    if family == "phi3":
        changes = {"original_max_position_embeddings": 20, **changes}  # its own name for it comes first
    return tiny_model(family, max_position_embeddings=trained, rope_parameters=rope, **changes)


def rollouts(lengths=LENGTHS):
    return [random_rollout(4, length - 4, seed) for seed, length in enumerate(lengths)]


def entropies(kind, one, point, family="llama"):
    """Entropies at each response token, from `model(ids)` of a new model."""
    logits = policy_logits(roped(kind, family), point, input_ids=torch.tensor([one.ids]))[0, 3:-1].detach()
    return Categorical(logits=logits).entropy().numpy()


def assert_as_alone(found, kind, family="llama", lengths=LENGTHS):
    for number, one in enumerate(rollouts(lengths)):
        rows = found.policies[found.policies["rollout"] == number]
        for layer, name, point in ((3, "final.entropy", FINAL), (1, "attn_out.entropy", POINT)):
            values = rows.loc[rows["layer"] == layer, name].to_numpy()
            np.testing.assert_allclose(values, entropies(kind, one, point, family), rtol=1e-5, atol=1e-6)


def scanned(model, tokenizer, batch_size=6, texts=None):
    only = {"layers": [1], "sites": ["attn_out"], "measures": ["entropy"]}
    return scan(model, tokenizer, texts or rollouts(), batch_size=batch_size, readouts=("raw",), **only)


def in_pieces_of(monkeypatch, length):
    monkeypatch.setattr(blocks_module, "STATE_BYTES", length * 2 * 32 * 8 * len(LENGTHS))
    monkeypatch.setattr(blocks_module, "PREFILL", 1)


def test_every_kind_of_rotary_embedding_of_transformers_is_tested():
    assert {"default", *ROPE_INIT_FUNCTIONS} == ROPES.keys()


# the numbers


@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("kind", ROPES)
def test_a_rollout_has_the_same_numbers_in_a_batch_as_alone(monkeypatch, tokenizer, kind, pieces):
    if pieces:
        in_pieces_of(monkeypatch, 7)
    assert_as_alone(scanned(roped(kind), tokenizer), kind)


@pytest.mark.parametrize(
    ("family", "kind", "own"),
    [
        ("phi3", "longrope", {}),
        ("deepseek_v2", "longrope", {name: each[:2] for name, each in FACTORS.items()}),
        ("deepseek_v2", "dynamic", {}),
        ("gpt_neox", "dynamic", {"partial_rotary_factor": 0.5}),
        ("qwen2_5_vl", "dynamic", {"mrope_section": [1, 1, 2]}),  # positions of time, height and width
    ],
)
def test_batches_do_not_change_rotations_specific_to_a_family(monkeypatch, tokenizer, family, kind, own):
    monkeypatch.setitem(ROPES, kind, {**ROPES[kind], **own})
    in_pieces_of(monkeypatch, 7)
    assert_as_alone(scanned(roped(kind, family), tokenizer), kind, family)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_earlier_longer_texts_do_not_change_the_numbers(tokenizer, kind, batch_size):
    model = roped(kind)
    model(torch.randint(5, 256, (1, 70)))
    assert_as_alone(scanned(model, tokenizer, batch_size), kind)


@pytest.mark.parametrize("lengths", [[20], [70, 20], [19, 21]], ids=str)
@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_batches_do_not_change_texts_at_the_boundary_of_a_rotation(tokenizer, kind, lengths):
    assert_as_alone(scanned(roped(kind), tokenizer, texts=rollouts(lengths)), kind, lengths=lengths)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_batches_do_not_change_layers_that_rotate_differently(monkeypatch, tokenizer, kind):
    plain = {"rope_type": "default", "rope_theta": 100.0}
    rope = {"full_attention": {"rope_type": kind, "rope_theta": 100.0, **ROPES[kind]}, "sliding_attention": plain}
    changes = {"max_position_embeddings": 20 if kind == "dynamic" else 80, "rope_parameters": rope}
    changes["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    in_pieces_of(monkeypatch, 7)
    texts = rollouts(
        [8, 35, 20, 21]
    )  # with a rotation per kind of layer, only some layers read beyond max_position_embeddings
    monkeypatch.setattr(scan_module, "positions", lambda _: 80)
    found = scanned(tiny_model("gemma3_text", **changes), tokenizer, texts=texts)
    for number, one in enumerate(texts):
        rows = found.policies[(found.policies["rollout"] == number) & (found.policies["layer"] == 3)]
        new = tiny_model("gemma3_text", **changes)
        logits = policy_logits(new, FINAL, input_ids=torch.tensor([one.ids]))[0, 3:-1].detach()
        np.testing.assert_allclose(rows["final.entropy"], Categorical(logits=logits).entropy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_dynamics_of_a_batch_equal_those_of_its_rollouts_alone(kind):
    def kl(texts):
        frame = dynamics.measure(roped(kind), texts, POINT)
        return frame.loc[frame["site"] == "final", "kl"].iloc[0] * sum(len(one.response_ids) for one in texts)

    assert kl(rollouts()) == pytest.approx(sum(kl([one]) for one in rollouts()), rel=1e-5)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_lens_is_fitted_to_states_that_do_not_depend_on_the_batch(kind):
    together = fit.states(roped(kind), rollouts(), [FINAL, POINT])
    each = torch.cat([fit.states(roped(kind), [one], [FINAL, POINT]) for one in rollouts()], 1)
    torch.testing.assert_close(
        *(states.norm(dim=-1).sort().values for states in (together, each)), rtol=1e-9, atol=1e-9
    )


def test_other_threads_are_unaffected(tokenizer):
    model, ids = roped("longrope"), torch.randint(5, 256, (2, 30))
    expected = model(ids).logits
    with alone(model, [8, 30]):
        inside = model(ids).logits
        with ThreadPoolExecutor(1) as pool:
            outside = pool.submit(lambda: model(ids).logits).result()
    assert torch.equal(outside, expected)
    assert not torch.equal(inside[0], expected[0])
    torch.testing.assert_close(inside[1], expected[1])


# sampling

TEXTS = ["What is 2 + 3?", "Mia has 47 apples. How many apples has she now?", "Hi"]


def sampled(model, tokenizer, texts, batch_size, n=12):
    model.lm_head.weight.data[:4] = 0  # no response ends
    problems = [Problem((Message(role="user", content=text),), None) for text in texts]
    options = {"temperature": 0.0, "max_new_tokens": n, "batch_size": batch_size, "chat": None}
    return [one.response_ids for batch in generate(model, tokenizer, problems, **options) for one in batch]


@pytest.mark.parametrize(
    ("kind", "family"), [("longrope", "llama"), ("longrope", "phi3"), ("dynamic", "llama"), ("yarn", "llama")]
)
def test_a_response_does_not_depend_on_its_batch(tokenizer, kind, family):
    lengths = [len(tokenizer(text).input_ids) for text in TEXTS]
    assert min(lengths) + 12 <= 20 < max(lengths) + 12  # some texts reach the other rotation
    each = [sampled(roped(kind, family), tokenizer, [text], 1)[0] for text in TEXTS]
    assert sampled(roped(kind, family), tokenizer, TEXTS, 3) == each


def test_a_response_does_not_depend_on_earlier_texts(tokenizer):
    model, text = roped("dynamic"), TEXTS[1]
    expected = sampled(roped("dynamic"), tokenizer, [text], 1)
    model(torch.randint(5, 256, (1, 70)))
    assert sampled(model, tokenizer, [text], 1) == expected


def test_a_model_in_training_mode_is_sampled_without_dropout(tokenizer):
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = sampled(model, tokenizer, TEXTS, 3)
    model.train()
    assert sampled(model, tokenizer, TEXTS, 3) == expected
    assert all(module.training for module in model.modules())


# number of positions


@pytest.mark.parametrize(
    ("family", "rope", "most", "expected"),
    [
        ("llama", {"rope_type": "default"}, 64, 64),
        ("gpt2", None, 64, 64),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 40, 128),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0}, 32, 128),
        ("deepseek_v3", {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4}, 160, 160),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, 64, 128),
        ("llama", {"rope_type": "linear", "factor": 2.5}, 64, 160),
        ("llama", {**ROPES["llama3"], "rope_type": "llama3", "factor": 32.0}, 64, 64),
        ("phi3", {**FACTORS, "rope_type": "longrope", "original_max_position_embeddings": 4}, 64, 64),
        (
            "gemma3_text",
            {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}},
            64,
            64,
        ),
    ],
)
def test_a_model_reads_as_many_positions_as_its_rotary_embedding_allows(family, rope, most, expected):
    changes = {} if rope is None else {"rope_parameters": rope}
    assert positions(tiny_model(family, max_position_embeddings=most, **changes).config) == expected


@pytest.mark.parametrize("kind", ["yarn", "dynamic"])
def test_texts_are_scanned_up_to_the_extended_number_of_positions(tokenizer, kind):
    model, (one,) = roped(kind), rollouts([80])
    found = scanned(model, tokenizer, texts=[one]).policies
    assert np.isfinite(found.loc[found["layer"] == 3, "final.entropy"]).sum() == 76
    with pytest.raises(InputError, match="Rollout 0 has 81 tokens, but the model reads at most 80"):
        scanned(model, tokenizer, texts=[replace(one, response_ids=(*one.response_ids, 7))])


@pytest.mark.parametrize("kind", ["yarn", "dynamic"])
def test_responses_are_sampled_up_to_the_extended_number_of_positions(tokenizer, kind):
    model, text = roped(kind), TEXTS[0]
    room = 80 - len(tokenizer(text).input_ids)
    assert len(sampled(model, tokenizer, [text], 1, room)[0]) == room
    with pytest.raises(InputError, match="the model has only 80 positions"):
        sampled(model, tokenizer, [text], 1, room + 1)


def test_an_offloaded_model_samples_the_same_responses(tokenizer):
    expected, model = sampled(tiny_model("llama"), tokenizer, TEXTS, 3), tiny_model("llama")
    model.lm_head.weight.data[:4] = 0  # as `sampled` does, which can't reach offloaded weights
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert sampled(model, tokenizer, TEXTS, 3) == expected
