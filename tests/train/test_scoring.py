"""Reward functions are called with the columns of the problems, and what they return is checked."""

from typing import Any

import numpy as np
import pytest
import torch

from internal_policy.errors import InputError
from internal_policy.tasks.problems import Message, Problem
from internal_policy.train.scoring import checked

ASKED = (Message(role="user", content="2 + 2?"),)
PROBLEMS = [Problem(ASKED, "4", columns={"level": 1, "row": "A", "answer": "#### 4"}), Problem(ASKED, "5")]
PASSED: dict[str, Any] = {
    "completions": ["a", "b", "c"],
    "row": [0, 1, 1],
    "answer": ["4", "5", "5"],
    "log_metric": print,
}


def returning(found, *, alone=True):
    def short(completions, **columns):
        return found

    return checked("short", short, PROBLEMS, alone=alone)(**PASSED)


def test_columns_come_from_the_file_and_the_answer_as_it_was_read():
    seen: dict[str, Any] = {}

    def short(completions, **columns):
        seen.update(columns)
        return [0.0] * len(completions)

    checked("short", short, PROBLEMS, alone=True)(**PASSED)
    assert seen == {"level": [1, None, None], "row": ["A", None, None], "answer": ["4", "5", "5"], "log_metric": print}


@pytest.mark.parametrize(
    "found",
    [[0, True, 0.5], (0.0, 1.0, 0.5), np.array([0, 1, 0.5]), torch.tensor([0, 1, 0.5]), [np.float32(0), np.True_, 0.5]],
)
def test_numbers_of_any_kind_are_rewards(found):
    assert returning(found) == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (0.5, "returned 0.5. Return a list with a number for each response"),
        (None, "returned nothing. Return a list"),
        ("abc", "returned 'abc'. Return a list"),
        ([1.0], "returned 1 number for 3 responses. Return one for each"),
        ([1.0, 2.0, float("nan")], "returned nan for response 3. Return a number"),
        ([1.0, float("inf"), 2.0], "returned inf for response 2"),
        ([1.0, 1e39, 2.0], r"returned 1e\+39 for response 2"),
        (["1", 1.0, 2.0], "returned '1' for response 1"),
        ([[1.0], 1.0, 2.0], r"returned \[1.0\] for response 1"),
        ([1.0, None, 2.0], "returned nothing for response 2. Return a number. None needs a second reward, "),
    ],
)
def test_what_is_not_a_number_for_each_response_is_refused(found, said):
    with pytest.raises(InputError, match=f"The reward short {said}"):
        returning(found)


def test_one_of_several_rewards_need_not_apply_to_every_response():
    assert returning([1.0, None, 2.0], alone=False) == [1.0, None, 2.0]
    with pytest.raises(InputError, match=r"returned nan for response 1. Return a number, or None if it doesn't apply"):
        returning([float("nan"), None, 2.0], alone=False)


def test_an_error_names_the_function_the_response_the_line_and_the_exception():
    def short(completions, **columns):
        return [1 / (completion != "b") for completion in completions]

    line = short.__code__.co_firstlineno + 1
    said = rf"The reward short failed at response 2 of 3 \(test_scoring.py, line {line}\): ZeroDivisionError: "
    with pytest.raises(InputError, match=said) as refused:
        checked("short", short, PROBLEMS, alone=True)(**PASSED)
    assert "\n" not in str(refused.value)


def test_an_error_of_the_whole_batch_names_no_response():
    def whole(completions, **columns):
        if len(completions) > 1:
            raise ValueError("two\nlines")
        return [0.0]

    with pytest.raises(InputError, match=r"The reward whole failed for 3 responses \(.*\): ValueError: two. Fix it"):
        checked("whole", whole, PROBLEMS, alone=True)(**PASSED)


def test_an_asynchronous_function_works_as_a_plain_one():
    async def short(completions, **columns):
        return [1 / (completion != "b") for completion in completions]

    function = checked("short", short, PROBLEMS, alone=True)
    assert function(**{**PASSED, "completions": ["a", "c", "d"]}) == [1.0, 1.0, 1.0]
    with pytest.raises(InputError, match="The reward short failed at response 2 of 3"):
        function(**PASSED)
