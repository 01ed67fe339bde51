"""Sample responses with an engine part by part, so that an interrupted run continues where it stopped."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from internal_policy import files
from internal_policy.engines.completion import Engine
from internal_policy.scans import records, store
from internal_policy.scans.sampling import Sampling, is_whole
from internal_policy.tasks.generate import answered
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import encode_problem
from internal_policy.tasks.rollouts import Rollout, from_table, to_table

TOGETHER = 512
"""About how many responses are sampled together, in several parts, because engines are fastest with many."""


def seed_of(seed: int, number: int) -> int:
    """The random seed of a response, from the run's seed and the number of its prompt; below 2^31."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big") >> 1


def sample(
    started: Callable[[], Engine],
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    sampling: Sampling,
    folder: Path,
    parts: Sequence[int],
    advance: Callable[[int, int], None],
) -> None:
    """Write the responses of `parts` to `folder`, a file each.

    `started` starts the engine, and is only called if responses are missing there. A response depends on its prompt,
    the options and its own seed. `advance` is called with the numbers of rollouts and response tokens of each part, 0
    tokens if it was there. Raises InputError.
    """
    size, total = sampling.batch_size, len(problems) * sampling.samples
    prompts = {part: range(total)[part * size : (part + 1) * size] for part in parts}
    with files.held(folder) as mark:
        missing = [part for part in parts if not is_whole(folder, part)]
        for part in parts:
            if part not in missing:
                advance(len(prompts[part]), 0)
        several = max(1, TOGETHER // size)
        for first in range(0, len(missing), several):
            together = missing[first : first + several]
            numbers = [number for part in together for number in prompts[part]]
            rollouts = iter(_sampled(started(), tokenizer, problems, sampling, numbers))
            for part in together:
                of_part = [next(rollouts) for _ in prompts[part]]
                _write(folder, part, of_part)
                advance(len(of_part), sum(len(rollout.response_ids) for rollout in of_part))
            mark.touch()


def read(folder: Path, part: int) -> list[Rollout]:
    """The responses of a part that `sample` wrote. Raises InputError if it is damaged."""
    return from_table(store.read_part(store.part_path(folder, "rollouts", part)))


def _sampled(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    sampling: Sampling,
    numbers: Sequence[int],
) -> list[Rollout]:
    """The responses to the prompts with these numbers, which count problem by problem and sample by sample."""
    of = [divmod(number, sampling.samples) for number in numbers]
    ids = {problem: encode_problem(tokenizer, problems[problem], sampling.chat) for problem in {p for p, _ in of}}
    seeds = [seed_of(sampling.seed, number) for number in numbers]
    completions = engine.complete([ids[problem] for problem, _ in of], seeds)
    return [
        replace(
            answered(tokenizer, problems[problem], sample, ids[problem], done.ids, done.finished),
            engine_logprob=done.logprob,
        )
        for (problem, sample), done in zip(of, completions, strict=True)
    ]


def _write(folder: Path, part: int, rollouts: Sequence[Rollout]) -> None:
    path = store.part_path(folder, "rollouts", part)
    store.write_table(path, to_table(rollouts))
    records.write(records.about_part(folder, part), {"files": {path.name: files.fingerprint_once(path)}, "by": []})
