"""Avg@K and Pass@k."""

from itertools import combinations, pairwise
from math import comb, isnan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_policy.errors import InputError
from internal_policy.tasks.pass_at_k import (
    NOT_MARKED,
    correct,
    curves,
    interval,
    ks,
    no_box,
    outcome,
    outcome_in_words,
    pass_at_k,
)


@st.composite
def counts(draw):
    n = draw(st.integers(1, 8))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


@given(counts())
def test_pass_at_k_is_the_share_of_draws_with_a_correct_response(case):
    n, c, k = case
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@given(st.integers(1, 500), st.data())
def test_pass_at_k_equals_the_formula(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = (comb(n, k) - comb(n - c, k)) / comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-11, abs=0)


@given(st.integers(1, 500), st.data())
def test_pass_at_1_is_the_share_correct_and_pass_at_k_grows_with_k(n, data):
    c = data.draw(st.integers(0, n))
    passed = [pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert passed[0] == pytest.approx(c / n)
    assert all(0 <= one <= two + 1e-12 for one, two in pairwise(passed))
    assert passed[-1] == (c > 0)


def test_pass_at_k_matches_a_value_worked_by_hand():
    assert pass_at_k(300, 4, 4) == pytest.approx(0.0525342, abs=1e-7)  # 1 - (296 295 294 293) / (300 299 298 297)
    assert pass_at_k(10**6, 1, 10) == pytest.approx(1e-5, rel=1e-9)
    assert pass_at_k(10**6, 500, 1000) == pytest.approx(0.3936967972, abs=1e-9)
    assert str(pass_at_k(8, 0, 4)) == "0.0"


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (4, 1, 5, "Pass@5 needs 5 responses"),
        (4, 5, 1, "5 of 4"),
        (4, -1, 1, "-1 of 4"),
        (4, 1, 0, "k is 0"),
        (0, 0, 1, "Pass@1 needs 1 responses per problem, but there are 0"),
    ],
)
def test_impossible_counts_are_rejected(n, c, k, message):
    with pytest.raises(InputError, match=message):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(("samples", "found"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_k_doubles_up_to_the_number_of_samples(samples, found):
    assert ks(samples) == found


def test_a_curve_is_the_mean_over_problems_and_lies_in_its_interval():
    frame = curves([0, 1, 4, 2], 4)
    assert list(frame.columns) == ["k", "mean", "low", "high"]
    assert frame["mean"].tolist() == pytest.approx([np.mean([pass_at_k(4, c, k) for c in (0, 1, 4, 2)]) for k in ks(4)])
    assert ((frame["low"] <= frame["mean"]) & (frame["mean"] <= frame["high"])).all()
    assert (frame["low"] < frame["high"]).all()


@pytest.mark.parametrize(("solved", "low", "high"), [(64, 0.9434, 1.0), (0, 0.0, 0.0566)])
def test_with_identical_responses_the_interval_is_wilsons_over_problems(solved, low, high):
    frame = curves([8] * solved + [0] * (64 - solved), 8)
    assert frame["low"].tolist() == pytest.approx([low] * 4, abs=1e-4)  # 64 / (64 + 1.96^2), and 1 minus that
    assert frame["high"].tolist() == pytest.approx([high] * 4, abs=1e-4)


def test_one_response_per_problem_has_wilsons_interval():
    low, high = (float(end[0]) for end in interval(np.array([[1.0]] * 7 + [[0.0]] * 3)))
    assert (low, high) == pytest.approx((0.396773, 0.892211), abs=1e-5)  # 7 of 10


def test_equal_shares_give_narrower_intervals_than_all_or_nothing():
    alike, apart = np.full((64, 1), 0.5), np.array([[0.0], [1.0]] * 32)
    widths = [float(high[0] - low[0]) for low, high in (interval(alike), interval(apart))]
    assert widths[0] < widths[1] / 3


@given(st.integers(1, 8), st.data())
def test_an_interval_holds_the_mean_and_stays_between_0_and_1(samples, data):
    right = data.draw(st.lists(st.integers(0, samples), min_size=2, max_size=20))
    frame = curves(right, samples)
    assert ((frame["low"] >= 0) & (frame["low"] <= frame["mean"])).all()
    assert ((frame["mean"] <= frame["high"]) & (frame["high"] <= 1)).all()
    assert (frame["low"] < frame["high"]).all()


@pytest.mark.parametrize("problems", [8, 64])
@pytest.mark.parametrize("difficulty", [(0.5, 0.5), (20, 20), (5, 0.3), (50, 0.5)])
def test_intervals_cover_the_true_share_in_more_than_nine_of_ten_draws(problems, difficulty):
    random = np.random.default_rng(0)
    shares = random.beta(*difficulty, size=(problems, 1000))
    for samples in (1, 8):
        low, high = interval(random.binomial(samples, shares) / samples)
        true = difficulty[0] / sum(difficulty)
        assert np.mean((low <= true) & (true <= high)) >= 0.915


def test_one_problem_has_no_interval_and_zero_problems_are_rejected():
    assert all(map(isnan, curves([1], 2)["low"]))
    with pytest.raises(InputError, match="no problems"):
        curves([], 2)


def test_a_response_is_correct_if_its_reward_is_at_least_1():
    rewards = pd.Series([-1.0, 0.0, 0.5, 1.0, 2.0, None])
    assert correct(rewards).tolist() == [False, False, False, True, True, False]


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([1.0, 0.0, 1.0, None], ("correct", "66.7%")),
        ([True, False], ("correct", "50.0%")),
        ([-1.0, 0.0], ("mean reward", "-0.5")),
        ([0.25, 0.5, None], ("mean reward", "0.375")),
        ([1e308, 1e308], ("mean reward", "1e+308")),
        ([None, None], ("correct", NOT_MARKED)),
        ([], ("correct", NOT_MARKED)),
        ([0.0, 0.0, None], ("correct", "0.0%")),
    ],
)
def test_outcome_is_a_share_only_for_rewards_of_0_or_1(rewards, said):
    assert outcome(pd.Series(rewards, dtype=object), pd.Series([r"\boxed{7}"] * len(rewards))) == said


def test_zeros_are_marks_only_where_some_response_has_a_box():
    responses = pd.Series(["It is 7.", "It is 8."])
    assert outcome(pd.Series([0.0, 0.0]), responses) == ("correct", NOT_MARKED)
    assert outcome(pd.Series([0.0, 1.0]), responses) == ("correct", "50.0%")
    assert outcome(pd.Series([0.0, -1.0]), responses) == ("mean reward", "-0.5")
    responses[1] = r"It is \boxed{8}."
    assert outcome(pd.Series([0.0, 0.0]), responses) == ("correct", "0.0%")
    assert outcome(pd.Series([0.0, None]), responses) == ("correct", NOT_MARKED)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([1.0, 0.0], "50.0% correct"),
        ([1.0, None], "100.0% correct of 1 marked"),
        ([0.5, None], "mean reward 0.5 of 1 marked"),
        ([None, None], "not marked"),
    ],
)
def test_an_outcome_in_words_counts_the_marked_where_some_are_not(rewards, said):
    assert outcome_in_words(pd.Series(rewards, dtype=float), pd.Series([r"\boxed{7}"] * 2)) == said


def test_the_missing_box_is_named_where_it_is_why_nothing_was_marked():
    said = r"No response to heldout has an answer in \boxed{}, so none was marked."
    assert no_box(pd.Series([0.0, None]), pd.Series(["7", "8"]), "heldout") == said
    assert no_box(pd.Series([0.0]), pd.Series([r"\boxed{7}"])) == ""
    assert no_box(pd.Series([None, None], dtype=float), pd.Series(["7", "8"])) == ""
