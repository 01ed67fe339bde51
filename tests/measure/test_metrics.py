"""Entropy, norm and cosine by hand, at every scale, and where float32 overflows or underflows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical

from internal_policy.measure.metrics import cosine, entropy, norm

SCALES = [1.0, 3.0, 30.0, 1_000.0, 10_000.0]
"""Standard deviations of logits: a raw residual stream reaches the last ones."""


# entropy


def test_uniform_logits_have_entropy_ln_v():
    assert entropy(torch.full((3, 500), 7.25, dtype=torch.float64)).tolist() == [math.log(500)] * 3


def test_a_certain_policy_has_entropy_0():
    logits = torch.zeros(500, dtype=torch.float64)
    logits[3] = 1_000
    assert 0 <= entropy(logits) < 1e-27


def test_entropy_of_a_biased_coin_matches_a_value_worked_by_hand():
    # p = (3/4, 1/4): H = ln 4 - 3/4 ln 3
    assert entropy(torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)).item() == pytest.approx(
        math.log(4) - 0.75 * math.log(3), abs=1e-15
    )


@pytest.mark.parametrize("std", SCALES)
def test_entropy_is_correct_at_every_scale(std):
    logits = std * torch.randn(50, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(entropy(logits), Categorical(logits=logits).entropy(), atol=1e-11, rtol=0)


@pytest.mark.parametrize(("std", "bound"), [(1.0, 4e-6), (3.0, 4e-6), (30.0, 4e-6), (1_000.0, 2e-6), (10_000.0, 2e-6)])
def test_entropy_of_float32_logits_is_exact_to_a_few_millionths(std, bound):
    logits = std * torch.randn(50, 3000, generator=torch.Generator().manual_seed(0))
    expected = Categorical(logits=logits.double()).entropy()
    assert entropy(logits).dtype == torch.float32
    assert (entropy(logits) - expected).abs().max() < bound


def test_entropy_of_bfloat16_logits_is_summed_in_float32():
    logits = (3 * torch.randn(50, 3000, generator=torch.Generator().manual_seed(0))).bfloat16()
    assert entropy(logits).dtype == torch.float32
    assert (entropy(logits) - Categorical(logits=logits.double()).entropy()).abs().max() < 4e-6


def test_shifting_all_logits_does_not_change_entropy():
    logits = torch.randint(-9, 9, (4, 300), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(entropy(logits), entropy(logits + 4096))


def test_a_logit_of_minus_infinity_has_probability_0():
    logits = torch.tensor([1.0, -torch.inf, 1.0, -torch.inf], dtype=torch.float64)
    assert entropy(logits).item() == pytest.approx(math.log(2), abs=1e-27)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_logit_gives_nan_entropy_only_in_its_own_row(bad):
    logits = torch.zeros(3, 7, dtype=torch.float64)
    logits[1, 2] = bad
    assert entropy(logits).isnan().tolist() == [False, True, False]


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=40))
def test_entropy_lies_between_0_and_ln_v(logits):
    assert -1e-12 <= entropy(torch.tensor(logits, dtype=torch.float64)) <= math.log(len(logits)) + 1e-12


# norm, cosine


def test_norm_of_3_4_is_5():
    assert norm(torch.tensor([[3.0, 4.0]], dtype=torch.float64)).tolist() == [5.0]


def test_norm_of_bfloat16_is_summed_in_float32():
    hidden = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    assert (norm(hidden).dtype, norm(hidden).item()) == (torch.float32, 64.0)


def test_cosine_matches_values_worked_by_hand():
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    stream = torch.tensor([[0.0, 5.0], [-3.0, 0.0], [7.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(cosine(hidden, stream), torch.tensor([0, -1, 1, 0.5**0.5], dtype=torch.float64))


def test_cosine_of_tiny_states_is_not_damped():
    hidden = torch.tensor([[1e-12, 1e-12]], dtype=torch.float64)
    torch.testing.assert_close(cosine(hidden, hidden), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_norm_neither_underflows_nor_overflows(dtype, size):
    found = norm(torch.tensor([[3.0, 4.0]], dtype=dtype) * size)
    torch.testing.assert_close(found.double(), torch.tensor([5.0 * size], dtype=torch.float64), rtol=1e-2, atol=0)


def test_the_norm_of_0_infinity_and_nan_is_itself():
    hidden = torch.tensor([[0.0, 0.0], [1.0, torch.inf], [1.0, torch.nan]])
    torch.testing.assert_close(norm(hidden), torch.tensor([0.0, torch.inf, torch.nan]), equal_nan=True)
