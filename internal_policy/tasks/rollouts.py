"""What a model wrote, as the token ids it sampled."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.models.families import inside
from internal_policy.models.passes import alone, device_of, evaluating, positions, sampled_together
from internal_policy.tasks import cells, marking, rows
from internal_policy.tasks import problems as tasks
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import REASONING, Chat, Ids, encode_problem, special_ids, split_messages, split_text

ROLLOUT_SCHEMA = pa.schema(
    {
        "problem": pa.string(),
        "answer": pa.string(),
        "sample": pa.int32(),
        "prompt_ids": pa.list_(pa.int32()),
        "response_ids": pa.list_(pa.int32()),
        "response": pa.string(),
        "reward": pa.float64(),
        "finished": pa.bool_(),
    }
)
"""A row a rollout; the columns are the fields of Rollout."""


COLDEST = 0.01
"""The lowest temperature but 0: below it logits overflow."""


@dataclass(frozen=True)
class Rollout:
    """One sampled response, with the prompt that it answers."""

    problem: str
    """What the user asked; empty where a text came without a prompt."""
    answer: str | None
    """What the response is marked by."""
    sample: int
    """Counts the responses to one problem, from 0."""
    prompt_ids: Ids
    """Token ids up to the first token of the response."""
    response_ids: Ids
    """Token ids as sampled, the end-of-text token included; never re-tokenised."""
    response: str
    """The response as text, without special tokens."""
    reward: float | None
    """Its mark; None where there is no answer."""
    finished: bool
    """Whether it ends with an end-of-text token; if not it was cut at the length limit."""

    @property
    def ids(self) -> Ids:
        """All token ids, as the model read them."""
        return self.prompt_ids + self.response_ids


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """`ids` as text, without special tokens, and without those of a larger vocabulary that stand for nothing."""
    size = len(tokenizer)
    known = [token for token in ids if token < size]
    return str(tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token ids that end a response, from generation_config, the tokenizer and the configuration.

    Those of the configuration count only if the tokenizer marks them as special, because transformers fills in
    defaults.
    """
    generation = model.generation_config.eos_token_id if model.generation_config else None
    configs = (model.config, model.config.get_text_config())
    of_config = {end for config in configs for end in _listed(getattr(config, "eos_token_id", None))}
    chosen = {*_listed(generation), *_listed(tokenizer.eos_token_id)}
    return frozenset(chosen | of_config & special_ids(tokenizer))


def pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id to pad with: the tokenizer's if the model has it, else an end of text, else 0.

    The model lacks a `[PAD]` that was added to its tokenizer without resizing the model.
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
) -> Iterator[list[Rollout]]:
    """Sample `samples` responses to each problem, `batch_size` at a time; temperature 0 takes the likeliest token.

    A batch depends on its prompts, the options, `batch_size` and `seed`, not on what was generated before: prompts are
    counted problem by problem and sample by sample, and sampling those from `first` (the first of a batch) up to `stop`
    writes what an undisturbed run would. Of the checkpoint's generation_config only the end-of-text ids count
    (`end_ids`). It is replaced and the model is in evaluation mode while this runs, so threads must not share
    the model. If a text may grow long enough for another rotary embedding (longrope, dynamic NTK), prompts of different
    lengths are sampled separately, because left padding would change their numbers.
    Raises InputError, before it generates, for options out of range and prompts too long.
    """
    model = inside(model)
    check_sampling(samples, temperature, top_p, max_new_tokens, batch_size, seed)
    asked = range(len(problems) * samples)[first:stop]
    numbers = sorted({n // samples for n in asked})
    prompt_of = {number: encode_problem(tokenizer, problems[number], chat) for number in numbers}
    text = model.config.get_text_config()
    check_prompts(prompt_of, max_new_tokens, positions(text), text.vocab_size)
    ends = end_ids(model, tokenizer)
    shaping = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    config = GenerationConfig(
        do_sample=temperature > 0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad_id(model, tokenizer),
        **shaping,
    )
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        with _seeded(model, seed, first + start):
            responses = _sample(model, [prompt_of[n // samples] for n in batch], config, ends)
        rollouts = []
        for n, ids in zip(batch, responses, strict=True):
            problem, prompt = problems[n // samples], prompt_of[n // samples]
            written, answer = _decode(tokenizer, ids), problem.answer
            mark = None if answer is None else marking.reward(written, answer)
            rollouts.append(Rollout(problem.text, answer, n % samples, prompt, ids, written, mark, ids[-1] in ends))
        yield rollouts


def check_sampling(
    samples: int, temperature: float, top_p: float, max_new_tokens: int, batch_size: int, seed: int
) -> None:
    """Raise InputError for options that are out of range."""
    for name, value in (("samples", samples), ("max-new-tokens", max_new_tokens), ("batch-size", batch_size)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more.")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; it must be from 0 to {2**32 - 1}.")
    if temperature and not COLDEST <= temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it must be 0 (the likeliest token), or {COLDEST} or more.")
    if not 0 < top_p <= 1:
        raise InputError(f"top-p is {top_p}; it must be above 0 and at most 1.")


def check_prompts(prompts: Mapping[int, Ids], max_new_tokens: int, longest: int, d_vocab: int) -> None:
    """Raise InputError, by its number, for a prompt with no or foreign tokens, or too long with its response."""
    for number, prompt in prompts.items():
        if not prompt:
            raise InputError(f"Problem {number + 1} has no tokens; give it a text, or remove it.")
        if max(prompt) >= d_vocab:
            raise InputError(
                f"Problem {number + 1} has the token id {max(prompt)}, but the model's ids end at {d_vocab - 1}; "
                "use the tokenizer that belongs to the model."
            )
        if len(prompt) + max_new_tokens > longest:
            raise InputError(
                f"Problem {number + 1} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, which is more "
                f"than the {longest} positions of the model; lower --max-new-tokens, or remove the problem."
            )


@contextmanager
def _seeded(model: PreTrainedModel, seed: int, first: int) -> Iterator[None]:
    """Inside, random numbers depend on `seed` and the number of the batch's `first` prompt; afterwards they go on."""
    devices = {parameter.device for parameter in model.parameters()}
    digest = hashlib.sha256(f"{seed} {first}".encode()).digest()
    with torch.random.fork_rng([device.index for device in devices if device.type == "cuda"]):
        torch.manual_seed(int.from_bytes(digest[:8], "big"))
        yield


def _left_pad(prompts: Sequence[Ids], pad: int) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Prompts as one tensor that ends where they end, and its attention mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


class NoNaN(LogitsProcessor):
    """Refuses logits that are no numbers, of which the likeliest would be token 0."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits as they are. Raises InputError."""
        if scores.isnan().any():
            raise InputError(
                f"The model's logits are NaN after {input_ids.shape[1]} tokens; with weights in float64 it may not "
                "read a padded batch (Gemma 2): take another --dtype, or --batch-size 1."
            )
        return scores


def _sample(
    model: PreTrainedModel, prompts: Sequence[Ids], config: GenerationConfig, ends: frozenset[int]
) -> list[Ids]:
    """A response to each prompt, cut after its first end-of-text token."""
    responses: dict[int, Ids] = {}
    for group in sampled_together(model.config, list(map(len, prompts)), cast(int, config.max_new_tokens)):
        with evaluating(model), alone(model):
            sampled = _sample_together(model, [prompts[n] for n in group], config, ends)
        responses |= dict(zip(group, sampled, strict=True))
    return [responses[n] for n in range(len(prompts))]


def _sample_together(
    model: PreTrainedModel, prompts: Sequence[Ids], config: GenerationConfig, ends: frozenset[int]
) -> list[Ids]:
    ids, mask = (tensor.to(device_of(model)) for tensor in _left_pad(prompts, config.pad_token_id))
    checkpoints = model.generation_config
    model.generation_config = config  # what `config` leaves open, `generate` would fill from the checkpoint's
    try:
        sampled = cast(Any, model).generate(
            inputs=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([NoNaN()])
        )
    finally:
        model.generation_config = checkpoints
    responses = sampled[:, ids.shape[1] :].tolist()
    return [tuple(row[: next((t for t, token in enumerate(row, 1) if token in ends), None)]) for row in responses]


def read_rollouts(
    path: Path | str, tokenizer: PreTrainedTokenizerBase, chat: Chat, *, limit: int | None = None
) -> list[Rollout]:
    """The first `limit` rollouts of a .jsonl, .json, .parquet or .csv file: token ids are kept, texts are split.

    A row holds prompt_ids and response_ids (`write_rollouts`), prompt and response, messages, or text; answer and
    reward are optional, and a reward that is missing is computed from the answer. Raises InputError.
    """
    return of_rows(tokenizer, rows.read_rows(Path(path), limit), chat)


def of_rows(tokenizer: PreTrainedTokenizerBase, given: Iterable[rows.Row], chat: Chat) -> list[Rollout]:
    """The rollouts in rows, each with the columns that `read_rollouts` takes. Raises InputError."""
    rollouts, seen = [], Counter[str]()
    for row in given:
        with rows.at(row):
            rollout = _rollout_of(tokenizer, row.values, chat)
            sample = cells.sample(row.values, "sample")
        rollouts.append(replace(rollout, sample=seen[rollout.problem] if sample is None else sample))
        seen[rollout.problem] += 1
    return rollouts


def _rollout_of(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any], chat: Chat) -> Rollout:
    problem, answer, response = "", tasks.answer_of(values.get("answer")), cells.text(values, "response")
    if values.keys() >= {"prompt_ids", "response_ids"}:
        split = cells.ids(values, "prompt_ids"), cells.ids(values, "response_ids")
        problem = cells.text(values, "problem") or ""
        written = values.get("answer")
        answer = written if isinstance(written, str) and written else answer
    elif values.keys() >= {"prompt", "response"} or "messages" in values:
        if values.keys() >= {"prompt", "response"}:
            messages = (*tasks.messages_of(values, "prompt"), _answered(values, response or ""))
        else:
            messages = tasks.messages_of(values, "messages")
        split = split_messages(tokenizer, messages, chat, tasks.tools_of(values))
        problem, response = (
            Problem(messages, None).text,
            None,
        )  # the text is decoded from the ids, because templates may trim it
    elif (whole := cells.text(values, "text")) is not None:
        split = split_text(tokenizer, whole, chat)
    else:
        raise InputError(
            f"the columns are {', '.join(values)}; expected prompt_ids and response_ids, prompt and response, "
            "messages, or text."
        )
    text = _decode(tokenizer, split[1]) if response is None else response
    reward, finished = cells.number(values, "reward"), cells.flag(values, "finished")
    if reward is None and answer is not None:
        reward = marking.reward(text, answer)
    if finished is None:
        finished = split[1][-1] in special_ids(tokenizer)
    return Rollout(problem, answer, 0, *split, text, reward, finished)


def _answered(values: Mapping[str, Any], response: str) -> Message:
    """The response of a row with the parts that its own columns hold. Raises InputError for a `system` column."""
    if not cells.is_empty(values.get("system")):
        raise InputError("'system' isn't read beside prompt and response. Give messages, the system message first.")
    more = {key: values[key] for key in (*REASONING, "tool_calls") if not cells.is_empty(values.get(key))}
    for key in REASONING:
        cells.text(more, key)
    return cast(Message, {"role": "assistant", "content": response, **more})


def to_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """Rollouts as a table of ROLLOUT_SCHEMA."""
    return pa.Table.from_pylist([vars(rollout) for rollout in rollouts], ROLLOUT_SCHEMA)


def from_table(table: pa.Table) -> list[Rollout]:
    """The rollouts of a table that has the columns of ROLLOUT_SCHEMA; others are ignored."""
    rows = table.select(ROLLOUT_SCHEMA.names).to_pylist()
    return [
        Rollout(**{**row, "prompt_ids": tuple(row["prompt_ids"]), "response_ids": tuple(row["response_ids"])})
        for row in rows
    ]


def of_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[int]], prompt: int = 1) -> list[Rollout]:
    """Rollouts of texts that are token ids already: the first `prompt` of each are what was asked, the rest came.

    Raises InputError for a text that has no token after those.
    """
    rollouts = []
    for number, ids in enumerate(texts):
        if not 1 <= prompt < len(ids):
            raise InputError(
                f"Text {number} has {len(ids)} tokens and prompt is {prompt}; that must be 1 or more, and fewer."
            )
        response = tuple(ids[prompt:])
        finished = response[-1] in special_ids(tokenizer)
        rollouts.append(
            Rollout("", None, 0, tuple(ids[:prompt]), response, _decode(tokenizer, response), None, finished)
        )
    return rollouts


def write_rollouts(path: Path | str, rollouts: Sequence[Rollout]) -> None:
    """Write a .parquet or .jsonl file that is there whole or not at all. Raises InputError for another ending."""
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise InputError(f"{path} ends in '{path.suffix}'; rollouts are written as .parquet or .jsonl.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent}; make it first.")
    with files.replacing(path) as temporary:
        if path.suffix == ".parquet":
            pq.write_table(to_table(rollouts), temporary)
        else:
            lines = (json.dumps(vars(rollout), ensure_ascii=False) for rollout in rollouts)
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
