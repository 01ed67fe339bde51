"""Read hidden states inside an nnsight trace, or let NDIF measure them where it holds the model.

Importing this imports nnsight, which changes the whole process: every object gets a method `save` (but not where
nnsight's own configuration has `APP: {PYMOUNT: false}`), and `Tensor.backward` may open a block. A model that nnsight
has wrapped must not be used by several threads at a time.

Scans on NDIF were tested without NDIF: what is sent ran in another process that had torch, transformers and nnsight
but not this package, with the weights loaded and, as in NDIF's sandbox, without. NDIF's queue, its keys and models
spread over several GPUs are untested.
"""

import ast
import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import nnsight
import torch
from httpx import HTTPError
from nnsight import CONFIG, Envoy, TransformersModel
from nnsight.intervention.backends.remote import RemoteError
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.schema.config import ApiConfig
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from websocket import WebSocketException

from internal_policy.errors import InputError
from internal_policy.measure import kernel, matmul, metrics, transform
from internal_policy.measure.sites import WITH_FINAL
from internal_policy.models.families import Side, family_of, final_norm, multiplier, unembedding
from internal_policy.models.hooks import FINAL, HookPoint, Visit, locate
from internal_policy.models.passes import one_rotation, remembers
from internal_policy.models.policy import READOUTS
from internal_policy.readers import remote as remotely
from internal_policy.scans.blocks import TOGETHER, padded
from internal_policy.scans.reader import Measured, Reader
from internal_policy.tasks.rollouts import Rollout

STATE_BYTES = 2**31
"""Most hidden states that a server holds at once; longer texts are measured piece by piece."""
SENT = (matmul, transform, metrics, kernel, remotely)
"""Modules that are sent to a server as text, each after those that it needs."""

Place = tuple[Any, Side, float]
"""Where hidden states are: an envoy, the side of it, and what they are multiplied by."""


def reader(envoy: Envoy) -> Reader:
    """How a scan reads a model that nnsight has wrapped: in traces, with the wrapper's edits, without the final logits.

    Raises InputError for anything but a causal language model of a known family, and for one without its weights.
    """
    model = _model(envoy)
    if model.device.type == "meta":
        raise InputError(
            "The model that nnsight wraps has no weights yet: call its dispatch(), or let NDIF measure it with "
            "internal_policy.readers.nnsight.remote."
        )
    return Reader(model, unembedding(model), partial(_run, envoy))


def remote(envoy: Envoy, at: bool | str = True) -> Reader:
    """What a scan takes in place of the model so that NDIF measures: numbers come back, hidden states stay there.

    `at` is nnsight's `remote`: True for NDIF, the address of another server, or "local" to go through the same motions
    here. The weights need not be here. Precision and device are the server's; its logits are float32 or better, except
    from weights in float32 where it multiplies those in TF32.
    Raises InputError for a wrapper that cannot tell a server which model it is, and if there is no key for NDIF.
    """
    model = _model(envoy)
    if not isinstance(envoy, TransformersModel):
        raise InputError(
            f"No server knows which model {type(envoy).__name__} wraps; use nnsight.TransformersModel('ITS/NAME')."
        )
    if at is True:
        check_key()
    return Reader(model, unembedding(model), _stay, partial(_measure, envoy, at))


def check_key() -> None:
    """Raise InputError if there is no key for NDIF; other servers may need none."""
    if CONFIG.API.HOST == ApiConfig().HOST and not CONFIG.API.APIKEY:
        raise InputError(
            "NDIF needs a key. Get one at https://login.ndif.us, then set NDIF_API_KEY to it, or keep it with "
            "`nnsight login`."
        )


def boot(
    name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, revision: str, **options: Any
) -> TransformersModel:
    """A model of the hub as NDIF knows it, without its weights."""
    own = copy.deepcopy(tokenizer)  # nnsight changes its padding
    known = None if revision == "main" else revision  # under which NDIF keeps the usual one
    return TransformersModel(name, task="text-generation", config=config, tokenizer=own, revision=known, **options)


def _model(envoy: Envoy) -> PreTrainedModel:
    model = envoy._module
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise InputError(f"nnsight wraps a {type(model).__name__}. Wrap a whole causal language model.")
    family_of(model.config)
    return model


def _places(envoy: Envoy, points: Iterable[HookPoint]) -> dict[HookPoint, Place]:
    """Where each point is, in the order of a forward pass, which a trace has to keep."""
    model = _model(envoy)
    path = {module: name for name, module in model.named_modules()}
    places = {}
    for point in sorted(set(points), key=lambda p: (p == FINAL, p.layer, WITH_FINAL.index(p.site))):
        module, side = locate(model, point)
        places[point] = (envoy.get(path[module]), side, multiplier(model.config, point.site))
    return places


def _run(envoy: Any, points: Iterable[HookPoint], visit: Visit, **inputs: Any) -> None:
    places = _places(envoy, points)
    last, _, _ = _places(envoy, [FINAL])[FINAL]
    to_the_end = bool(inputs.get("use_cache") or envoy._edits)  # every layer fills the cache, and may have an edit
    try:
        with envoy.trace(fn=_model(envoy).get_decoder(), **inputs) as tracer:
            for point, (module, side, factor) in places.items():
                state = module.input if side == "input" else module.output
                state = state[0] if isinstance(state, tuple) else state
                visit(point, state if factor == 1 else state * factor)
            if to_the_end and FINAL not in places:
                last.output  # noqa: B018
            tracer.stop()
    except OutOfOrderError as error:
        raise InputError(
            f"An edit of the wrapper comes after the hidden states, which a scan does not reach ({error}). "
            "Remove it with clear_edits()."
        ) from error


def _stay(*_: Any, **__: Any) -> None:
    raise InputError("Hidden states stay on the server, where scans measure them. Load the model to read them here.")


def _measure(
    envoy: TransformersModel,
    at: bool | str,
    rollouts: Sequence[Rollout],
    points: Sequence[HookPoint],
    readouts: Sequence[str],
    local: kernel.Kernel,
) -> Iterator[Measured]:
    """Measure a batch where the model is, piece by piece, as `local` would. Raises InputError if the server doesn't."""
    if lenses := [readout for readout in readouts if readout not in READOUTS]:
        raise InputError(f"The lens '{lenses[0]}' can't be used on a server. Use {' or '.join(READOUTS)}.")
    model, weight = _model(envoy), local.weight
    fields = ("measures", "top_k", "unembedded", "inputs", "streams")  # the server multiplies plainly
    request = {
        "shape": tuple(weight.shape),
        "readouts": readouts,
        "transform": asdict(local.transform),
        "fields": {name: getattr(local, name) for name in fields},
        "together": TOGETHER,
    }
    ids_of_all, number_of_all = padded(rollouts)
    states = len(points) + (local.unembedded or 0) * ("norm" in readouts)
    step = max(1, STATE_BYTES // (states * weight.shape[1] * weight.element_size() * len(rollouts)))
    for rows, width, whole in _rotated_alike(model.config, rollouts):
        ids, number = ids_of_all[rows, :width], number_of_all[rows, :width]
        first = min(len(rollouts[row].prompt_ids) for row in rows) - 1  # before it nothing is measured
        for start in range(first, width, step):
            # always from the beginning: a key-value cache does not stay there
            read = slice(0, width if whole else start + step)
            here = number[:, read] >= 0
            here[:, :start] = False
            here[:, start + step :] = False
            if here.any():
                targets = ids.roll(-1, 1)[:, read][here]
                by_readout = _ask(envoy, at, points, ids[:, read], here, targets, request)
                numbers = {(readout, name): v for readout, by_name in by_readout.items() for name, v in by_name.items()}
                yield number[:, read][here], numbers


def _rotated_alike(config: PreTrainedConfig, rollouts: Sequence[Rollout]) -> Iterator[tuple[list[int], int, bool]]:
    """Rows to read together, their longest length, and whether each pass must read them whole to rotate them as alone.

    Raises InputError for texts whose rotation would depend on what the server read before.
    """
    end = one_rotation(config)
    lengths = [len(rollout.ids) for rollout in rollouts]
    if end is not None and max(lengths) >= end and remembers(config):
        raise InputError(
            f"A rollout has {max(lengths)} tokens, but from {end} on the rotary embedding of this model (dynamic NTK) "
            "depends on what the server read before. Measure shorter rollouts there, or load the model locally."
        )
    for long in (False, True):
        rows = [row for row, length in enumerate(lengths) if (end is not None and length > end) == long]
        if rows:
            yield rows, max(lengths[row] for row in rows), long


def _ask(
    envoy: Any,
    at: bool | str,
    points: Sequence[HookPoint],
    ids: Tensor,
    here: Tensor,
    targets: Tensor,
    request: dict[str, Any],
) -> dict[str, dict[str, Tensor]]:
    """The numbers at the positions `here`, of one pass over `ids`.

    The block below is sent to the server with the objects that it names. None of them belong to this package, because
    the server can't import it. It only calls the model's modules, because NDIF runs it without weights at hand:
    applying the unembedding to the identity gives its matrix.
    """
    model = _model(envoy)
    path = {module: name for name, module in model.named_modules()}
    unembed, norm = envoy.get(path[unembedding(model)]), envoy.get(path[final_norm(model)])
    places = [(points.index(point), *place) for point, place in _places(envoy, points).items()]
    normed_too = range(1, request["fields"]["unembedded"]) if "norm" in request["readouts"] else ()
    text, numbers = program(), {}
    try:
        with envoy.trace(input_ids=ids, use_cache=False, remote=at) as tracer:
            states, normed, weight = {}, {}, None
            for row, spot, side, factor in places:
                state = spot.input if side == "input" else spot.output
                state = state[0] if isinstance(state, tuple) else state
                if weight is None:
                    identity = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
                    weight = unembed(identity).T.contiguous()
                state = state[here.to(state.device)]
                states[row] = state if factor == 1 else state * factor
                if row in normed_too:  # row 0 is FINAL, and normed already
                    normed[row] = norm(states[row])
            normed[0] = states[0]
            inside = {}
            exec(text, inside)
            ordered = [[rows[row] for row in sorted(rows)] for rows in (states, normed)]
            numbers = nnsight.save(inside["measured"](*ordered, weight, targets, **request))
            tracer.stop()
    except (RemoteError, HTTPError, WebSocketException) as error:
        raise _failure(error) from error
    return numbers


def _failure(error: Exception) -> Exception:
    """What a server's answer means here: to ask for less at a time, or a sentence."""
    message = str(error).strip() or type(error).__name__
    if "out of memory" in message:
        return torch.OutOfMemoryError(f"CUDA out of memory. {message}")
    last = message.splitlines()[-1]
    return InputError(f"The server didn't measure this ({last}). See which models it has with nnsight.status().")


@cache
def program() -> str:
    """The modules that measure as one text, which imports only torch and the standard library.

    As text, because the server's Python may be another one, and nnsight sends the bytecode of a dataclass. Their
    annotations are jaxtyping's, and are not evaluated.
    """
    statements = ["from __future__ import annotations"]
    for module in SENT:
        for node in ast.parse(inspect.getsource(module)).body:
            package = (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else ""
            if package not in ("internal_policy", "jaxtyping"):
                statements.append(ast.unparse(node))
    return "\n".join(statements)
