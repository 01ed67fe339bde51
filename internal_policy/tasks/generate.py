"""Sample responses to problems from a model."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.passes import (
    alone,
    continuing,
    device_of,
    evaluating,
    one_rotation,
    positions,
    sampled_together,
)
from internal_policy.tasks import marking
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat, Ids, encode_problem, special_ids
from internal_policy.tasks.rollouts import Rollout, decoded

COLDEST = 0.01
"""The lowest temperature above 0; below it logits overflow."""
CACHE = "past_key_values"
"""Argument of the caches that can hold a prompt for several responses."""
OnToken = Callable[[Sequence[Ids]], None]
"""Called after each token with the responses so far of those that are sampled together."""


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token ids that end a response of a model, as in `ends_of`."""
    return ends_of(model.config, model.generation_config, tokenizer)


def ends_of(
    config: PreTrainedConfig, generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """The token ids that end a response, from generation_config, the tokenizer and the configuration.

    Ids from the configuration count only if the tokenizer marks them as special, because transformers fills in
    defaults.
    """
    generation = generation_config.eos_token_id if generation_config else None
    configs = (config, config.get_text_config())
    of_config = {end for config in configs for end in _listed(getattr(config, "eos_token_id", None))}
    chosen = {*_listed(generation), *_listed(tokenizer.eos_token_id)}
    return frozenset(chosen | of_config & special_ids(tokenizer))


def pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id to pad with: the tokenizer's if the model has it, else an end-of-text id, else 0.

    A `[PAD]` that was added to the tokenizer without resizing the model is missing from the model.
    """
    size = model.config.get_text_config().vocab_size
    wanted = [tokenizer.pad_token_id, *sorted(end_ids(model, tokenizer))]
    return next((token for token in wanted if token is not None and token < size), 0)


def _listed(ids: Any) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    seed: int = 0,
    batch_size: int = 8,
    first: int = 0,
    stop: int | None = None,
    chat: Chat = MappingProxyType({}),
    on_token: OnToken | None = None,
) -> Iterator[list[Rollout]]:
    """Sample `samples` responses to each problem, `batch_size` at a time; temperature 0 takes the most likely token.

    A batch depends on its prompts, the options, `batch_size` and `seed`, but not on earlier batches. Prompts count
    problem by problem and sample by sample: sampling only those from `first` (the first of a batch) up to `stop` gives
    the same responses as a full run. Of the checkpoint's generation_config only the end-of-text ids count (`end_ids`).
    It is replaced and the model is in evaluation mode while this runs, so threads must not share the model. If a text
    may grow long enough for another rotary embedding (longrope, dynamic NTK), prompts of different lengths are sampled
    separately, because left padding would change their numbers. `on_token` may stop the work by raising.
    Raises InputError for options out of range and for prompts that are too long, before anything is sampled.
    """
    model = inside(model)
    check_sampling(samples, temperature, top_p, max_new_tokens, batch_size, seed)
    wanted = range(len(problems) * samples)[first:stop]
    numbers = sorted({n // samples for n in wanted})
    prompt_of = {number: encode_problem(tokenizer, problems[number], chat) for number in numbers}
    text = model.config.get_text_config()
    check_prompts(prompt_of, max_new_tokens, positions(text), text.vocab_size)
    ends = end_ids(model, tokenizer)
    prompts = [prompt_of[n // samples] for n in wanted]
    options = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    sampled = continued(model, tokenizer, prompts, **options, batch_size=batch_size, first=first, on_token=on_token)
    for start, responses in zip(range(0, len(wanted), batch_size), sampled, strict=True):
        yield [
            answered(tokenizer, problems[n // samples], n % samples, prompt_of[n // samples], ids, ids[-1] in ends)
            for n, ids in zip(wanted[start : start + batch_size], responses, strict=True)
        ]


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    first: int = 0,
    on_token: OnToken | None = None,
) -> Iterator[list[Ids]]:
    """A sampled response to each prompt, `batch_size` at a time, with the options of `generate`.

    `first` is the number of the first prompt among all that are sampled with this seed.
    """
    ends = end_ids(model, tokenizer)
    shaping = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    config = GenerationConfig(
        do_sample=temperature > 0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad_id(model, tokenizer),
        **shaping,
    )
    for start in range(0, len(prompts), batch_size):
        with _seeded(model, seed, first + start):
            responses = _sample(model, prompts[start : start + batch_size], config, ends, on_token)
        yield responses


def answered(
    tokenizer: PreTrainedTokenizerBase, problem: Problem, sample: int, prompt: Ids, ids: Ids, finished: bool
) -> Rollout:
    """The rollout of a response to a problem, marked."""
    written = decoded(tokenizer, ids)
    mark = marking.mark(written, problem.answer)
    return Rollout(problem.text, problem.answer, sample, prompt, ids, written, mark, finished)


def check_sampling(
    samples: int, temperature: float, top_p: float, max_new_tokens: int, batch_size: int, seed: int
) -> None:
    """Raise InputError for options that are out of range."""
    for name, value in (("samples", samples), ("max-new-tokens", max_new_tokens), ("batch-size", batch_size)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more.")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; it must be between 0 and {2**32 - 1}.")
    if temperature and not COLDEST <= temperature < math.inf:
        raise InputError(
            f"temperature is {temperature}; it must be 0 (always the most likely token), or at least {COLDEST}."
        )
    if not 0 < top_p <= 1:
        raise InputError(f"top-p is {top_p}; it must be above 0 and at most 1.")


def check_prompts(prompts: Mapping[int, Ids], max_new_tokens: int, longest: int, d_vocab: int) -> None:
    """Raise InputError for a prompt that is empty, has unknown token ids, or is too long with its response."""
    for number, prompt in prompts.items():
        if not prompt:
            raise InputError(f"Problem {number + 1} has no tokens. Add text to it, or remove it.")
        if max(prompt) >= d_vocab:
            raise InputError(
                f"Problem {number + 1} has token id {max(prompt)}, but the model's ids end at {d_vocab - 1}. "
                "Use the model's own tokenizer."
            )
        if len(prompt) + max_new_tokens > longest:
            raise InputError(
                f"Problem {number + 1} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, but the model "
                f"has only {longest} positions. Lower --max-new-tokens, or remove the problem."
            )


@contextmanager
def _seeded(model: PreTrainedModel, seed: int, first: int) -> Iterator[None]:
    """Inside, random numbers depend on `seed` and on the batch's `first` prompt; the outer generator isn't affected."""
    devices = {parameter.device for parameter in model.parameters()}
    digest = hashlib.sha256(f"{seed} {first}".encode()).digest()
    with torch.random.fork_rng([device.index for device in devices if device.type == "cuda"]):
        torch.manual_seed(int.from_bytes(digest[:8], "big"))
        yield


def _left_pad(prompts: Sequence[Ids], pad: int) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Prompts as one left-padded tensor, and its attention mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


class NoNaN(LogitsProcessor):
    """Refuse NaN logits, for which transformers would silently choose token 0."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits unchanged. Raises InputError if any is NaN."""
        if scores.isnan().any():
            raise InputError(
                f"The model's logits are NaN after {input_ids.shape[1]} tokens. Use another --dtype or --batch-size 1: "
                "in float64 some models (Gemma 2) can't read padded batches."
            )
        return scores


class Watching(StoppingCriteria):
    """Call `on_token` after each token, without ever ending a response."""

    def __init__(self, on_token: OnToken, start: int, ends: frozenset[int]) -> None:
        """Responses begin at position `start`, and end at the first of the tokens `ends`."""
        self.on_token, self.start, self.ends = on_token, start, ends

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:  # noqa: ARG002
        """Return False for every response."""
        self.on_token([_ended(row, self.ends) for row in input_ids[:, self.start :].tolist()])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _ended(ids: Sequence[int], ends: frozenset[int]) -> Ids:
    """A response, cut after its first end-of-text token."""
    return tuple(ids[: next((t for t, token in enumerate(ids, 1) if token in ends), None)])


def _sample(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    config: GenerationConfig,
    ends: frozenset[int],
    on_token: OnToken | None,
) -> list[Ids]:
    """A response to each prompt, cut after its first end-of-text token."""
    responses: dict[int, Ids] = {}
    for group in sampled_together(model.config, list(map(len, prompts)), cast(int, config.max_new_tokens)):
        with evaluating(model), alone(model):
            sampled = _sample_together(model, [prompts[n] for n in group], config, ends, on_token)
        responses |= dict(zip(group, sampled, strict=True))
    return [responses[n] for n in range(len(prompts))]


def _sample_together(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    config: GenerationConfig,
    ends: frozenset[int],
    on_token: OnToken | None,
) -> list[Ids]:
    ids, mask = (tensor.to(device_of(model)) for tensor in _left_pad(prompts, config.pad_token_id))
    sampled = _continued(
        model,
        ids,
        mask,
        config,
        **_read_once(model, prompts, ids, mask),
        logits_processor=LogitsProcessorList([NoNaN()]),
        stopping_criteria=StoppingCriteriaList([Watching(on_token, ids.shape[1], ends)] if on_token else []),
    )
    return [_ended(row, ends) for row in sampled[:, ids.shape[1] :].tolist()]


def _read_once(
    model: PreTrainedModel, prompts: Sequence[Ids], ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]
) -> dict[str, Any]:
    """The cache of all tokens but the last after reading every different prompt once; empty if all are different.

    It is empty too where transformers can't continue a larger batch from it: for families without such a cache, for
    vision-language models, which keep the positions of the last batch, and where rotation depends on a text's length.
    """
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    options, is_text = continuing(model.config), model.config.get_text_config() is model.config
    if len(rows) == len(prompts) or ids.shape[1] == 1:
        return {}
    if CACHE not in options or not is_text or one_rotation(model.config) is not None:
        return {}
    first = [prompts.index(prompt) for prompt in rows]
    cache, reading = options[CACHE], GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=0)
    _continued(model, ids[first, :-1], mask[first, :-1], reading, **{CACHE: cache})  # its token isn't used
    cache.reorder_cache(torch.tensor([rows[prompt] for prompt in prompts], device=ids.device))
    return {CACHE: cache}


def _continued(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch seq"],
    config: GenerationConfig,
    **options: Any,
) -> Int[Tensor, "batch longer"]:
    """The prompts with what `generate` of transformers adds to them."""
    checkpoints = model.generation_config
    model.generation_config = config  # otherwise `generate` fills what `config` leaves open from the checkpoint's
    try:
        return cast(Any, model).generate(inputs=ids, attention_mask=mask, generation_config=config, **options)
    finally:
        model.generation_config = checkpoints
