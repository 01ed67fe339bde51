"""Jackknife intervals equal those computed row by row, and cover the truth as often as they should."""

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from internal_policy.look.jackknife import interval


def test_the_standard_error_is_that_of_leaving_out_each_row():
    random = np.random.default_rng(0)
    values, weights = random.normal(0, 1, (9, 3)), random.integers(1, 60, 9).astype(float)
    without = [
        np.average(np.delete(values, row, 0), axis=0, weights=np.delete(weights, row)) for row in range(len(values))
    ]
    error = np.sqrt(8 / 9 * ((without - np.mean(without, axis=0)) ** 2).sum(0))
    mean, low, high = interval(values, weights)
    assert mean == pytest.approx(np.average(values, axis=0, weights=weights))
    effective = weights.sum() ** 2 / (weights**2).sum()
    assert high - mean == pytest.approx(t.ppf(0.975, effective - 1) * error)
    assert mean - low == pytest.approx(high - mean)


def test_with_equal_weights_the_interval_is_students():
    values = np.random.default_rng(1).normal(0.4, 1, (7, 1))
    expected = ttest_1samp(values[:, 0], 0).confidence_interval()
    _, low, high = interval(values, np.ones(7))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_an_interval_for_many_columns_is_bonferronis():
    values = np.random.default_rng(1).normal(0, 1, (12, 8))
    mean, _, high = interval(values, np.ones(12))
    _, _, wider = interval(values, np.ones(12), of=8)
    assert (wider - mean) / (high - mean) == pytest.approx(np.full(8, t.ppf(1 - 0.025 / 8, 11) / t.ppf(0.975, 11)))


def test_nan_and_infinity_stay_in_their_columns():
    values = np.random.default_rng(1).normal(0, 1, (12, 3))
    alone = interval(values[:, 2:], np.ones(12))
    values[3, 0], values[4, 1] = np.nan, np.inf
    _, low, high = interval(values, np.ones(12))
    assert np.isnan(low[:2]).all()
    assert (low[2], high[2]) == pytest.approx([end[0] for end in alone[1:]])


def test_a_single_row_has_no_interval_and_equal_rows_one_of_zero_width():
    mean, low, high = interval(np.array([[0.3]]), np.ones(1))
    assert mean[0] == 0.3
    assert np.isnan([low[0], high[0]]).all()
    assert [end[0] for end in interval(np.zeros((5, 1)), np.arange(1.0, 6))] == [0, 0, 0]


def covered(rows: int, draws: int, skewed: bool, seed: int = 0) -> tuple[float, float]:
    """In which share of samples single intervals contain the true mean, and those of 8 layers at once all do.

    A row is a rollout whose length varies threefold, and the layers are correlated.
    """
    random = np.random.default_rng(seed)
    single, together = [], []
    for _ in range(draws):
        weights = np.ceil(np.exp(random.normal(4, 0.5, rows)))
        noise = random.standard_exponential((rows, 9)) - 1 if skewed else random.standard_normal((rows, 9))
        values = 0.3 + 0.7 * (noise[:, :8] + noise[:, 8:])
        _, low, high = interval(values, weights)
        single.append(((low <= 0.3) & (high >= 0.3)).mean())
        _, low, high = interval(values, weights, of=8)
        together.append(bool(((low <= 0.3) & (high >= 0.3)).all()))
    return float(np.mean(single)), float(np.mean(together))


@pytest.mark.parametrize("rows", [2, 4, 20])
def test_95_percent_intervals_cover_the_truth_in_about_95_percent_of_samples(rows):
    single, together = covered(rows, 500, skewed=False)
    assert 0.92 <= single <= 0.98
    assert together >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 3, 4, 5, 8, 16, 32, 64])
def test_intervals_cover_the_truth_at_every_size(rows):
    single, together = covered(rows, 5000, skewed=False, seed=1)
    assert 0.935 <= single <= 0.97
    assert together >= 0.94
    single, together = covered(rows, 5000, skewed=True, seed=2)  # much more skewed than means over tokens
    assert 0.88 <= single <= 0.97
    assert together >= 0.87
