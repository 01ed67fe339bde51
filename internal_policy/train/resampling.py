"""Sample more prompts until the responses to every prompt of a batch have different rewards, or a number of times."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, gcd
from typing import Any, cast

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from internal_policy.errors import InputError
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.spread import without_spread


@dataclass(frozen=True)
class Response:
    """A sampled response, as TRL's trainer keeps it."""

    problem: Mapping[str, Any]
    """The row of the data set."""
    prompt_ids: list[int]
    """Token ids of the prompt."""
    completion_ids: list[int]
    """Token ids of the response."""
    completion: Any
    """Text or message of the response."""
    logprobs: list[float] | None
    """Log-probabilities (nats) by the engine that sampled it, if there is one."""


@dataclass(frozen=True)
class Batch:
    """Responses of all processes; those to one prompt follow each other."""

    responses: list[Response]
    """The responses."""
    rewards: Tensor
    """Their rewards (responses, functions)."""

    def replaced(self, drawn: "Batch", group: int) -> "Batch":
        """The batch with its groups without spread replaced, in order, by the groups of `drawn` with spread."""
        responses, rewards = list(self.responses), self.rewards.clone()
        places = without_spread(self.rewards, group).nonzero().flatten().tolist()
        found = (~without_spread(drawn.rewards, group)).nonzero().flatten().tolist()
        for to, source in zip(places, found, strict=False):
            into, out = slice(to * group, (to + 1) * group), slice(source * group, (source + 1) * group)
            responses[into], rewards[into] = drawn.responses[out], drawn.rewards[out]
        return Batch(responses, rewards)


def order(number: int, seed: int, step: int) -> Iterator[int]:
    """The indices below `number` in a random order of their own for each step, also of a resumed run."""
    return iter(np.random.default_rng((seed, step)).permutation(number).tolist())


class ResamplingTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, with up to `resample` more draws of prompts for those whose responses have the same reward.

    This is DAPO's dynamic sampling (arXiv 2503.14476) with a limit. Each draw has as many prompts as still lack spread,
    at random from those of the data set that haven't been drawn in this step. Rewards, lengths and `entropy` are logged
    for the batch as first sampled, `groups_without_spread` too; `resampled` is the number of prompts in the draws after
    it, and `draws` the number of draws. Raises InputError for data that can't be drawn from.
    """

    args: BuPOConfig
    model: Any
    by_function: Tensor
    """Rewards of the last batch, of all processes, by each function."""
    first: Mapping[str, Any]
    """The batch as first sampled."""

    def __init__(self, *args: Any, **more: Any) -> None:
        """Take the arguments of GRPOTrainer."""
        self.replayed: tuple[Any, Tensor] | None = None
        super().__init__(*args, **more)
        if self.args.resample and not isinstance(self.train_dataset, Dataset):
            raise InputError("resample needs a data set with a length. Remove it, or load the data set whole.")
        if self.args.resample and (self._is_vlm or self.tools or self.environment_factories or self.rollout_func):
            raise InputError("resample can't draw prompts for images, tools or a rollout function. Remove it.")

    def _generate(self, prompts: list[Any]) -> Any:
        """Sample responses, or return those that were kept."""
        if self.replayed is not None:
            return self.replayed[0]
        self.generated = super()._generate(prompts)
        return self.generated

    def _calculate_rewards(self, *args: Any, **more: Any) -> Tensor:
        """The rewards of all processes by each function, computed once for a response."""
        self.by_function = self.replayed[1] if self.replayed else super()._calculate_rewards(*args, **more)
        return self.by_function

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Sample a batch, and more prompts for those without spread."""
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        self.first, logged = batch, self._metrics["train"]
        same = without_spread(self.by_function, cast(int, self.num_generations))
        logged["groups_without_spread"].append(same.float().mean().item())
        if not self.args.resample:
            return batch
        self._metrics["train"] = defaultdict(list)
        try:
            drawn, numbers = self._drawn(self._whole(inputs), list(inputs[0]))
            if numbers:
                batch = self._again(drawn, len(inputs))
        finally:
            self._metrics["train"] = logged
        logged["num_tokens"] = [self.state.num_input_tokens_seen]
        logged["draws"].append(float(len(numbers)))
        logged["resampled"].append(float(sum(numbers)))
        return batch

    def _drawn(self, batch: Batch, columns: list[str]) -> tuple[Batch, list[int]]:
        """The batch after all draws, and the number of prompts in each of them."""
        group, processes, rows = cast(int, self.num_generations), self.accelerator.num_processes, self.train_dataset
        together = processes // gcd(processes, group)  # numbers of prompts that split evenly among processes
        known = {str(response.problem["prompt"]) for response in batch.responses}
        each = (cast(Any, rows)[index] for index in order(len(cast(Any, rows)), self.args.seed, self.state.global_step))
        fresh = ({name: row[name] for name in columns} for row in each if str(row["prompt"]) not in known)
        numbers: list[int] = []
        for _ in range(self.args.resample):
            lacking = int(without_spread(batch.rewards, group).sum())
            problems = list(islice(fresh, ceil(lacking / together) * together))
            problems = problems[: len(problems) // together * together]
            if not problems:
                break
            numbers.append(len(problems))
            every = [problem for problem in problems for _ in range(group)]
            share = len(every) // processes
            own = every[self.accelerator.process_index * share :][:share]
            prompts = [problem["prompt"] for problem in own]
            _, ids, _, completions, *_ = self._generate(prompts)
            self._calculate_rewards(own, prompts, completions, ids)
            batch = batch.replaced(self._whole(own), group)
        return batch, numbers

    def _whole(self, problems: Sequence[Mapping[str, Any]]) -> Batch:
        """The responses that were just sampled to these problems, with those of the other processes."""
        prompt_ids, ids, _, completions, logprobs, *_ = self.generated
        rows = zip(problems, prompt_ids, ids, completions, logprobs or [None] * len(ids), strict=True)
        return Batch(gather_object([Response(*row) for row in rows]), self.by_function)

    def _again(self, batch: Batch, share: int) -> dict[str, Any]:
        """TRL's tensors of this process's share of a batch that was sampled before."""
        own = batch.responses[self.accelerator.process_index * share :][:share]
        logprobs = None if own[0].logprobs is None else [response.logprobs for response in own]
        ids = [response.prompt_ids for response in own], [response.completion_ids for response in own]
        completions = [response.completion for response in own]
        self.replayed = (*ids, None, completions, logprobs, {}, None, []), batch.rewards
        try:
            return super()._generate_and_score_completions([dict(response.problem) for response in own])
        finally:
            self.replayed = None
