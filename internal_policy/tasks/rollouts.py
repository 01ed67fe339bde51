"""Rollouts: the responses of a model with their token ids and marks, read from files and written to them."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from internal_policy import files
from internal_policy.errors import InputError, counted
from internal_policy.jupyter import notebook
from internal_policy.tasks import cells, marking, rows, sampled
from internal_policy.tasks import problems as tasks
from internal_policy.tasks.formats import table
from internal_policy.tasks.formats.response import Response
from internal_policy.tasks.marks import MARK, check_names
from internal_policy.tasks.preview import preview
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import REASONING, Chat, Ids, special_ids, split_messages, split_text

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
"""One row per rollout; the columns are the fields of Rollout."""
ENGINE_LOGPROB = pa.field("engine_logprob", pa.list_(pa.float32()))
"""A column of rollouts that an engine sampled; other tables don't have it."""
Say = Callable[[str], Any]
"""Called with a sentence."""


@dataclass(frozen=True)
class Rollout:
    """One sampled response, with the prompt that it answers."""

    problem: str
    """The user's question; empty if a text came without a prompt."""
    answer: str | None
    """The correct answer, which marks the response; None if there is none."""
    sample: int
    """Number of the response among those to the same problem, from 0."""
    prompt_ids: Ids = field(repr=False)
    """Token ids up to the first token of the response."""
    response_ids: Ids = field(repr=False)
    """Token ids as sampled, including the end-of-text token; never re-tokenised."""
    response: str
    """The response as text, without special tokens."""
    reward: float | None
    """The response's mark; None if the problem has no answer, or one in prose."""
    finished: bool
    """Whether the response ends with an end-of-text token; otherwise it was cut at the length limit."""
    engine_logprob: tuple[float, ...] | None = field(default=None, repr=False)
    """Log probability in nats of each response token, as reported by the engine that sampled it; None without one."""
    marks: Mapping[str, float | None] = field(default_factory=dict)
    """Numbers that the file gave the response, by name; None for one that others have."""

    @property
    def ids(self) -> Ids:
        """All token ids, as the model read them."""
        return self.prompt_ids + self.response_ids

    def _repr_html_(self) -> str:
        """The texts and the mark, for a notebook."""
        hidden = ("prompt_ids", "response_ids", "engine_logprob", "marks")
        shown = {name: value for name, value in vars(self).items() if name not in hidden}
        tokens = {"tokens": f"{len(self.prompt_ids)} of the prompt, {len(self.response_ids)} of the response"}
        return notebook.page(lambda: notebook.facts({**shown, **self.marks, **tokens}))


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """`ids` as text, without special tokens and ids that the tokenizer doesn't know."""
    size = len(tokenizer)
    known = [token for token in ids if token < size]
    return str(tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def read_rollouts(
    paths: Path | str | Sequence[Path | str],
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    *,
    limit: int | None = None,
    note: Say = lambda _: None,
    warn: Say = lambda _: None,
) -> list[Rollout]:
    """The first `limit` rollouts of files in any of the FORMATS, recognised by their columns.

    A row of our own has prompt_ids and response_ids (`write_rollouts`), prompt and response, messages, or text; answer
    and reward are optional, and a missing reward is computed from the answer. All of a .txt file is one text.
    `note` is called with how the first prompt was read, as in `of_rows`, and `warn` with how many empty responses were
    left out. Raises InputError.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The limit is {limit}; it must be 1 or more.")
    several = [paths] if isinstance(paths, Path | str) else [*paths]
    found = table.read([Path(path) for path in table.listed(map(str, several))])
    return _rollouts(tokenizer, found, chat, limit, note, warn)


def of_rows(
    tokenizer: PreTrainedTokenizerBase, given: Iterable[rows.Row], chat: Chat, note: Say = lambda _: None
) -> list[Rollout]:
    """The rollouts in rows, each with the columns that `read_rollouts` takes. Raises InputError.

    `note` is called once with how a prompt was read, if a row has a prompt or messages instead of token ids or a text.
    """
    return _rollouts(tokenizer, table.of_rows(given), chat, None, note, lambda _: None)


def _rollouts(
    tokenizer: PreTrainedTokenizerBase,
    given: Iterator[table.Found],
    chat: Chat,
    limit: int | None,
    note: Say,
    warn: Say,
) -> list[Rollout]:
    empty, noted = Counter[str](), False

    def filled() -> Iterator[table.Found]:
        for one in given:
            if isinstance(one, Response) and not one.ids and not one.text and not one.parts:
                empty["all"] += 1
            else:
                yield one

    rollouts, seen = [], Counter[str]()
    end = cache(lambda: sampled.end_of_turn(tokenizer, chat))
    for one in islice(filled(), limit if limit is None else min(limit, sys.maxsize)):
        with rows.at(one):
            if isinstance(one, Response):
                rollout, sample = _of_response(tokenizer, one, chat, end), one.sample
            else:
                rollout, sample = _of_row(tokenizer, one.values, chat), cells.sample(one.values, "sample")
        if not noted and _shows_prompt(one):
            as_is = isinstance(one, Response) and isinstance(one.prompt, str) and not one.is_bare
            note(preview(tokenizer, rollout.prompt_ids, None if as_is else chat))
            noted = True
        rollouts.append(replace(rollout, sample=seen[rollout.problem] if sample is None else sample))
        seen[rollout.problem] += 1
    if empty:
        warn(f"Left out {counted(empty['all'], 'empty response')}.")
        if not rollouts:
            raise InputError("Every response is empty. Choose another file.")
    return _alike(rollouts)


def _alike(rollouts: list[Rollout]) -> list[Rollout]:
    """The rollouts with the same columns, as every part of a table has them: engine_logprob only if all have it."""
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.marks)
    check_names(names)
    kept = all(rollout.engine_logprob is not None for rollout in rollouts)
    return [
        replace(
            rollout,
            engine_logprob=rollout.engine_logprob if kept else None,
            marks={name: rollout.marks.get(name) for name in names},
        )
        for rollout in rollouts
    ]


def check_ids(rollouts: Iterable[Rollout], longest: int, d_vocab: int) -> None:
    """Raise InputError for the first rollout without a prompt or response, or too long or foreign for the model.

    `longest` is how many tokens the model reads, and its token ids are below `d_vocab`.
    """
    for number, rollout in enumerate(rollouts):
        if not rollout.prompt_ids or not rollout.response_ids:
            raise InputError(f"Rollout {number} has no {'response' if rollout.prompt_ids else 'prompt'} tokens.")
        if outside := [token for token in rollout.ids if not 0 <= token < d_vocab]:
            raise InputError(
                f"Rollout {number} has token id {outside[0]}, but the model's are 0 to {d_vocab - 1}. Was it "
                "written by another model?"
            )
        if len(rollout.ids) > longest:
            raise InputError(
                f"Rollout {number} has {len(rollout.ids)} tokens, but the model reads at most {longest}. Shorten or "
                "remove it."
            )


def _of_response(tokenizer: PreTrainedTokenizerBase, one: Response, chat: Chat, end: Callable[[], str]) -> Rollout:
    """The rollout of a response from another tool; `end` gives the chat template's end of turn."""
    answer, prompt = tasks.answer_of(one.answer), one.prompt
    if one.is_bare and chat is not None:
        prompt = sampled.restored(tokenizer, str(prompt), chat)
    problem = one.problem or (prompt if isinstance(prompt, str) else Problem(tuple(prompt), None).text)
    if one.ids is None and one.parts and not isinstance(prompt, str):
        message = cast(Message, {**one.parts, "role": "assistant", "content": one.text})
        split = split_messages(tokenizer, (*prompt, message), chat, one.tools)
    else:
        text = None if one.prompt_ids else sampled.prompt_text(tokenizer, prompt, chat, one.tools)
        is_rendered = chat is not None and not isinstance(prompt, str)
        prompt_ids = one.prompt_ids or sampled.encoded_prompt(tokenizer, text or "", is_rendered=is_rendered)
        written = one.text if one.ended is False or isinstance(prompt, str) else sampled.ended(one.text, end())
        split = prompt_ids, one.ids or sampled.encoded_response(tokenizer, prompt_ids, text, written)
    response = decoded(tokenizer, split[1])
    reward = marking.mark(response, answer) if one.reward is None else one.reward
    finished = split[1][-1] in special_ids(tokenizer)
    return Rollout(problem, answer, 0, *split, response, reward, finished, one.engine_logprob, one.marks)


def _of_row(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any], chat: Chat) -> Rollout:
    engine_logprob = None
    problem, answer, response = "", tasks.answer_of(values.get("answer")), cells.text(values, "response")
    if values.keys() >= {"prompt_ids", "response_ids"}:
        split = cells.ids(values, "prompt_ids"), cells.ids(values, "response_ids")
        problem = cells.text(values, "problem") or ""
        engine_logprob = cells.numbers(values, ENGINE_LOGPROB.name, len(split[1]))
        written = values.get("answer")
        answer = written if isinstance(written, str) and written else answer
    elif _has_prompt(values):
        if values.keys() >= {"prompt", "response"}:
            messages = (*tasks.messages_of(values, "prompt"), _response_message(values, response or ""))
        else:
            messages = tasks.messages_of(values, "messages")
        split = split_messages(tokenizer, messages, chat, tasks.tools_of(values))
        problem = Problem(messages, None).text
        response = None  # decoded from the ids below, because templates may trim it
    elif (whole := cells.text(values, "text")) is not None:
        split = split_text(tokenizer, whole, chat)
    else:
        raise table.unknown(values)
    text = decoded(tokenizer, split[1]) if response is None else response
    reward, finished = cells.number(values, "reward"), cells.flag(values, "finished")
    if reward is None:
        reward = marking.mark(text, answer)
    if finished is None:
        finished = split[1][-1] in special_ids(tokenizer)
    marks = {name: cells.number(values, name) for name in values if name.startswith(MARK)}
    named = {name.removeprefix(MARK): value for name, value in marks.items()}
    return Rollout(problem, answer, 0, *split, text, reward, finished, engine_logprob, named)


def _shows_prompt(one: table.Found) -> bool:
    """Whether a prompt had to be encoded, which is worth a look."""
    return one.prompt_ids is None if isinstance(one, Response) else _has_prompt(one.values)


def _has_prompt(values: Mapping[str, Any]) -> bool:
    """Whether a row has a prompt and a response as text, or messages."""
    if values.keys() >= {"prompt_ids", "response_ids"}:
        return False
    return values.keys() >= {"prompt", "response"} or "messages" in values


def _response_message(values: Mapping[str, Any], response: str) -> Message:
    """The response of a row, with its parts from other columns. Raises InputError for a `system` column."""
    if not cells.is_empty(values.get("system")):
        raise InputError(
            "'system' can't be combined with prompt and response. Use messages, with the system message first."
        )
    more = {key: values[key] for key in (*REASONING, "tool_calls") if not cells.is_empty(values.get(key))}
    for key in REASONING:
        cells.text(more, key)
    return cast(Message, {"role": "assistant", "content": response, **more})


def to_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """Rollouts as a table of ROLLOUT_SCHEMA, ENGINE_LOGPROB if any of them has it, and a column for each mark."""
    has_logprob = any(rollout.engine_logprob is not None for rollout in rollouts)
    schema = ROLLOUT_SCHEMA.append(ENGINE_LOGPROB) if has_logprob else ROLLOUT_SCHEMA
    for name in dict.fromkeys(name for rollout in rollouts for name in rollout.marks):
        schema = schema.append(pa.field(MARK + name, pa.float64()))
    return pa.Table.from_pylist([_columns(rollout) for rollout in rollouts], schema)


def _columns(rollout: Rollout) -> dict[str, Any]:
    """The columns of a rollout, each mark in its own."""
    values = {**vars(rollout)}
    marks = values.pop("marks")
    return {**values, **{MARK + name: value for name, value in marks.items()}}


def from_table(table: pa.Table) -> list[Rollout]:
    """The rollouts of a table that has the columns of ROLLOUT_SCHEMA, and maybe ENGINE_LOGPROB and marks.

    Other columns are ignored.
    """
    names = [name for name in (*ROLLOUT_SCHEMA.names, ENGINE_LOGPROB.name) if name in table.column_names]
    marks = [name for name in table.column_names if name.startswith(MARK)]

    def read(cell: Any) -> Any:
        return tuple(cell) if isinstance(cell, list) else cell

    return [
        Rollout(
            **{name: read(row[name]) for name in names}, marks={name.removeprefix(MARK): row[name] for name in marks}
        )
        for row in table.select([*names, *marks]).to_pylist()
    ]


def of_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[int]], prompt: int = 1) -> list[Rollout]:
    """Rollouts from token ids: the first `prompt` ids of each text are the prompt, the rest are the response.

    Raises InputError for a text without a response.
    """
    rollouts = []
    for number, ids in enumerate(texts):
        if not 1 <= prompt < len(ids):
            raise InputError(
                f"prompt is {prompt} and text {number} has {counted(len(ids), 'token')}. Each side needs at least one."
            )
        response = tuple(ids[prompt:])
        finished = response[-1] in special_ids(tokenizer)
        rollouts.append(
            Rollout("", None, 0, tuple(ids[:prompt]), response, decoded(tokenizer, response), None, finished)
        )
    return rollouts


def write_rollouts(path: Path | str, rollouts: Sequence[Rollout]) -> None:
    """Write a .parquet or .jsonl file, whole or not at all. Raises InputError for any other ending."""
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise InputError(f"Can't write rollouts to {path}. Use a name that ends in .parquet or .jsonl.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent}. Create it first.")
    with files.replacing(path) as temporary:
        if path.suffix == ".parquet":
            pq.write_table(to_table(rollouts), temporary)
        else:
            written = ({k: v for k, v in _columns(one).items() if v or k != ENGINE_LOGPROB.name} for one in rollouts)
            lines = (json.dumps(row, ensure_ascii=False) for row in written)
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
