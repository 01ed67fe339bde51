"""Batches of the OpenAI API, which `vllm run-batch` writes too: requests in one file, responses in another."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from internal_policy.errors import InputError, quoted
from internal_policy.tasks.formats.response import Response, ids_of, list_of, object_of, text_of
from internal_policy.tasks.marks import number_of
from internal_policy.tasks.problems import REASONING, Message, messages_of, tools_of
from internal_policy.tasks.rows import Row, at

TOKEN = re.compile(r"token_id:([0-9]{1,9})")
"""A token as its id, as vLLM writes it with return_tokens_as_token_ids."""


def fits(values: Mapping[str, Any]) -> bool:
    """Whether a row is a request or its response."""
    return "custom_id" in values and ("response" in values or "body" in values)


def read(rows: Iterator[Row]) -> Iterator[Response]:
    """A response for each choice, with token ids if vLLM wrote them. Requests may come before or after the responses.

    Requests that failed have none. Raises InputError for a response whose prompt isn't in any of the rows.
    """
    requests: dict[Any, Row] = {}
    answered: list[Row] = []
    for row in rows:
        with at(row):
            identity = row.values.get("custom_id")
            if not isinstance(identity, str):
                raise InputError(f"'custom_id' holds {quoted(identity)}; expected text.")
            if "response" in row.values:
                answered.append(row)
            elif identity in requests:
                raise InputError(f"the request {identity!r} is also in {requests[identity].where}. Remove one.")
            else:
                requests[identity] = row
    if not answered:
        place = next(iter(requests.values())).where
        raise InputError(f"{place}: this file has the requests of a batch. Give the file with its responses as well.")
    for row in answered:
        with at(row):
            yield from _responses(row, requests.get(row.values["custom_id"]))


def _responses(row: Row, request: Row | None) -> Iterator[Response]:
    found = row.values.get("response")
    if row.values.get("error") or not isinstance(found, Mapping) or found.get("status_code", 200) != 200:
        return
    body = object_of(found, "body")
    if not isinstance(body.get("choices"), list):
        raise InputError(f"'body' holds {quoted(body)}; expected choices, as in a completion or a chat completion.")
    asked = object_of(request.values, "body") if request else {}
    for choice in list_of(body, "choices"):
        if not isinstance(choice, dict):
            raise InputError(f"'choices' holds {quoted(choice)}; expected objects.")
        yield _response(row, body, choice, asked)


def _response(row: Row, body: Mapping[str, Any], choice: Mapping[str, Any], asked: Mapping[str, Any]) -> Response:
    message = choice.get("message") or {}
    reason, ids = choice.get("finish_reason"), _ids(choice)
    keys = (*REASONING, "tool_calls")
    return Response(
        where=row.where,
        prompt=_prompt(asked),
        prompt_ids=_prompt_ids(body, choice, asked, row.values["custom_id"]),
        text=text_of((message.get("content") if message else choice.get("text")) or "", "content"),
        ids=ids,
        parts={key: message[key] for key in keys if message.get(key)},
        tools=tools_of(asked),
        ended=None if reason is None else reason != "length" and not isinstance(choice.get("stop_reason"), str),
        engine_logprob=None if ids is None else _logprobs(choice, len(ids)),
    )


def _prompt(asked: Mapping[str, Any]) -> str | Sequence[Message]:
    """The messages or the text of a request; empty if there is no request, or if it has token ids."""
    if "messages" in asked:
        return messages_of({"messages": [_flat(turn) for turn in list_of(asked, "messages")]}, "messages")
    prompt = asked.get("prompt")
    return prompt if isinstance(prompt, str) else ""


def _prompt_ids(
    body: Mapping[str, Any], choice: Mapping[str, Any], asked: Mapping[str, Any], identity: str
) -> tuple[int, ...] | None:
    """The token ids of the prompt if vLLM returned them or the request has them. Raises InputError without a prompt."""
    for name, values in (("prompt_token_ids", body), ("prompt_token_ids", choice)):
        if values.get(name):
            return ids_of(values[name], name)
    if not isinstance(prompt := asked.get("prompt", ""), str):
        return ids_of(prompt, "prompt")
    if not prompt and "messages" not in asked:
        raise InputError(
            f"the prompt of {identity!r} isn't in this file. Give the batch's input file as well, with another "
            "--rollouts."
        )
    return None


def _flat(turn: Any) -> Any:
    """A message with its parts as one text."""
    if isinstance(turn, dict) and isinstance(turn.get("content"), list):
        return {**turn, "content": text_of(turn["content"], "content")}
    return turn


def _ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The token ids of a response, from vLLM's token_ids or from the names of its log probabilities."""
    if choice.get("token_ids"):
        return ids_of(choice["token_ids"], "token_ids")
    found = [TOKEN.fullmatch(token) if isinstance(token, str) else None for token, _ in _tokens(choice)]
    return tuple(int(match[1]) for match in found if match) if found and all(found) else None


def _logprobs(choice: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
    """The log probability of each token, if there is one for each."""
    values = [number_of(value) for _, value in _tokens(choice)]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) == count else None


def _tokens(choice: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The tokens of a response with their log probabilities, as chat completions and as completions write them."""
    found = choice.get("logprobs")
    if not isinstance(found, Mapping):
        return []
    if isinstance(content := found.get("content"), list):
        return [(one.get("token"), one.get("logprob")) for one in content if isinstance(one, Mapping)]
    tokens, values = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return []
    return [*zip(tokens, values, strict=True)]
