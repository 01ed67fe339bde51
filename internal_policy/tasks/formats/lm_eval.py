"""lm-eval: `samples_TASK_DATE.jsonl` of `--log_samples`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from internal_policy.errors import InputError, quoted
from internal_policy.tasks.formats.response import Response, list_of, object_of
from internal_policy.tasks.marks import check_names, first, marks_of
from internal_policy.tasks.problems import PROBLEM_COLUMNS, messages_of
from internal_policy.tasks.rows import Row, at

COLUMNS = ("doc", "arguments", "resps", "filtered_resps")
"""Columns that every row has."""
NO_FILTER = "none"
"""The name of the filter that changes nothing."""


def read(rows: Iterator[Row]) -> Iterator[Response]:
    """The responses to each document, once for all filters. Raises InputError.

    A metric of a filter is the mark METRIC,FILTER, as lm-eval names it, and the first is the reward. If a document has
    several responses, its metrics are marks of each, but no reward.
    """
    documents: dict[str, list[Response]] = {}
    for row in rows:
        with at(row):
            identity = json.dumps([row.values.get("doc_id"), row.values.get("resps")])
            marks = _marks(row.values)
            known = documents.get(identity) or _responses(row)
            known = [replace(response, marks={**response.marks, **marks}) for response in known]
            for response in known:
                check_names(response.marks)
            documents[identity] = known
    for responses in documents.values():
        yield from (replace(one, reward=first(one.marks) if len(responses) == 1 else None) for one in responses)


def _marks(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row that are numbers, named after its filter."""
    name = values.get("filter", NO_FILTER)
    metrics = [metric for metric in list_of(values, "metrics") if isinstance(metric, str)]
    found = marks_of({metric: values.get(metric) for metric in metrics})
    return found if name == NO_FILTER else {f"{metric},{name}": value for metric, value in found.items()}


def _responses(row: Row) -> list[Response]:
    """The responses of a row, without marks."""
    values = row.values
    asked, resps = object_of(values, "arguments"), list_of(values, "resps")
    requests = [request for request in asked.values() if isinstance(request, dict)]
    if len(requests) != len(resps) or not requests:
        raise InputError(f"'arguments' has {len(requests)} requests and 'resps' {len(resps)}; expected one for each.")
    if not all(isinstance(request.get("arg_1"), dict) for request in requests):
        raise InputError(
            "the task compares the likelihoods of given choices, so the model wrote no response. Use a task that "
            "generates text."
        )
    doc = values.get("doc")
    questions = (doc.get(name) for name in PROBLEM_COLUMNS) if isinstance(doc, dict) else ()
    problem = next((question for question in questions if isinstance(question, str) and question), None)
    return [
        Response(where=row.where, prompt=prompt, problem=problem, text=_text(text), answer=values.get("target"))
        for request, texts in zip(requests, resps, strict=True)
        for prompt in [_prompt(request.get("arg_0"))]
        for text in (texts if isinstance(texts, list) else [texts])
    ]


def _prompt(cell: Any) -> str | Sequence[Any]:
    """The text that the model read, or the messages that an API was sent, which lm-eval writes as JSON in a list."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list) and len(cell) == 1 and isinstance(cell[0], str):
        try:
            return messages_of({"arg_0": json.loads(cell[0])}, "arg_0")
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
    raise InputError(f"'arg_0' holds {quoted(cell)}; expected the prompt as text.")


def _text(cell: Any) -> str:
    if not isinstance(cell, str):
        raise InputError(f"'resps' holds {quoted(cell)}; expected texts.")
    return cell
