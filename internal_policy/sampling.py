"""Sample responses to problems part by part, so that an interrupted run goes on where it stopped."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy import bundle, cache, loading, options, show

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from internal_policy.hooks import HookPoint
    from internal_policy.rollouts import Rollout
    from internal_policy.tasks import Problem

DEMO_PROBLEMS = 64
"""How many of the bundled problems are asked where nobody says which problems."""

Internal = options.Generate | options.Evaluate
"""Commands that sample from any internal policy."""
Asked = options.Scan | Internal
"""Commands that sample."""


def source(problems: str | None, limit: int | None) -> tuple[str, int | None]:
    """Which problems are asked, and how many at most; without a name the first of the bundled ones."""
    if problems is None:
        return str(bundle.DATA / "problems" / "heldout.jsonl"), DEMO_PROBLEMS if limit is None else limit
    return problems, limit


def question(asked: Asked, paths: Iterable[str | None], unused: Set[str]) -> dict[str, Any]:
    """The options that decide the numbers, with what their paths hold: the key of the cache."""
    decisive = {name: value for name, value in dataclasses.asdict(asked).items() if name not in unused}
    content = {str(path): cache.fingerprint(Path(path)) for path in paths if path}
    return {**decisive, "identity": loading.identity(asked), "content": content}


def read(asked: Asked, problems: str | None, tokenizer: "PreTrainedTokenizerBase") -> "tuple[list[Problem], list[int]]":
    """The problems of one source, and how many tokens each prompt has. All checked."""
    from internal_policy.prompts import encode_problem
    from internal_policy.rollouts import check_prompts
    from internal_policy.tasks import read_problems

    chat = loading.chat_of(asked.chat_template, asked.chat_template_kwargs)
    path, limit = source(problems, asked.limit)
    found = read_problems(path, problem_column=asked.problem_column, answer_column=asked.answer_column, limit=limit)
    prompts = [encode_problem(tokenizer, problem, chat) for problem in found]
    config = loading.load_config(asked)
    check_prompts(dict(enumerate(prompts)), asked.max_new_tokens, config.max_position_embeddings, config.vocab_size)
    return found, [len(prompt) for prompt in prompts]


def sampled(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "Sequence[Problem]",
    asked: Asked,
    first: int,
    smaller: Callable[[int], None],
) -> "list[Rollout]":
    """The responses to the batch from prompt number `first` on; half as many at a time where memory runs out."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    from internal_policy.rollouts import generate

    stop = min(first + asked.batch_size, len(problems) * asked.samples)
    at_once = asked.batch_size
    while True:
        batches = generate(
            model,
            tokenizer,
            problems,
            samples=asked.samples,
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_new_tokens=asked.max_new_tokens,
            seed=asked.seed,
            batch_size=at_once,
            first=first,
            stop=stop,
            chat=loading.chat_of(asked.chat_template, asked.chat_template_kwargs),
        )
        try:
            return [rollout for batch in batches for rollout in batch]
        except RuntimeError as error:
            if at_once == 1 or not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        at_once = (at_once + 1) // 2
        smaller(at_once)


def all_of(
    asked: Internal,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "Sequence[Problem]",
    point: "HookPoint",
    folder: Path,
    what: str = "Sampling",
) -> "list[Rollout]":
    """All responses, part by part through `folder`, where an interrupted run finds what was whole."""
    from internal_policy.policy import as_policy
    from internal_policy.rollouts import from_table, to_table

    total = len(problems) * asked.samples
    smaller = show.saying_once("Out of memory: sampling {} responses at a time.")
    rollouts: list[Rollout] = []
    with as_policy(model, point, asked.readout), show.progress(what, total) as advance:
        for part, first in enumerate(range(0, total, asked.batch_size)):
            path = cache.part_path(folder, "rollouts", part)
            if not path.exists():
                cache.write_table(path, to_table(sampled(model, tokenizer, problems, asked, first, smaller)))
            written = from_table(cache.read_part(path))
            rollouts += written
            advance(len(written), sum(len(rollout.response_ids) for rollout in written))
    return rollouts
