"""Differences of Avg@K and Pass@k on the same problems: intervals cover, and tests are exact."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from internal_policy.errors import InputError
from internal_policy.tasks.paired import differences, interval, p_value, solved
from internal_policy.tasks.pass_at_k import curves, ks, pass_at_k


def test_differences_are_those_of_the_curves():
    a, b = [0, 1, 4, 2], [1, 1, 3, 4]
    found = differences(a, b, 4)
    assert found["k"].tolist() == [1, 2, 4]
    for name, right in (("a", a), ("b", b)):
        assert found[name].tolist() == pytest.approx(curves(right, 4)["mean"].tolist())
    assert found["difference"].tolist() == pytest.approx((found["b"] - found["a"]).tolist())
    assert ((found["low"] < found["difference"]) & (found["difference"] < found["high"])).all()


def test_an_interval_approaches_students_over_problems():
    random = np.random.default_rng(0)
    a, b = random.binomial(8, random.random((2, 500)))
    found = differences(a.tolist(), b.tolist(), 8).iloc[0]
    expected = ttest_rel(b / 8, a / 8).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_one_response_per_problem_gives_the_interval_of_bonett_and_price():
    changed = np.array([[1.0]] * 7 + [[-1.0]] * 2 + [[0.0]] * 11)
    low, high = interval(changed, 1)
    p12, p21 = 8 / 22, 3 / 22  # one is added to each kind of problem that differs, two to the number of problems
    half = 2.079614 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / 22)  # Student's quantile with 21 degrees of freedom
    assert (low[0], high[0]) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-6)


@pytest.mark.parametrize("samples", [1, 8])
def test_identical_evaluations_differ_by_0_within_a_narrowing_interval(samples):
    right = [samples, 0, 1, 0] * 16
    found = differences(right, right, samples)
    assert (found["difference"] == 0).all()
    assert found["high"].tolist() == pytest.approx((-found["low"]).tolist())
    assert 0 < found["high"].iloc[0] < 0.05
    assert found["high"].iloc[-1] == pytest.approx(0.0428, abs=1e-3)  # 2 sqrt(2) / 66
    assert p_value([0] * 64) == 1


def test_one_problem_has_no_interval_and_no_problems_are_refused():
    found = differences([1], [2], 2)
    assert found["difference"].tolist() == [0.5, 0]
    assert found[["low", "high"]].isna().all(axis=None)
    assert p_value([1]) == 1
    with pytest.raises(InputError, match="no problems to compare"):
        differences([], [], 2)


@given(st.integers(1, 8), st.data())
def test_an_interval_holds_the_difference_and_stays_between_minus_1_and_1(samples, data):
    counts = st.tuples(st.integers(0, samples), st.integers(0, samples))
    pairs = data.draw(st.lists(counts, min_size=2, max_size=20))
    found = differences([a for a, _ in pairs], [b for _, b in pairs], samples)
    assert ((found["low"] >= -1) & (found["low"] <= found["difference"])).all()
    assert ((found["difference"] <= found["high"]) & (found["high"] <= 1)).all()


def test_mcnemars_test_equals_a_table_worked_by_hand():
    # 10 problems that only B solves and 2 that only A does: 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12 = 158 / 4096
    assert p_value([1] * 10 + [-1] * 2 + [0] * 30) == pytest.approx(158 / 4096)
    assert p_value([1, -1]) == 1
    assert p_value([1] * 6) == pytest.approx(2 / 64)


@given(st.integers(0, 40), st.integers(0, 40))
def test_with_one_response_it_is_the_binomial_test_of_the_problems_that_differ(only_b, only_a):
    expected = binomtest(only_b, only_b + only_a).pvalue if only_a + only_b else 1
    assert p_value([1] * only_b + [-1] * only_a) == pytest.approx(expected)


@given(st.lists(st.integers(-8, 8), max_size=9))
def test_with_more_responses_it_counts_all_signs(changed):
    sums = [
        abs(sum(s * c for s, c in zip(signs, changed, strict=True))) for signs in product((1, -1), repeat=len(changed))
    ]
    assert p_value(changed) == pytest.approx(np.mean(np.array(sums) >= abs(sum(changed))))


def test_solved_problems_are_counted():
    assert solved([0, 0, 1, 3, 2], [0, 2, 0, 1, 1]) == {"both": 2, "only_a": 1, "only_b": 1, "neither": 1}


DIFFICULTIES = [(1, 1), (0.3, 0.3), (5, 0.3), (20, 20)]
"""Beta distributions of the chance to solve a problem: even, all or nothing, easy, alike."""


def models(difficulty: tuple[float, float], effect: float = 0.5) -> np.ndarray:
    """The chances of two models on many problems, (2, 100000). B's differ by noise and an effect, in logits."""
    random = np.random.default_rng(0)
    a = np.clip(random.beta(*difficulty, 100_000), 1e-6, 1 - 1e-6)
    logits = np.log(a / (1 - a)) + effect + random.normal(0, 0.7, len(a)) * (effect != 0)
    return np.stack([a, 1 / (1 + np.exp(-logits))])


def covered(difficulty: tuple[float, float], problems: int, samples: int, draws: int) -> list[float]:
    """In which share of samples the interval contains the true difference of Pass@k, for each k."""
    random, chances = np.random.default_rng(1), models(difficulty)
    table = np.array([[pass_at_k(samples, c, k) for k in ks(samples)] for c in range(samples + 1)])
    passed = [1 - (1 - chances) ** k for k in ks(samples)]
    true = np.array([both[1].mean() - both[0].mean() for both in passed])
    inside = []
    for _ in range(draws):
        a, b = random.binomial(samples, chances[:, random.integers(0, chances.shape[1], problems)])
        low, high = interval(table[b] - table[a], samples)
        inside.append((low <= true) & (true <= high))
    return np.mean(inside, axis=0).tolist()


@pytest.mark.parametrize(("difficulty", "problems"), [((1, 1), 3), ((1, 1), 32), ((5, 0.3), 8), ((20, 20), 64)])
def test_intervals_cover_the_true_difference_in_at_least_about_95_percent_of_samples(difficulty, problems):
    avg, *passed = covered(difficulty, problems, 4, 600)
    assert avg >= 0.93
    assert min(passed) >= 0.93
    if problems >= 32:
        assert avg <= 0.97  # and not in many more, where there are enough problems


@pytest.mark.slow
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("problems", [2, 3, 5, 8, 16, 64, 256])
@pytest.mark.parametrize("samples", [1, 8])
def test_intervals_cover_the_true_difference_at_every_size(difficulty, problems, samples):
    avg, *passed = covered(difficulty, problems, samples, 4000)
    assert avg >= 0.935
    assert min(passed, default=1) >= 0.94
    if problems >= 64 and difficulty != (5, 0.3):
        assert avg <= 0.975


@pytest.mark.parametrize("samples", [1, 4])
def test_the_test_finds_a_difference_in_at_most_5_percent_of_samples_without_one(samples):
    random, chances = np.random.default_rng(2), models((1, 1), effect=0)[0]
    found = []
    for _ in range(400):
        chosen = chances[random.integers(0, len(chances), 24)]
        a, b = random.binomial(samples, chosen, (2, 24))
        found.append(p_value((b - a).tolist()) <= 0.05)
    assert 0.01 <= np.mean(found) <= 0.075  # 20 of 400 are expected at most, and 31 or more occur in 1 of 100 tries
