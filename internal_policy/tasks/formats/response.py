"""A response as another tool wrote it: its prompt, its text or token ids, and its marks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from internal_policy.errors import InputError, quoted
from internal_policy.tasks.problems import Message


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response that was sampled elsewhere. Its text is never changed, and its token ids are used if it has them."""

    where: str
    """Its place, for error messages: `samples.jsonl, line 3`."""
    prompt: str | Sequence[Message]
    """The text as the model read it, or messages for the chat template; empty if only its token ids are known."""
    prompt_ids: tuple[int, ...] | None = None
    """Token ids of the prompt; None to encode it."""
    is_bare: bool = False
    """Whether the prompt is a text that has lost its special tokens."""
    text: str
    """The response."""
    ids: tuple[int, ...] | None = None
    """Token ids of the response; None to encode its text."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """Reasoning and tool calls, which the text doesn't contain, by their keys in a message."""
    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas of the tools that the chat template describes to the model."""
    problem: str | None = None
    """The question; None for the last user message, or all of a text."""
    answer: Any = None
    """Cell with the correct answer."""
    reward: float | None = None
    """The mark that counts; None to mark the response by the answer."""
    marks: Mapping[str, float] = field(default_factory=dict)
    """Every number that the tool gave the response, by name."""
    sample: int | None = None
    """Number of the response among those to its problem; None to count."""
    ended: bool | None = None
    """Whether the model ended the response itself; None if that isn't known."""
    engine_logprob: tuple[float, ...] | None = None
    """Log probability in nats of each token of `ids`."""


def text_of(content: Any, name: str) -> str:
    """A text, or the texts in a list of parts of a message. Raises InputError for anything else, such as an image."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, str | dict) for part in content):
        parts = [part if isinstance(part, str) else part.get("text") for part in content if not _is_reasoning(part)]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    raise InputError(f"'{name}' holds {quoted(content)}; expected text. Images and sound can't be read.")


def reasoning_of(content: Any) -> str:
    """The reasoning among the parts of a message; empty if there is none."""
    parts = content if isinstance(content, list) else []
    found = (part.get("reasoning") or "" for part in parts if _is_reasoning(part))
    return "".join(chain.from_iterable(map(str, found)))


def _is_reasoning(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "reasoning"


def ids_of(cell: Any, name: str) -> tuple[int, ...]:
    """A list of token ids. Raises InputError for anything else."""
    from internal_policy.tasks import cells

    return cells.ids({name: cell}, name)


def object_of(values: Any, name: str) -> Mapping[str, Any]:
    """An object in a cell. Raises InputError for anything else."""
    cell = values.get(name)
    if not isinstance(cell, Mapping):
        raise InputError(f"'{name}' holds {quoted(cell)}; expected an object.")
    return cell


def list_of(values: Any, name: str) -> Sequence[Any]:
    """A list in a cell. Raises InputError for anything else."""
    cell = values.get(name)
    if not isinstance(cell, list):
        raise InputError(f"'{name}' holds {quoted(cell)}; expected a list.")
    return cell
