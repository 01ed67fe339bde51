"""Problems become a data set that TRL can train on."""

import pytest

from internal_policy.errors import InputError
from internal_policy.tasks.problems import Message, Problem
from internal_policy.train.dataset import box_reward, dataset_of, format_reward, number_reward


def test_problems_with_tools_are_rejected():
    problem = Problem((Message(role="user", content="2 + 2?"),), "4", ({"name": "add"},))
    with pytest.raises(InputError, match="Problem 1 has 'tools'"):
        dataset_of([problem], {})


def test_rows_have_the_number_of_their_problem():
    problems = [Problem((Message(role="user", content=text),), "4") for text in ("2 + 2?", "1 + 3?")]
    assert dataset_of(problems, None)[1] == {"prompt": "1 + 3?", "answer": "4", "row": 1}


def test_the_reward_is_one_if_the_last_box_holds_the_answer():
    said = [[{"role": "assistant", "content": text}] for text in (r"\boxed{4}", r"\boxed{4} \boxed{5}", "4")]
    assert box_reward(said, ["4", "4", "4"]) == [1.0, 0.0, 0.0]
    assert box_reward([r"\boxed{4}"], ["4"]) == [1.0]


def test_a_box_is_not_marked_without_a_short_answer():
    assert box_reward([r"\boxed{4}"] * 2, [None, "Because air scatters blue light."]) == [None, None]


def test_the_last_number_of_a_response_is_compared_with_the_answer():
    said = ["It is 5.", "5 or 4", "1,005 apples", "1005.0", "-5", "x5", "none"]
    assert number_reward(said, ["5", "5", "1005", "1,005", "-5", "5", "5"]) == [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert number_reward(["5", "5"], [None, r"\sqrt{25}"]) == [None, None]


def test_a_format_is_right_if_a_box_is_complete():
    assert format_reward([r"\boxed{x}", r"\boxed{x", ""]) == [1.0, 0.0, 0.0]
