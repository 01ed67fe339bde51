"""The smallest difference that a plan promises is found in 80% of simulated samples."""

import math

import numpy as np
import pytest

from internal_policy.errors import InputError
from internal_policy.tasks.paired import interval
from internal_policy.tasks.pass_at_k import ks
from internal_policy.tasks.power import Spread, assumed, estimated, needed, smallest


def shares(problems: int, mean: float = 0.5, effect: float = 0.0, seed: int = 0) -> np.ndarray:
    """Chances of two models with the correlation and the variance that are assumed, (2, problems)."""
    random = np.random.default_rng(seed)
    common, *own = (random.choice([-1, 1], problems) for _ in range(3))
    pick = random.random((2, problems)) < math.sqrt(0.5)  # each follows the common part, so their correlation is 0.5
    signs = np.where(pick, common, np.array(own))
    chances = mean + math.sqrt(0.125) * signs
    chances[1] += effect
    return chances


def test_the_assumed_spread_is_that_of_the_sentence():
    spread = assumed()
    assert (spread.between, spread.within, spread.shared) == (0.125, 0.125, 0.0625)
    assert spread.variance(1, paired=False) == 0.5  # twice 0.5 (1 - 0.5)
    assert spread.variance(4, paired=True) == 2 * (0.125 + 0.125 / 4 - 0.0625)


@pytest.mark.parametrize("samples", [2, 8])
def test_an_estimate_from_two_evaluations_finds_the_spread(samples):
    chances = shares(40_000)
    right = np.random.default_rng(1).binomial(samples, chances).tolist()
    spread, expected = estimated(right, samples), assumed()
    assert (spread.between, spread.within) == pytest.approx((expected.between, expected.within), abs=0.004)
    assert spread.shared == pytest.approx(np.cov(chances)[0, 1], abs=0.004)
    alone = estimated(right[:1], samples)
    assert alone.shared == 0.5 * alone.between


def test_one_response_per_problem_leaves_the_paired_variance_exact():
    right = np.random.default_rng(1).binomial(1, shares(5000))
    spread = estimated(right.tolist(), 1)
    assert spread.variance(1, paired=True) == pytest.approx(np.var(right[1] - right[0], ddof=1))
    assert spread.between == pytest.approx(spread.within, rel=0.1)


def test_nothing_is_estimated_where_nothing_varies():
    with pytest.raises(InputError, match="same share of correct responses, so it doesn't show how much problems vary"):
        estimated([[4, 4, 4]], 4)
    with pytest.raises(InputError, match="needs 2 or more problems"):
        estimated([[4]], 4)


def power(problems: int, samples: int, effect: float, draws: int) -> float:
    """In which share of samples the paired interval lies above 0."""
    random, found = np.random.default_rng(3), []
    for draw in range(draws):
        chances = shares(problems, 0.5 - effect / 2, effect, seed=draw)
        a, b = random.binomial(samples, np.clip(chances, 0, 1)) / samples
        changed = np.repeat((b - a)[:, None], len(ks(samples)), axis=1)
        low, _ = interval(changed, samples)
        found.append(low[0] > 0)
    return float(np.mean(found))


def test_the_smallest_difference_is_found_in_80_percent_of_samples():
    effect = smallest(assumed(), 1, 150, paired=True)
    assert power(150, 1, effect, 800) == pytest.approx(0.8, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "samples"), [(40, 1), (40, 8), (400, 1), (400, 8)])
def test_the_smallest_difference_is_found_in_80_percent_of_samples_of_every_size(problems, samples):
    effect = smallest(assumed(), samples, problems, paired=True)
    assert power(problems, samples, effect, 4000) == pytest.approx(0.8, abs=0.04)


def test_unpaired_models_need_about_as_many_problems_as_the_formula_of_two_proportions():
    assert needed(assumed(), 1, 0.1, paired=False) == pytest.approx(392.4, abs=2)  # 2 (1.96 + 0.84)^2 0.25 / 0.1^2


def test_pairing_and_more_responses_detect_less():
    spread = assumed()
    paired = [smallest(spread, k, 64, paired=True) for k in (1, 2, 8, 64)]
    unpaired = [smallest(spread, k, 64, paired=False) for k in (1, 2, 8, 64)]
    assert paired == sorted(paired, reverse=True)
    assert all(one < other for one, other in zip(paired, unpaired, strict=True))
    assert math.isnan(smallest(spread, 8, 1, paired=True))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("difference", [0.5, 0.1, 0.013])
def test_the_problems_that_a_difference_needs_are_the_fewest_that_detect_it(paired, difference):
    problems = needed(assumed(), 8, difference, paired=paired)
    assert smallest(assumed(), 8, problems, paired=paired) <= difference
    assert smallest(assumed(), 8, problems - 1, paired=paired) > difference


def test_a_sure_difference_needs_the_fewest_problems():
    assert needed(Spread(0.0, 0.0, 0.0), 8, 0.1, paired=True) == 2
