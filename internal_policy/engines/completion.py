"""The settings that every engine samples with, and the check of the responses that it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from internal_policy.errors import InputError, counted
from internal_policy.tasks.prompts import Ids


@dataclass(frozen=True)
class Asked:
    """The settings that an engine samples with, the same for every prompt."""

    temperature: float
    """Sampling temperature; 0 always takes the most likely token."""
    top_p: float
    """Sample from the most likely tokens that together have this probability."""
    max_new_tokens: int
    """Length limit of a response in tokens."""
    ends: tuple[int, ...]
    """The token ids that end a response."""
    d_vocab: int
    """The model's token ids are below this."""


@dataclass(frozen=True)
class Completion:
    """A response that an engine sampled."""

    ids: Ids
    """Token ids as sampled, including the end-of-text token."""
    logprob: tuple[float, ...]
    """Log probability of each token in nats, as the engine reports it."""
    finished: bool
    """Whether it ends with an end-of-text token; otherwise it was cut at the length limit."""


@runtime_checkable
class Engine(Protocol):
    """Samples responses: it takes token ids and returns token ids."""

    def complete(self, prompts: Sequence[Ids], seeds: Sequence[int]) -> list[Completion]:
        """A response to each prompt, sampled with its seed. Raises InputError."""
        ...

    def close(self) -> None:
        """Release what the engine holds, such as GPU memory."""
        ...


def checked(
    name: str, ids: Sequence[int], logprob: Sequence[float | None], reason: str | None, asked: Asked
) -> Completion:
    """The response that the engine `name` returned, which ended for a `reason`: "stop" or "length".

    Raises InputError unless its token ids are in the vocabulary, each has a log probability, and the reason fits them.
    """
    known = [value for value in logprob if value is not None]
    foreign = next((token for token in ids if not 0 <= token < asked.d_vocab), None)
    if foreign is not None:
        raise InputError(
            f"{name} returned token id {foreign}, but the model's are 0 to {asked.d_vocab - 1}. Does it run another "
            "model?"
        )
    if reason not in ("stop", "length") or not ids:
        raise InputError(
            f"{name} broke off a response after {counted(len(ids), 'token')} ({reason}). To continue, run the same "
            "command again."
        )
    if not len(ids) == len(logprob) == len(known):
        raise InputError(
            f"{name} returned {counted(len(ids), 'token')} but {len(known)} log probabilities. Use an engine that "
            "returns one for each token."
        )
    if reason == "stop" and ids[-1] not in asked.ends:
        raise InputError(
            f"{name} ended a response with token id {ids[-1]}, which isn't an end-of-text token of this model "
            f"({', '.join(map(str, asked.ends)) or 'it has none'}). Does it leave out that token, or run another model?"
        )
    if any(token in asked.ends for token in ids[:-1]):
        raise InputError(f"{name} went on after an end-of-text token. Use an engine that knows stop_token_ids.")
    if reason == "length" and len(ids) != asked.max_new_tokens:
        raise InputError(
            f"{name} cut a response after {counted(len(ids), 'token')}, but --max-new-tokens is "
            f"{asked.max_new_tokens}. Lower it, or raise the length limit of the engine."
        )
    return Completion(tuple(ids), tuple(known), ids[-1] in asked.ends)
