"""Intervals of weighted means by resampling rows with replacement."""

from functools import lru_cache

import numpy as np

RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0
"""Number of draws, share of samples whose interval contains the true mean, and seed of the draws."""
FEWEST = 4
"""Fewest rows for intervals of all columns at once: 1 of 9 draws from three rows is the same row three times."""


@lru_cache(maxsize=1)
def counts(n: int) -> np.ndarray:
    """How often each of `n` rows occurs in each draw of n rows: multinomial, (RESAMPLES, n)."""
    draws = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    cells = (draws + n * np.arange(RESAMPLES)[:, None]).ravel()
    found = np.bincount(cells, minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(float)
    found.flags.writeable = False  # it is shared, because the figures of a scan all draw the same rollouts
    return found


def interval(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean over the rows of `values` (n, columns), and the ends of its 95% bootstrap percentile interval.

    Whole rows are drawn, with their weights (n,): a row is a rollout, whose tokens depend on each other. The ends are
    NaN for a single row. Mean and ends are NaN in a column that has a NaN.
    """
    n = len(values)
    totals = values * weights[:, None]
    mean = totals.sum(0) / weights.sum()
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    known = np.isfinite(mean)
    if n < 2 or not known.any():
        return mean, low, high
    drawn = counts(n)
    means = (drawn @ totals[:, known]) / (drawn @ weights)[:, None]
    outside = (1 - CONFIDENCE) / 2
    low[known], high[known] = np.quantile(means, [outside, 1 - outside], axis=0)
    return mean, low, high


def simultaneous(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of 95% intervals of the weighted means of all columns of `values` (n, columns) at once.

    In 95% of samples every interval contains its true mean, and in 97.5% none lies wholly above it. This is the
    bootstrap-t (Efron and Tibshirani 1993, ch. 12) of the largest of the columns' t (Romano and Wolf 2005), where
    t = (mean of a draw - mean) / the draw's own standard error. The ends are NaN with fewer than 4 rows, and in a
    column that has a NaN.
    """
    n, total = len(values), weights.sum()
    low, high = np.full((2, values.shape[1]), np.nan)
    mean = (values * weights[:, None]).sum(0) / total
    known = np.isfinite(mean)
    if n < FEWEST or not known.any():
        return low, high
    mean, off = mean[known], (values - mean)[:, known]
    off[np.abs(off) < 1e-12 * np.abs(mean)] = 0  # all rows are equal, apart from rounding
    errors = np.sqrt((weights[:, None] ** 2 * off**2).sum(0)) / total  # without sqrt(n / (n - 1)), which cancels out
    often = counts(n)
    weighted, squares = often * weights, often * weights**2
    drawn = weighted.sum(1, keepdims=True)
    moved = weighted @ off / drawn
    around = squares @ off**2
    variance = around - 2 * moved * (squares @ off) + moved**2 * squares.sum(1, keepdims=True)
    spread = np.sqrt(np.maximum(variance, np.finfo(float).eps * around))  # a draw that repeats one row has no spread
    t = np.divide(moved * drawn, spread, out=np.zeros_like(moved), where=spread > 0)
    outside = (1 - CONFIDENCE) / 2
    low[known] = mean - np.quantile(t.max(1), 1 - outside) * errors
    high[known] = mean - np.quantile(t.min(1), outside) * errors
    return low, high
