"""Problems become a data set that TRL can train on."""

import pytest

from internal_policy.errors import InputError
from internal_policy.tasks.problems import Message, Problem
from internal_policy.train.dataset import box_reward, dataset_of


def test_problems_with_tools_are_rejected():
    problem = Problem((Message(role="user", content="2 + 2?"),), "4", ({"name": "add"},))
    with pytest.raises(InputError, match="Problem 1 has 'tools'"):
        dataset_of([problem], {})


def test_a_problem_without_an_answer_is_rejected():
    with pytest.raises(InputError, match="Problem 1 has no answer"):
        dataset_of([Problem((Message(role="user", content="Why?"),), None)], {})


def test_a_problem_with_an_answer_in_prose_is_rejected():
    with pytest.raises(InputError, match=r"Problem 1 has an answer in prose \('Because air scatters"):
        dataset_of([Problem((Message(role="user", content="Why?"),), "Because air scatters blue light.")], {})


def test_the_reward_is_one_if_the_last_box_holds_the_answer():
    said = [[{"role": "assistant", "content": text}] for text in (r"\boxed{4}", r"\boxed{4} \boxed{5}", "4")]
    assert box_reward(said, ["4", "4", "4"]) == [1.0, 0.0, 0.0]
    assert box_reward([r"\boxed{4}"], ["4"]) == [1.0]
