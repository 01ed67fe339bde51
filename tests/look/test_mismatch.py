"""The mismatch between an engine's log probabilities and the model's, worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import random_rollout, tiny_model

import internal_policy as ip
from internal_policy.look.mismatch import mismatch

ROLLOUTS = [random_rollout(4, 3, seed=1), random_rollout(4, 5, seed=2)]


@pytest.fixture
def measured(tokenizer):
    """Measures rollouts with a tiny model."""
    return lambda rollouts: ip.scan(tiny_model("llama"), tokenizer, rollouts, layers=[0], sites=["resid_post"])


def test_equal_log_probabilities_have_no_mismatch_and_shifted_ones_a_known_one(measured):
    frame = measured(ROLLOUTS).policies(["final.logprob"]).dropna()
    ours = [frame[frame["rollout"] == number]["final.logprob"].tolist() for number in (0, 1)]
    told = [replace(one, engine_logprob=tuple(values)) for one, values in zip(ROLLOUTS, ours, strict=True)]
    found = mismatch(measured(told).source)
    assert found is not None
    assert (found.tokens, found.mean, found.max, found.ratio, found.k3) == pytest.approx((8, 0, 0, 1, 0), abs=1e-6)
    first = replace(told[0], engine_logprob=tuple(value - 0.5 for value in ours[0]))  # d = 0.5 for 3 of 8 tokens
    found = mismatch(measured([first, told[1]]).source)
    assert found is not None
    ratio = (3 * np.exp(0.5) + 5) / 8
    assert (found.mean, found.max, found.ratio, found.k3) == pytest.approx(
        (1.5 / 8, 0.5, ratio, ratio - 1 - 1.5 / 8), abs=1e-5
    )


def test_each_token_is_compared_at_its_own_position(measured):
    told = [replace(one, engine_logprob=tuple(-float(n) for n in range(len(one.response_ids)))) for one in ROLLOUTS]
    scan = measured(told)
    frame = scan.policies(["final.logprob"]).dropna()
    expected = (frame["final.logprob"] + frame["position"]).abs()
    found = mismatch(scan.source)
    assert found is not None
    assert (found.mean, found.max) == pytest.approx((expected.mean(), expected.max()), abs=1e-5)


def test_without_an_engine_there_is_no_mismatch(measured):
    assert mismatch(measured(ROLLOUTS).source) is None
    assert mismatch(ip.open_scan("demo-qwen3").source) is None
