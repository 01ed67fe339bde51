"""Keep a forward pass independent of compilation, training mode, its batch and earlier passes."""

import copy
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig

from internal_policy.errors import InputError
from internal_policy.models.families import family_of

STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary embedding that extend `max_position_embeddings` by `factor`; in others it is the extended length."""

_lock = Lock()
_stances: list[Any] = []
"""One for each open `eager` in any thread; the first restores the stance from before them all."""
_alone_here: ContextVar[frozenset[object]] = ContextVar("_alone_here", default=frozenset())


@contextmanager
def eager() -> Iterator[None]:
    """Inside, compiled modules run uncompiled in every thread, because compiled code may skip hooks."""
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
    """Inside, `model` is in evaluation mode; on leaving, its modes are restored."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, before in training.items():
            module.training = before


def device_of(model: nn.Module) -> torch.device:
    """The device for the token ids of a pass; modules offloaded by accelerate move them to their own device."""
    return next((weight.device for weight in model.parameters() if not weight.is_meta), torch.device("cpu"))


def positions(config: PreTrainedConfig) -> int:
    """The longest text that a model with this configuration can read, in tokens; Mamba has no limit."""
    trained = getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    each = []
    for rope in _ropes(config):
        stretch = rope.get("factor") if rope.get("rope_type") in STRETCHED else None
        each.append(int((rope.get("original_max_position_embeddings") or trained) * stretch) if stretch else trained)
    return max(trained, min(each))


def one_rotation(config: PreTrainedConfig) -> int | None:
    """Length in tokens up to which all texts are rotated alike; None if rotation never depends on length.

    Longer texts use other frequencies (longrope), or those of their own length (dynamic NTK).
    """
    trained = config.get_text_config().max_position_embeddings
    ends = [trained for rope in _ropes(config) if "dynamic" in str(rope.get("rope_type"))]
    ends += [rope["original_max_position_embeddings"] for rope in _ropes(config) if rope.get("rope_type") == "longrope"]
    return min(ends, default=None)


def continuing(config: PreTrainedConfig) -> dict[str, Any]:
    """Arguments with which passes over the pieces of a text continue each other; empty if only whole texts are read."""
    name = family_of(config).cache
    return {name: DynamicCache(config=config), "use_cache": True} if name else {}


def remembers(config: PreTrainedConfig) -> bool:
    """Whether the rotation of a text depends on texts read before, as in dynamic NTK."""
    return any("dynamic" in str(rope.get("rope_type")) for rope in _ropes(config))


def sampled_together(config: PreTrainedConfig, lengths: Sequence[int], more: int) -> list[list[int]]:
    """Groups of prompts, by number, that sample the same in one left-padded batch as they would alone.

    That is all of them, unless padding changes what the family computes (RWKV), or a prompt of `lengths` plus `more`
    tokens may reach another rotation, or another temperature of Llama 4's attention, for which transformers counts the
    padding too. Then prompts are grouped by length, because those reach it at the same token.
    """
    family, text = family_of(config), config.get_text_config()
    if family.together == "never":
        return [[n] for n in range(len(lengths))]
    tuned = getattr(text, "attn_temperature_tuning", False)  # every floor_scale tokens
    ends = [one_rotation(config), text.floor_scale - 1 if tuned else None]
    if family.together == "all" and all(end is None or max(lengths) + more <= end for end in ends):
        return [list(range(len(lengths)))]
    return [[n for n, length in enumerate(lengths) if length == same] for same in dict.fromkeys(lengths)]


def check_padding(config: PreTrainedConfig) -> None:
    """Raise InputError for a family that can't be trained, because padding changes what it computes."""
    if family_of(config).together != "all":
        raise InputError(
            f"{config.model_type} can't be trained: training pads prompts to one length, and transformers lets padding "
            "change what this family computes. Choose a model of another family."
        )


def _ropes(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """The parameters of each rotary embedding, just one or one per kind of layer; empty for learned positions."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [each for each in rope.values() if isinstance(each, Mapping)] or [rope]


@contextmanager
def alone(model: nn.Module, lengths: Sequence[int] | None = None) -> Iterator[None]:
    """Inside, this thread's passes rotate each text of a batch as if a fresh model read it alone in one pass.

    transformers chooses the frequencies by the longest position in a call, and remembers longer texts (dynamic NTK).
    `lengths` are those of the whole texts, one per row, because a pass may read only a piece of them; None if all texts
    end where the pass does. Copies of the rotary embeddings compute, so the model's own are left unchanged.
    """
    me = object()
    # the attribute that `dynamic_rope_update` of transformers reads to choose frequencies
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
    """The output of `own` for the same call, with frequencies for the length of each text."""
    if me not in _alone_here.get():
        return output
    forward = type(own).forward  # a library that wraps the model may have replaced the copy's method
    call = inspect.signature(forward).bind(own, *args, **options).arguments
    at: Tensor = call["position_ids"]
    by_length = {}
    for length in {int(at.max()) + 1} if lengths is None else set(lengths):
        forward(**{**call, "position_ids": at[..., :1] * 0})  # reading a single token makes it forget longer texts
        last = at.new_full((*at.shape[:-1], 1), length - 1)  # the largest decides; those beyond it are padding
        rotation = forward(**{**call, "position_ids": torch.cat([at.clamp(max=length - 1), last], -1)})
        by_length[length] = [each[:, :-1] for each in (rotation if isinstance(rotation, tuple) else (rotation,))]
    if len(by_length) == 1:
        rows = next(iter(by_length.values()))
    else:
        assert lengths is not None
        each = [[part[n % len(part)] for part in by_length[length]] for n, length in enumerate(lengths)]
        rows = [torch.stack(parts) for parts in zip(*each, strict=True)]
    return tuple(rows) if isinstance(output, tuple) else rows[0]
