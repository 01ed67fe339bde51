"""Avg@K and Pass@k: which responses are correct, and how many problems at least one of k responses solves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from internal_policy import analysis
from internal_policy.errors import InputError


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k responses, drawn from n of which c are right, is right: 1 - C(n-c, k) / C(n, k).

    Unbiased (Eq. 1 of arXiv 2107.03374), and a product, so that no binomial overflows. Raises InputError for k > n.
    """
    if not 0 <= c <= n or k < 1:
        raise InputError(f"{c} of {n} responses right and k = {k}; expected are 0 <= right <= responses, and k >= 1.")
    if k > n:
        raise InputError(f"Pass@{k} takes {k} responses a problem, and there are {n}; sample more, or lower k.")
    if n - c < k:  # any k responses have a right one among them
        return 1.0
    # C(n-c, k) / C(n, k) is the product over i < k of 1 - c / (n - i), and over i < c of 1 - k / (n - i)
    few, many = min(c, k), max(c, k)
    return float(0.0 - np.expm1(np.log1p(-many / (n - np.arange(few))).sum()))


def avg_at_k(n: int, c: int) -> float:
    """The share of right responses, which is Pass@1. Raises InputError for no response."""
    return pass_at_k(n, c, 1)


def ks(samples: int) -> list[int]:
    """The k that Pass@k is given for: 1, 2, 4, ... and the number of samples itself."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


def correct(rewards: pd.Series) -> pd.Series:
    """Which responses are correct: those with a reward of 1 or more. One that was not marked is not."""
    return rewards.astype(float) >= 1


def outcome(rewards: pd.Series) -> tuple[str, str] | None:
    """What there is to say of rewards: the share of correct responses where all are 0 or 1, else the mean reward.

    The name of the number and the number, or None where no response was marked.
    """
    marked = rewards.dropna().astype(float)
    if not len(marked):
        return None
    if marked.isin([0, 1]).all():
        return "correct", f"{correct(marked).mean():.1%}"
    return "mean reward", f"{(marked / len(marked)).sum():.3g}"  # divided first: huge rewards have no sum


def curves(right: Sequence[int], samples: int) -> pd.DataFrame:
    """Pass@k over problems, each with `samples` responses of which `right` are right: k, mean, low, high.

    A row for each of `ks`; the one of k = 1 is Avg@K too. low and high are a 95 % bootstrap percentile interval over
    the problems, NaN for one problem alone. Raises InputError where there is no problem.
    """
    if not right:
        raise InputError("There are no problems to evaluate on; give some that have an answer.")
    values = np.array([[pass_at_k(samples, c, k) for k in ks(samples)] for c in right])
    mean, low, high = analysis.interval(values, np.ones(len(right)))
    return pd.DataFrame({"k": ks(samples), "mean": mean, "low": low, "high": high})
