"""Avg@K and Pass@k: the share of correct responses, and of problems with a correct one among k responses."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from internal_policy.errors import InputError
from internal_policy.tasks.marking import boxed


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k responses, drawn from n with c correct ones, include a correct one: 1 - C(n-c, k) / C(n, k).

    Unbiased (Eq. 1 of arXiv 2107.03374); with k = 1 it is Avg@K. Raises InputError for k > n.
    """
    from scipy.stats import hypergeom  # takes a third of a second, and only an evaluation needs it

    if not 0 <= c <= n or k < 1:
        raise InputError(f"{c} of {n} responses are correct and k is {k}. Use 0 <= correct <= responses, and k >= 1.")
    if k > n:
        raise InputError(f"Pass@{k} needs {k} responses per problem, but there are {n}. Sample more, or lower k.")
    return float(hypergeom.sf(0, n, c, k))


def ks(samples: int) -> list[int]:
    """The values of k: 1, 2, 4, ... and the number of samples itself."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


NOT_MARKED = "not marked"
"""The outcome of responses that couldn't be marked, which says nothing about how good they are."""


def correct(rewards: pd.Series) -> pd.Series:
    """Which responses are correct: those with a reward of 1 or more. An unmarked one isn't."""
    return rewards.astype(float) >= 1


def outcome(rewards: pd.Series, responses: pd.Series) -> tuple[str, str]:
    """A summary of rewards, as name and value: the share correct if all are 0 or 1, else the mean reward.

    The value is NOT_MARKED if nothing could be marked: no problem has an answer to compare with, or every reward is 0
    and no response has a box. Otherwise it is over the marked responses.
    """
    marked = rewards.dropna().astype(float)
    if not marked.any() and all(boxed(response) is None for response in responses[marked.index]):
        return "correct", NOT_MARKED
    if marked.isin([0, 1]).all():
        return "correct", f"{correct(marked).mean():.1%}"
    # divided first, because the sum of huge rewards overflows
    return "mean reward", f"{(marked / len(marked)).sum():.3g}"


def outcome_in_words(rewards: pd.Series, responses: pd.Series) -> str:
    """The same as part of a sentence: `45.0% correct`, `mean reward 0.25` or `not marked`."""
    name, value = outcome(rewards, responses)
    if value == NOT_MARKED:
        return value
    marked = f" of {rewards.notna().sum():,} marked" if rewards.isna().any() else ""
    return f"{value} {name}{marked}" if name == "correct" else f"{name} {value}{marked}"


def no_box(rewards: pd.Series, responses: pd.Series, problems: str = "") -> str:
    """A sentence for responses that weren't marked because none has a box, or nothing; `problems` names their set."""
    if not rewards.notna().any() or outcome(rewards, responses)[1] != NOT_MARKED:
        return ""
    return f"No response{problems and f' to {problems}'} has an answer in \\boxed{{}}, so none was marked."


def curves(right: Sequence[int], samples: int) -> pd.DataFrame:
    """Pass@k over problems, given how many of each problem's `samples` are correct (`right`): k, mean, low, high.

    A row for each of `ks`; the one of k = 1 is Avg@K too. low and high are the 95% Wilson `interval` over problems,
    NaN for a single problem. Raises InputError if there are no problems.
    """
    if not right:
        raise InputError("There are no problems to evaluate on. Add some that have an answer.")
    values = np.array([[pass_at_k(samples, c, k) for k in ks(samples)] for c in right])
    low, high = interval(values)
    return pd.DataFrame({"k": ks(samples), "mean": values.mean(0), "low": low, "high": high})


Z = 1.959963984540054
"""95% of a normal distribution lies between -Z and Z."""


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the 95% Wilson interval of the mean of `values`: one row per problem, shares between 0 and 1.

    The unit is the problem, because responses to one problem depend on one another. n is the number of problems divided
    by the design effect (Kish): the variance of the shares relative to problems that are always or never answered
    correctly. The variance is estimated with two of each added (Agresti and Coull), because it is 0 if all problems are
    alike: 64 of 64 give 94.3 to 100%. With a single problem the ends are NaN.
    """
    number, mean = len(values), values.mean(0)
    if number < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    padded = np.pad(values, ((2, 0), (0, 0)), constant_values=1.0)
    padded = np.pad(padded, ((2, 0), (0, 0)))
    middle = padded.mean(0)
    n = number / (padded.var(0) / (middle * (1 - middle)))
    centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    return np.clip(centre - half, 0, mean), np.clip(centre + half, mean, 1)  # rounding may cross the edges
