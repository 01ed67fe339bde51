"""Draw problems that a model sometimes solves, for training and for exams."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from arithmetic import Exercise, two_steps
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from experiment.plan import DATA, Sizes
from internal_policy import files
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import Message, Problem, read_problems

DRAWING = 2026
"""Seed of the problems."""
AT_ONCE = 256
"""Responses that are sampled together."""
PART = 256
"""Problems that a process marks at a time."""


@dataclass(frozen=True)
class Purpose:
    """What problems are for."""

    name: str
    """Name of their file."""
    size: int
    """How many are kept."""
    samples: int
    """Responses of the untrained model that decide whether a problem is kept: some must be right and some wrong."""
    seed: int
    """Seed of these responses. Exams use others."""


def purposes(sizes: Sizes) -> tuple[Purpose, ...]:
    """The three sets of problems, which share none."""
    return (
        Purpose("exam", sizes.exam, 8, 11),
        Purpose("choosing", sizes.choosing, 8, 12),
        Purpose("training", sizes.pool, 4, 13),
    )


def drawn() -> Iterable[Exercise]:
    """An endless stream of problems, none with the numbers of an earlier one, whatever its wording."""
    random, seen = Random(DRAWING), set[str]()
    while True:
        exercise = two_steps(random)
        expression = exercise.response.partition(":")[0]
        if expression not in seen:
            seen.add(expression)
            yield exercise


def load(model: str) -> tuple[Any, Any]:
    """A model in float32, on the GPU if there is one, and its tokenizer."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = DATA / "models" / model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return loaded.to(device), AutoTokenizer.from_pretrained(folder)


def marks(model: Any, tokenizer: Any, problems: Sequence[Problem], samples: int, seed: int, sizes: Sizes) -> list[int]:
    """How many of `samples` responses to each problem are correct."""
    batches = generate(
        model,
        tokenizer,
        problems,
        samples=samples,
        max_new_tokens=sizes.max_new_tokens,
        seed=seed,
        batch_size=AT_ONCE,
    )
    rewards = [rollout.reward or 0.0 for batch in batches for rollout in batch]
    return [int(sum(rewards[i : i + samples])) for i in range(0, len(rewards), samples)]


def kept(part: Sequence[Exercise], model: str, purpose: Purpose, sizes: Sizes) -> list[Exercise]:
    """The problems of a part of the stream that the untrained model sometimes solves."""
    problems = [Problem((Message(role="user", content=each.problem),), each.answer) for each in part]
    counts = marks(*load(model), problems, purpose.samples, purpose.seed, sizes)
    return [each for each, count in zip(part, counts, strict=True) if 0 < count < purpose.samples]


def write(path: Path, exercises: Iterable[Exercise]) -> None:
    """Write a problem file, whole or not at all."""
    with files.replacing(path) as temporary:
        lines = (json.dumps({"problem": each.problem, "answer": each.answer}) for each in exercises)
        temporary.write_text("".join(f"{line}\n" for line in lines))


def read(folder: Path, name: str) -> list[Problem]:
    """The problems of a purpose in the folder of a model."""
    return list(read_problems(str(folder / f"{name}.jsonl")))


Mapped = Callable[[Callable[..., Any], Sequence[Sequence[Any]]], Iterable[Any]]
"""Calls a function with each list of arguments, in other processes."""


def prepare(folder: Path, model: str, sizes: Sizes, mapped: Mapped) -> None:
    """Write the three files of a model in its folder, unless they are there.

    A purpose gets parts of the stream until it has enough; the parts in between that weren't needed are lost.
    """
    if all((folder / f"{purpose.name}.jsonl").exists() for purpose in purposes(sizes)):
        return
    stream = iter(drawn())
    for purpose in purposes(sizes):
        found: list[Exercise] = []
        while len(found) < purpose.size:
            number = max(1, -(-(purpose.size - len(found)) * 7 // PART))  # about one in seven is kept
            parts = [[next(stream) for _ in range(PART)] for _ in range(number)]
            for some in mapped(kept, [(part, model, purpose, sizes) for part in parts]):
                found += some
        write(folder / f"{purpose.name}.jsonl", found[: purpose.size])
