"""Problems as a data set for TRL, and the reward of a response."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from internal_policy.errors import InputError, quoted
from internal_policy.tasks.marking import is_prose, reward
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat


def dataset_of(problems: Sequence[Problem], chat: Chat) -> Dataset:
    """Problems as a data set with the columns `prompt` and `answer`.

    TRL applies the chat template to messages but not to text; it gets text if `chat` is None. Raises
    InputError for a problem without an answer, or with tools.
    """
    rows = []
    for number, problem in enumerate(problems, 1):
        if problem.answer is None:
            raise InputError(f"Problem {number} has no answer to mark responses with. Add one, or remove the problem.")
        if is_prose(problem.answer):
            raise InputError(
                f"Problem {number} has an answer in prose ({quoted(problem.answer)}), which no response can be marked "
                "by. Give a short answer, or remove the problem."
            )
        if problem.tools:
            raise InputError(f"Problem {number} has 'tools', which training doesn't support. Remove that column.")
        prompt = problem.text if chat is None else [dict(message) for message in problem.messages]
        rows.append({"prompt": prompt, "answer": problem.answer})
    return Dataset.from_list(rows)


def box_reward(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Reward function for TRL: 1.0 for a response whose last box holds the answer, else 0.0."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [reward(text, expected) for text, expected in zip(texts, answer, strict=True)]
