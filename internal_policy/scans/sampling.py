"""Sample responses part by part, so that an interrupted run continues where it stopped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from internal_policy import files
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.memory import in_halves
from internal_policy.models.policy import Readout, as_policy
from internal_policy.scans import records, store
from internal_policy.scans.shard import ALONE, Worker
from internal_policy.scans.sharing import claiming, turns
from internal_policy.tasks.generate import OnToken, check_sampling, generate
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat
from internal_policy.tasks.rollouts import Rollout, from_table, to_table


@dataclass(frozen=True)
class Sampling:
    """How to sample responses: arguments of `generate`. Raises InputError for values out of range."""

    samples: int
    """Responses per problem."""
    temperature: float
    """Sampling temperature; 0 always takes the most likely token."""
    top_p: float
    """Sample from the most likely tokens that together have this probability."""
    max_new_tokens: int
    """Length limit of a response in tokens."""
    seed: int
    """Random seed."""
    batch_size: int
    """Rollouts sampled at a time."""
    chat: Chat
    """Arguments for the chat template; None for no template."""

    def __post_init__(self) -> None:
        """Raise InputError for values out of range."""
        check_sampling(self.samples, self.temperature, self.top_p, self.max_new_tokens, self.batch_size, self.seed)


def batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    sampling: Sampling,
    first: int,
    smaller: Callable[[int], None],
    on_token: OnToken | None = None,
) -> list[Rollout]:
    """The responses to the batch that starts at prompt number `first`; half as many at a time if memory runs out.

    `smaller` is called with that number. `on_token` is that of `generate`.
    """

    def part(numbers: slice) -> list[Rollout]:
        arguments = {**vars(sampling), "batch_size": numbers.stop - numbers.start}
        span = {"first": first + numbers.start, "stop": first + numbers.stop}
        batches = generate(model, tokenizer, problems, **arguments, **span, on_token=on_token)
        return [rollout for rollouts in batches for rollout in rollouts]

    number = min(sampling.batch_size, len(problems) * sampling.samples - first)
    return [rollout for rollouts in in_halves(part, number, smaller) for rollout in rollouts]


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    sampling: Sampling,
    folder: Path,
    *,
    worker: Worker = ALONE,
    point: HookPoint = FINAL,
    readout: Readout = "raw",
    advance: Callable[[int, int], None],
    smaller: Callable[[int], None],
) -> list[Rollout] | None:
    """All responses of the policy at `point`, part by part; complete parts in `folder` are reused.

    Any number of processes may share the work in one folder. A worker that doesn't lead, or whose shard isn't all of
    it, returns None while others still have parts. `advance` is called with the numbers of rollouts and response tokens
    of each part, whichever process sampled it (0 tokens if an earlier run did), and `smaller` with how many rollouts
    are sampled at a time once memory runs out.
    """
    parts = parts_of(problems, sampling)
    rollouts: dict[int, list[Rollout]] = {}
    with as_policy(model, point, readout), claiming(folder) as claims:
        began = claims.mark.stat().st_mtime

        def answer(wanted: Sequence[int]) -> None:
            for part, mine in turns(wanted, claims, partial(is_whole, folder), waits=worker.leads):
                path, about = store.part_path(folder, "rollouts", part), records.about_part(folder, part)
                if mine:
                    sampled = batch(model, tokenizer, problems, sampling, part * sampling.batch_size, smaller)
                    store.write_table(path, to_table(sampled))
                    records.write(about, {"files": {path.name: files.fingerprint_once(path)}, "by": []})
                    claims.release(part)
                is_new, is_fresh = part not in rollouts, about.stat().st_mtime >= began
                rollouts[part] = from_table(store.read_part(path))
                if is_new:
                    length = sum(len(rollout.response_ids) for rollout in rollouts[part])
                    advance(len(rollouts[part]), length if is_fresh else 0)

        answer(worker.shard.parts(parts))
        if not worker.leads or missing(folder, parts):
            return None
        advance = lambda *_: None  # noqa: E731
        answer([part for part in parts if part not in rollouts])
    return [rollout for part in parts for rollout in rollouts[part]]


def parts_of(problems: Sequence[Problem], sampling: Sampling) -> range:
    """The numbers of the parts."""
    return range(-(-len(problems) * sampling.samples // sampling.batch_size))


def missing(folder: Path, parts: Sequence[int]) -> list[int]:
    """Those of `parts` that no process has sampled."""
    return [part for part in parts if not is_whole(folder, part)]


def is_whole(folder: Path, part: int) -> bool:
    """Whether the responses of a part were sampled and haven't changed since."""
    path, notes = store.part_path(folder, "rollouts", part), records.of_part(folder, part)
    return notes is not None and files.fingerprint_once(path) == notes["files"].get(path.name, "")
