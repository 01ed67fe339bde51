"""Rewards are named, loaded and checked before a model is loaded."""

import sys
from pathlib import Path

import pytest

from internal_policy.errors import InputError
from internal_policy.tasks.problems import Message, Problem
from internal_policy.train import rewards
from internal_policy.train.configuration import BuPOConfig

PROBLEMS = [
    Problem((Message(role="user", content="2 + 2?"),), "4", columns={"level": 1}),
    Problem((Message(role="user", content="2 + 3?"),), "5", columns={"level": 2, "topic": "sums"}),
]
CODE = """
import math
from math import prod

def short(completions, **columns):
    return [1.0 / len(completion) for completion in completions]

def by_level(completions, level, **columns):
    return [float(number) for number in level]

def _hidden(completions, **columns):
    return [0.0] * len(completions)
"""


def file(folder: Path, code: str = CODE, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(code)
    return str(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("box", rewards.Reward("box")),
        ("format=0.2", rewards.Reward("format", weight=0.2)),
        ("mine.py", rewards.Reward("mine.py")),
        ("a/mine.py:short", rewards.Reward("a/mine.py", "short")),
        (r"C:\a\mine.py:short=-1e-2", rewards.Reward(r"C:\a\mine.py", "short", -0.01)),
        ("a=1/mine.py", rewards.Reward("a=1/mine.py")),
        ("package.module:short=2", rewards.Reward("package.module", "short", 2.0)),
    ],
)
def test_a_reward_is_a_name_a_file_or_a_module_with_a_weight(text, expected):
    assert rewards.parse(text) == expected


@pytest.mark.parametrize("text", ["bix", "", "=1", "box=much", "module:", "mine.py:", "a b:c", "mine.py:not a name"])
def test_anything_else_is_refused(text):
    with pytest.raises(InputError, match="There is no reward"):
        rewards.parse(text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rewards": []}, "rewards is empty"),
        ({"rewards": "box"}, r"Give a list of rewards: \['box'\]"),
        ({"rewards": ["box=nan"]}, "has the weight nan"),
        ({"rewards": ["a.py:f", "b.py:f"]}, "Two rewards are called f"),
        ({"rewards": ["box=1", "format"], "reward_weights": [1.0, 1.0]}, "Remove one of them"),
    ],
)
def test_rewards_that_cannot_be_used_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        BuPOConfig(**fields)


def test_weights_become_trls_own_field():
    config = BuPOConfig(rewards=["box", "mine.py:short=0.5"])
    assert (config.rewards, config.reward_weights) == (["box", "mine.py:short"], [1.0, 0.5])
    assert BuPOConfig().reward_weights is None
    again = BuPOConfig(rewards=config.rewards, reward_weights=config.reward_weights)
    assert (again.rewards, again.reward_weights) == (config.rewards, config.reward_weights)


def test_a_file_is_run_once_and_its_functions_get_the_columns_of_the_problems(tmp_path):
    path = file(
        tmp_path,
        "from pathlib import Path\nran = Path(__file__).with_name('ran')\nran.write_text(ran.read_text() + 'x')\n"
        + CODE,
    )
    (tmp_path / "ran").write_text("")
    short, level = rewards.functions([f"{path}:short", f"{path}:by_level"], PROBLEMS)
    assert (short.__name__, level.__name__) == ("short", "by_level")
    passed = {"completions": ["ab", "abcd", "a"], "row": [1, 1, 0], "answer": ["5", "5", "4"]}
    assert short(**passed) == [0.5, 0.25, 1.0]
    assert level(**passed) == [2.0, 2.0, 1.0]
    assert (tmp_path / "ran").read_text() == "x"


def test_a_file_with_one_function_or_one_called_reward_needs_no_name(tmp_path):
    one = file(tmp_path, "from math import prod\ndef f(completions, **columns): return [1.0]", "one.py")
    two = file(tmp_path, f"{CODE}\ndef reward(completions, **columns): return [2.0]", "two.py")
    first, second = rewards.functions([one, two], PROBLEMS[:1])
    assert (first.__name__, second.__name__) == ("one", "two")
    passed = {"completions": ["a"], "row": [0], "answer": ["4"]}
    assert (first(**passed), second(**passed)) == ([1.0], [2.0])


def test_modules_are_found_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file(tmp_path, name="rewards_of_mine.py")
    (short,) = rewards.functions(["rewards_of_mine:short"], PROBLEMS)
    assert short.__name__ == "short"
    assert rewards.sources(["rewards_of_mine:short", "box"]) == {"rewards_of_mine": tmp_path / "rewards_of_mine.py"}


@pytest.mark.parametrize(
    ("code", "function", "said"),
    [
        (CODE, "", "has several functions. Choose from .*mine.py:short, .*mine.py:by_level"),
        (CODE, ":long", "has no function long"),
        ("x = 1", "", "has no function. Define one."),
        ("x = 1", ":x", "has no function x. Define one."),
        ("def f(completions): return []", "", r"Define it as `def reward\(completions, \*\*columns\)`"),
        ("def f(completions, colour, **columns): return []", "", "needs 'colour', which the problems don't have"),
        ("def f(completions, **columns) return", "", r"mine.py: SyntaxError: expected ':'.*Fix it"),
        ("\n\nimport nowhere", "", r"mine.py \(mine.py, line 3\): ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(3)", "", r"\(mine.py, line 1\): SystemExit: 3"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_in_one_sentence(code, function, said, tmp_path):
    with pytest.raises(InputError, match=said) as refused:
        rewards.functions([file(tmp_path, code) + function], PROBLEMS)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere.py", "There is no file nowhere.py"),
        ("nowhere.at_all:f", "nowhere"),
        ("nowhere:f", "no module nowhere"),
    ],
)
def test_missing_files_and_modules_are_named(text, said):
    with pytest.raises(InputError, match=said):
        rewards.sources([text])


def test_answers_are_needed_only_where_nothing_else_can_mark():
    bare = [*PROBLEMS, Problem((Message(role="user", content="Why?"),), None)]
    for named in (["box"], ["box", "format"], ["last-number"]):
        with pytest.raises(InputError, match="Problem 3 has no answer"):
            rewards.check_answers(named, bare)
    rewards.check_answers(["format"], bare)
    rewards.check_answers(["mine.py"], bare)
    rewards.check_answers(["box", "mine.py"], bare)
    with pytest.raises(InputError, match="Problem 1 has no answer"):
        rewards.check_answers(["box", "mine.py"], bare[2:])


@pytest.mark.parametrize(
    ("named", "answer", "said"),
    [
        ("box", "Because air scatters blue light.", r"an answer in prose \('Because air scatters"),
        ("last-number", r"\sqrt{2}", "an answer that isn't a number"),
    ],
)
def test_answers_that_cannot_be_marked_are_refused(named, answer, said):
    with pytest.raises(InputError, match=f"Problem 1 has {said}"):
        rewards.check_answers([named], [Problem((Message(role="user", content="Why?"),), answer)])
