"""The smallest difference of Avg@K that a number of problems can detect, and how many problems a difference needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from internal_policy.errors import InputError

POWER, LEVEL = 0.8, 0.05
"""Chance to detect the difference if it is true, and to find one if there is none (two-sided)."""
MEAN, SHARE, CORRELATION = 0.5, 0.5, 0.5
"""Assumed where it isn't known: the share of correct responses, the share of their variance that lies between problems,
and the correlation of two models' shares over problems."""
FEWEST = 2
"""Fewest problems for an interval."""
NORMAL = 2.801585
"""Sum of the normal distribution's quantiles at 97.5% and 80%."""


@dataclass(frozen=True)
class Spread:
    """How much the responses of two models vary; all are variances of shares of correct responses."""

    between: float
    """Between problems: the variance of a problem's chance of a correct response, a mean over both models."""
    within: float
    """Within problems: the variance of a single response around its problem's chance, a mean over both models."""
    shared: float
    """Covariance of both models' chances over problems, which pairing removes."""

    def variance(self, samples: int, *, paired: bool) -> float:
        """Variance of the difference of two models' shares on one problem with `samples` responses of each.

        Unpaired, the two models answer different problems.
        """
        return 2 * (self.between + self.within / samples) - (2 * self.shared if paired else 0)


def assumed() -> Spread:
    """The spread if nothing is known."""
    between = SHARE * MEAN * (1 - MEAN)
    return Spread(between, MEAN * (1 - MEAN) - between, CORRELATION * between)


def estimated(right: Sequence[Sequence[int]], samples: int) -> Spread:
    """The spread in an evaluation, or in two of the same problems. Raises InputError if nothing varies.

    `right` has for each model how many of each problem's `samples` responses are correct. The estimates are unbiased
    (analysis of variance). With one model, the covariance is CORRELATION of its variance between problems; with one
    response per problem, SHARE of the variance lies between problems.
    """
    shares = np.array(right, dtype=float) / samples
    if shares.shape[1] < FEWEST:
        raise InputError(f"A plan from an evaluation needs {FEWEST} or more problems. Plan without the evaluation.")
    total = float(shares.var(axis=1, ddof=1).mean())
    if total == 0:
        raise InputError(
            "All problems of the evaluation have the same share of correct responses, so it doesn't show how much "
            "problems vary. Plan without it."
        )
    covariance = float(np.cov(shares)[0, 1]) if len(shares) > 1 else None
    if samples > 1:
        within = float((shares * (1 - shares)).mean()) * samples / (samples - 1)
        between = max(total - within / samples, 0.0)
    else:
        between = max(SHARE * total, covariance or 0.0)
        within = total - between
    shared = CORRELATION * between if covariance is None else float(np.clip(covariance, -between, between))
    return Spread(between, within, shared)


def smallest(spread: Spread, samples: int, problems: int, *, paired: bool) -> float:
    """The smallest true difference (a share) that is detected with 80% power at the 5% level, two-sided.

    Each model gives `samples` responses to each of `problems`. The quantiles are Student's with the degrees of freedom
    of a paired or of a two-sample test. NaN for a single problem.
    """
    from scipy.stats import t  # takes a third of a second to import

    if problems < FEWEST:
        return math.nan
    freedom = (problems - 1) * (1 if paired else 2)
    quantiles = float(t.ppf(1 - LEVEL / 2, freedom) + t.ppf(POWER, freedom))
    return quantiles * math.sqrt(spread.variance(samples, paired=paired) / problems)


def needed(spread: Spread, samples: int, difference: float, *, paired: bool) -> int:
    """How many problems for each model detect a true difference (a share above 0) with 80% power."""
    normal = spread.variance(samples, paired=paired) * (NORMAL / difference) ** 2
    problems = max(FEWEST, math.floor(normal))  # a few less than with Student's t
    while smallest(spread, samples, problems, paired=paired) > difference:
        problems += 1
    return problems
