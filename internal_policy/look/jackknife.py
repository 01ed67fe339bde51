"""Intervals of weighted means by leaving out one row at a time, which hold for few rows too."""

import numpy as np

from internal_policy.look.bootstrap import CONFIDENCE


def interval(values: np.ndarray, weights: np.ndarray, of: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean over the rows of `values` (n, columns), and the ends of its 95% interval.

    A row is a rollout with its weight, (n,). The standard error is the jackknife's (Efron and Tibshirani 1993, ch. 11)
    and the quantile Student's, with one degree of freedom less than the effective number of rows (Kish): a percentile
    bootstrap of 8 rows covers the true mean in 83 to 87% of samples, this in 92 to 95%. With `of` the interval is
    widened (Bonferroni) to hold for that many columns at once. The ends are NaN for a single row. Mean and ends are NaN
    in a column that has a NaN.
    """
    from scipy.stats import t  # takes a third of a second to import

    n, total = len(values), weights.sum()
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, as it should be
        mean = (values * weights[:, None]).sum(0) / total
        if n < 2:
            return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        left_out = (values - mean) * (weights / (total - weights))[:, None]  # how much the mean changes without a row
        error = np.sqrt((n - 1) * left_out.var(0))
        freedom = max(total**2 / (weights**2).sum() - 1, 1)
        half = float(t.ppf(1 - (1 - CONFIDENCE) / 2 / of, freedom)) * error
        return mean, mean - half, mean + half
