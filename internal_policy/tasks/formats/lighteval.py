"""lighteval: `details_TASK_DATE.parquet` of `--save-details`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from internal_policy.errors import InputError
from internal_policy.tasks.formats.response import Response, ids_of, list_of, object_of, text_of
from internal_policy.tasks.marks import first, marks_of
from internal_policy.tasks.problems import Message, messages_of
from internal_policy.tasks.rows import Row, at

COLUMNS = ("doc", "model_response", "metric")
"""Columns that every row has."""


def read(rows: Iterator[Row]) -> Iterator[Response]:
    """The responses to each document, with their token ids if lighteval kept them. Raises InputError.

    Metrics are marks, and the first is the reward. If a document has several responses, its metrics are marks of each,
    but no reward.
    """
    for row in rows:
        with at(row):
            yield from _responses(row)


def _responses(row: Row) -> Iterator[Response]:
    doc, found = object_of(row.values, "doc"), object_of(row.values, "model_response")
    texts = list_of(found, "text")
    if not texts:
        raise InputError(
            "the task compares the likelihoods of given choices, so the model wrote no response. Use a task that "
            "generates text."
        )
    marks = marks_of(object_of(row.values, "metric"))
    query, outputs = text_of(doc.get("query"), "query"), found.get("output_tokens") or []
    prompt, prompt_ids = _prompt(found)
    for number, text in enumerate(texts):
        has_ids = prompt_ids is not None and len(outputs) == len(texts)
        yield Response(
            where=row.where,
            prompt=prompt,
            prompt_ids=prompt_ids,
            problem=query,
            text=text_of(text, "text"),
            ids=ids_of(outputs[number], "output_tokens") if has_ids else None,
            answer=_answer(doc),
            reward=first(marks) if len(texts) == 1 else None,
            marks=marks,
        )


def _prompt(found: Mapping[str, Any]) -> tuple[str | Sequence[Message], tuple[int, ...] | None]:
    """The token ids that the model read, or else its text, or the messages that an API was sent."""
    if found.get("padded_tokens_count"):
        raise InputError(
            "the token ids are padded. Run lighteval with a batch size of 1, continuous batching, or vLLM."
        )
    if ids := found.get("input_tokens"):
        return "", ids_of(ids, "input_tokens")
    given = found.get("input")
    return given if isinstance(given, str) else messages_of({"input": given}, "input"), None


def _answer(doc: Mapping[str, Any]) -> Any:
    """The gold answer, if there is one and it is a text."""
    gold, choices = doc.get("gold_index"), doc.get("choices")
    index = gold[0] if isinstance(gold, list) and len(gold) == 1 else gold
    if not isinstance(index, int) or not isinstance(choices, list) or not 0 <= index < len(choices):
        return None
    return choices[index] if isinstance(choices[index], str) else None
