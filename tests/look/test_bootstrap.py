"""Intervals equal those of plain resampling, and contain the truth as often as they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_policy.look.bootstrap import RESAMPLES, SEED, counts, interval, simultaneous


def test_counts_say_how_often_each_row_was_drawn():
    draws = np.random.default_rng(SEED).integers(0, 7, (RESAMPLES, 7))
    plain = [[list(draw).count(row) for row in range(7)] for draw in draws]
    assert counts(7).tolist() == plain


def test_counts_are_multinomial():
    found = counts(10)
    assert (found.sum(1) == 10).all()
    assert found.mean(0) == pytest.approx(np.ones(10), abs=0.1)
    covariance = np.cov(found.T)
    assert covariance.diagonal() == pytest.approx(np.full(10, 0.9), abs=0.15)
    assert covariance[~np.eye(10, dtype=bool)] == pytest.approx(np.full(90, -0.1), abs=0.1)


def test_an_interval_equals_a_slow_bootstrap_row_by_row():
    random = np.random.default_rng(2)
    values, weights = random.normal(0, 1, (12, 3)), random.integers(1, 60, 12).astype(float)
    draws = np.random.default_rng(SEED).integers(0, 12, (RESAMPLES, 12))
    plain = np.array([np.average(values[draw], axis=0, weights=weights[draw]) for draw in draws])
    _, low, high = interval(values, weights)
    assert low == pytest.approx(np.percentile(plain, 2.5, axis=0), rel=1e-12)
    assert high == pytest.approx(np.percentile(plain, 97.5, axis=0), rel=1e-12)


def test_simultaneous_intervals_equal_a_slow_bootstrap_row_by_row():
    random = np.random.default_rng(2)
    values, weights = random.normal(0, 1, (12, 3)), random.integers(1, 60, 12).astype(float)
    mean = np.average(values, axis=0, weights=weights)

    def error(rows: np.ndarray, of: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return np.sqrt((of[:, None] ** 2 * (rows - centre) ** 2).sum(0)) / of.sum()

    t = []
    for draw in np.random.default_rng(SEED).integers(0, 12, (RESAMPLES, 12)):
        rows, of = values[draw], weights[draw]
        drawn = np.average(rows, axis=0, weights=of)
        t.append((drawn - mean) / error(rows, of, drawn))
    low, high = simultaneous(values, weights)
    plain = error(values, weights, mean)
    assert low == pytest.approx(mean - np.quantile(np.max(t, axis=1), 0.975) * plain, rel=1e-9)
    assert high == pytest.approx(mean - np.quantile(np.min(t, axis=1), 0.025) * plain, rel=1e-9)


def slow_interval(values: np.ndarray, weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the weighted mean of resampled rollouts, one draw at a time."""
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(4000):
        rows = random.integers(0, len(values), len(values))
        draws.append(sum(values[row] * weights[row] for row in rows) / sum(weights[row] for row in rows))
    return np.percentile(draws, 2.5, axis=0), np.percentile(draws, 97.5, axis=0)


def test_means_and_intervals_equal_a_slow_reference():
    random = np.random.default_rng(1)
    values, weights = random.normal([0, 5], [1, 3], (25, 2)), random.integers(1, 60, 25).astype(float)
    mean, low, high = interval(values, weights)
    slow_low, slow_high = slow_interval(values, weights, seed=7)
    assert mean == pytest.approx(sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights))
    assert low == pytest.approx(slow_low, abs=0.06 * np.ptp([slow_low, slow_high]))
    assert high == pytest.approx(slow_high, abs=0.06 * np.ptp([slow_low, slow_high]))


def test_intervals_are_wider_where_the_tokens_of_a_rollout_agree():
    """The same 100 numbers, once grouped in 10 uniform rollouts and once mixed: over tokens, both would be equal."""
    agreeing, spread = np.repeat(np.arange(10.0), 10), np.tile(np.arange(10.0), 10)
    widths = []
    for tokens in (agreeing, spread):
        _, low, high = interval(tokens.reshape(10, 10).mean(1, keepdims=True), np.full(10, 10.0))
        widths.append(float(high[0] - low[0]))
    assert widths[0] > 1
    assert widths[1] == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 50)), min_size=2, max_size=12))
def test_an_interval_lies_within_the_values_and_is_the_same_each_time(pairs):
    values, weights = np.array([[value] for value, _ in pairs]), np.array([float(weight) for _, weight in pairs])
    first, again = interval(values, weights), interval(values, weights)
    assert [end.tolist() for end in first] == [end.tolist() for end in again]
    assert values.min() - 1e-9 <= first[1][0] <= first[2][0] <= values.max() + 1e-9


def test_intervals_hold_for_all_columns_at_once():
    random, missed = np.random.default_rng(3), 0
    for _ in range(200):
        weights = np.exp(random.normal(4, 0.5, 32))
        low, high = simultaneous(random.normal(0, 1, (32, 20)), weights)
        missed += bool(((low > 0) | (high < 0)).any())
    assert missed <= 16  # 10 misses are expected, and 17 or more occur in 1 of 40 tries


def test_a_simultaneous_interval_is_wider_than_a_single_one():
    values, weights = np.random.default_rng(1).normal(0, 1, (32, 20)), np.ones(32)
    _, low, high = interval(values, weights)
    low_all, high_all = simultaneous(values, weights)
    assert (low_all < low).all()
    assert (high_all > high).all()


def test_a_constant_column_has_an_interval_of_zero_width():
    values = np.column_stack([np.full(8, 0.3), np.random.default_rng(1).normal(0, 1, 8)])
    low, high = simultaneous(values, np.ones(8))
    assert (low[0], high[0]) == pytest.approx((0.3, 0.3))
    assert low[1] < high[1]


def test_nan_in_one_column_leaves_other_intervals_unchanged():
    values = np.random.default_rng(1).normal(0, 1, (32, 3))
    alone = simultaneous(values[:, 1:], np.ones(32))
    values[3, 0] = np.nan
    low, high = simultaneous(values, np.ones(32))
    assert np.isnan([low[0], high[0]]).all()
    assert [low[1:].tolist(), high[1:].tolist()] == [end.tolist() for end in alone]
