"""Keep a forward pass independent of compilation, training mode, batch mates and earlier passes."""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary embedding that read `factor` times as many positions as the model was trained on; others read
`max_position_embeddings`, which already counts that."""

_lock = Lock()
_stances: list[Any] = []
"""One for each `eager` that is open, in any thread; the first knows what the stance was before them all."""
_alone_here: ContextVar[frozenset[object]] = ContextVar("_alone_here", default=frozenset())


@contextmanager
def eager() -> Iterator[None]:
    """Inside, compiled modules run uncompiled, in every thread: compiled code may leave hooks out."""
    with _lock:
        _stances.append(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            stance = _stances.pop()
            if not _stances:
                stance.__exit__(None, None, None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in evaluation mode; after, as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, before in training.items():
            module.training = before


def device_of(model: nn.Module) -> torch.device:
    """Where the token ids of a pass go; what accelerate offloads has a device of its own, and takes them there."""
    return next((weight.device for weight in model.parameters() if not weight.is_meta), torch.device("cpu"))


def positions(config: PreTrainedConfig) -> int:
    """How many positions a model of this configuration reads: its longest text, in tokens."""
    trained = config.get_text_config().max_position_embeddings
    each = []
    for rope in _ropes(config):
        stretch = rope.get("factor") if rope.get("rope_type") in STRETCHED else None
        each.append(int((rope.get("original_max_position_embeddings") or trained) * stretch) if stretch else trained)
    return max(trained, min(each))


def one_rotation(config: PreTrainedConfig) -> int | None:
    """Texts of up to so many tokens are all rotated alike; None where the rotation never depends on the length.

    Longer texts are rotated by other frequencies (longrope), or by those of their very length (dynamic NTK).
    """
    trained = config.get_text_config().max_position_embeddings
    ends = [trained for rope in _ropes(config) if "dynamic" in str(rope.get("rope_type"))]
    ends += [rope["original_max_position_embeddings"] for rope in _ropes(config) if rope.get("rope_type") == "longrope"]
    return min(ends, default=None)


def remembers(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration rotates a text by what it read before: dynamic NTK."""
    return any("dynamic" in str(rope.get("rope_type")) for rope in _ropes(config))


def sampled_together(config: PreTrainedConfig, lengths: Sequence[int], more: int) -> list[list[int]]:
    """Groups of prompts, by number, that can be sampled in one left-padded batch as each would be alone.

    That is all of them, unless a text of `lengths` tokens and `more` might be long enough for another rotation: then
    prompts of the same length, which reach it at the same token.
    """
    end = one_rotation(config)
    if end is None or max(lengths) + more <= end:
        return [list(range(len(lengths)))]
    return [[n for n, length in enumerate(lengths) if length == same] for same in dict.fromkeys(lengths)]


def _ropes(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """The parameters of each rotary embedding: one, or one a kind of layer; empty where positions are learned."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [each for each in rope.values() if isinstance(each, Mapping)] or [rope]


@contextmanager
def alone(model: nn.Module, lengths: Sequence[int] | None = None) -> Iterator[None]:
    """Inside, this thread's passes rotate each text of a batch as a new model would that reads it alone, at once.

    transformers takes the frequencies from the longest position in a call, and remembers longer texts (dynamic NTK).
    `lengths` are those of the whole texts, one a row, of which a pass may read a piece; None for texts that are equally
    long, and end where the pass does. The model's own rotary embeddings stay as they are used: copies compute.
    """
    me = object()
    # what picks the frequencies, `dynamic_rope_update` of transformers, needs this attribute
    rotary = [module for module in model.modules() if "rope_type" in vars(module)]
    kinds = {module: str(vars(module)["rope_type"]) for module in rotary}
    with ExitStack() as stack:
        for module, kind in kinds.items():
            if "dynamic" in kind or "longrope" in kind:
                own = copy.deepcopy(module, {id(module.config): module.config})
                hook = partial(_rotate, me, own, lengths)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        before = _alone_here.set(_alone_here.get() | {me})
        try:
            yield
        finally:
            _alone_here.reset(before)


def _rotate(
    me: object,
    own: nn.Module,
    lengths: Sequence[int] | None,
    _: nn.Module,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
    output: Any,
) -> Any:
    """What `own` computes for the same call, with the frequencies of each text's own length."""
    if me not in _alone_here.get():
        return output
    forward = type(own).forward  # a library that reads the model may have changed that of the copy
    call = inspect.signature(forward).bind(own, *args, **options).arguments
    at: Tensor = call["position_ids"]
    found = {}
    for length in {int(at.max()) + 1} if lengths is None else set(lengths):
        forward(**{**call, "position_ids": at[:, :1] * 0})  # one token: forgets longer texts
        last = at.new_full((len(at), 1), length - 1)  # the largest decides, so it comes along; beyond it is padding
        rotation = forward(**{**call, "position_ids": torch.cat([at.clamp(max=length - 1), last], 1)})
        found[length] = [each[:, :-1] for each in (rotation if isinstance(rotation, tuple) else (rotation,))]
    if len(found) == 1:
        rows = next(iter(found.values()))
    else:
        assert lengths is not None
        each = [[part[n % len(part)] for part in found[length]] for n, length in enumerate(lengths)]
        rows = [torch.stack(parts) for parts in zip(*each, strict=True)]
    return tuple(rows) if isinstance(output, tuple) else rows[0]
