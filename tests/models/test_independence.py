"""Hybrids and state-space models: a text's numbers depend neither on its pieces nor on its batch mates."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_rollout, tiny_model
from torch.distributions import Categorical

from internal_policy.models import kernels
from internal_policy.models.families import family_of
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.independence import continues, samples_alike
from internal_policy.models.passes import sampled_together
from internal_policy.models.policy import as_policy, policy_logits
from internal_policy.models.rows import FAMILIES, hybrid
from internal_policy.scans import blocks as blocks_module
from internal_policy.scans.scan import scan
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import Message, Problem

FEW = ["nemotron_h", "jamba", "mamba", "lfm3", "rwkv"]
"""A Mamba-2 hybrid, a Mamba-1 hybrid, a pure state-space model, convolutions with sliding windows, and a recurrence."""
EXACT = ["lfm2", "lfm2_moe", "lfm3", "gemma4_text", "gemma3_text", "gpt_oss"]
"""Caches that hold what was computed; the others hold recurrent states in float32."""
OTHERS = [name for name in (*hybrid.ROWS, *EXACT, "qwen3_next", "qwen3_5_text") if name not in FEW]
NAMES = [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in dict.fromkeys(OTHERS))]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


# reading

LENGTHS = [9, 25, 17]
POINT = HookPoint(1, "resid_pre")


def scanned(model, tokenizer, texts, batch_size=3):
    only = {"layers": [1], "sites": ["resid_pre"], "measures": ["entropy"]}
    return scan(model, tokenizer, texts, batch_size=batch_size, readouts=("raw",), **only).policies


@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "in pieces"])
def test_a_rollout_of_a_hybrid_has_the_same_numbers_in_a_batch_as_alone(monkeypatch, tokenizer, name, pieces):
    model, texts = tiny_model(name), [random_rollout(4, n - 4, n) for n in LENGTHS]
    if pieces:
        size = 2 * model.config.get_text_config().hidden_size * 8 * len(LENGTHS)
        monkeypatch.setattr(blocks_module, "STATE_BYTES", 6 * size)
        monkeypatch.setattr(blocks_module, "WHOLE_BYTES", 6 * size)
        monkeypatch.setattr(blocks_module, "PREFILL", 1)
    found = scanned(model, tokenizer, texts)
    tolerance = 1e-5 if name in EXACT else 1e-3
    n_layers = model.config.get_text_config().num_hidden_layers
    for number, one in enumerate(texts):
        rows = found[found["rollout"] == number]
        for layer, column, point in ((n_layers, "final.entropy", FINAL), (1, "resid_pre.entropy", POINT)):
            logits = policy_logits(model, point, input_ids=torch.tensor([one.ids]))[0, 3:-1].detach()
            values = rows.loc[rows["layer"] == layer, column].to_numpy()
            np.testing.assert_allclose(values, Categorical(logits=logits).entropy(), rtol=tolerance, atol=tolerance)


def in_pieces(monkeypatch, name, **changes):
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], **changes))
    return tiny_model(name), torch.randint(5, 256, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "cache"), [("jamba", "past_key_values"), ("bamba", "past_key_values"), ("mamba", "cache_params")]
)
def test_a_row_with_a_cache_that_does_not_continue_texts_is_contradicted(monkeypatch, name, cache):
    assert FAMILIES[name].cache == ""
    [contradiction] = continues(*in_pieces(monkeypatch, name, cache=cache))
    assert contradiction.startswith("a text in pieces has other hidden states than the whole text")


# sampling


@pytest.mark.parametrize("name", ["rwkv", "xlstm", "recurrent_gemma"])
def test_a_row_that_samples_padded_prompts_it_cannot_is_contradicted(monkeypatch, name):
    assert FAMILIES[name].together != "all"
    [contradiction, *_] = samples_alike(*in_pieces(monkeypatch, name, together="all"))
    assert "is continued otherwise" in contradiction


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("nemotron_h", [[0, 1, 2]]),
        ("recurrent_gemma", [[0, 2], [1]]),
        ("rwkv", [[0], [1], [2]]),
    ],
)
def test_prompts_are_grouped_as_the_row_says(name, groups):
    assert sampled_together(tiny_model(name).config, [5, 9, 5], 3) == groups


TEXTS = ["What is 2 + 3?", "Mia has 47 apples. How many apples has she now?", "Hi"]


def sampled(model, tokenizer, texts, n=8):
    problems = [Problem((Message(role="user", content=text),), None) for text in texts]
    options = {"temperature": 0.0, "max_new_tokens": n, "batch_size": len(texts), "chat": None}
    return [one.response_ids for batch in generate(model, tokenizer, problems, **options) for one in batch]


def greedy(model, ids, n=8):
    """The most likely token after whole passes without a cache."""
    ids = torch.tensor([list(ids)])
    for _ in range(n):
        with torch.no_grad():
            best = model(input_ids=ids, use_cache=False).logits[0, -1].float().argmax()
        ids = torch.cat([ids, best[None, None]], 1)
    return tuple(ids[0, -n:].tolist())


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_a_policy_of_a_hybrid_samples_in_a_batch_what_whole_passes_predict(tokenizer, name, layer):
    model = tiny_model(name)
    unembedding(model).weight.data[:4] = 0  # no response ends
    point = FINAL if layer is None else HookPoint(layer, "resid_post")
    with as_policy(model, point):
        expected = [greedy(model, tokenizer(text).input_ids) for text in TEXTS]
        assert sampled(model, tokenizer, TEXTS) == expected


# kernels


def test_missing_kernels_are_said_in_one_sentence(caplog):
    logger, one = logging.getLogger(kernels.LOGGER), kernels.OneSentence()
    logger.addFilter(one)
    try:
        with caplog.at_level("WARNING", kernels.LOGGER):
            logger.propagate = True
            for name in ("conv", "scan", "update"):
                logger.warning("`%s` is falling back to its reference PyTorch implementation because ...", name)
            logger.warning("something else")
    finally:
        logger.removeFilter(one)
    assert caplog.messages == [kernels.SENTENCE, "something else"]


# float32 streams


def test_a_float32_stream_of_a_bfloat16_model_is_unembedded():
    model = tiny_model("mamba", residual_in_fp32=True).bfloat16()
    ids = torch.tensor([[5, 6, 7]])
    with as_policy(model, "1.resid_post"):
        expected = model(ids).logits
    logits = policy_logits(model, "1.resid_post", input_ids=ids)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits.float(), expected)


def test_every_row_says_how_its_texts_are_read():
    assert {name for name, row in FAMILIES.items() if not row.cache} == {
        *("jamba", "bamba", "mamba", "falcon_mamba", "zamba", "recurrent_gemma", "rwkv", "xlstm")
    }
    assert family_of(tiny_model("mamba2").config).cache == "cache_params"
