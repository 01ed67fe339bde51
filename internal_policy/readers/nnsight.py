"""Read hidden states inside an nnsight trace, or let NDIF measure them on its servers.

Importing this imports nnsight, which changes the whole process: every object gets a method `save` (unless nnsight's
configuration has `APP: {PYMOUNT: false}`), and `Tensor.backward` may open a block. Only one thread at a time may use a
model that nnsight has wrapped.

Scans on NDIF were tested without NDIF: the request ran in another process with torch, transformers and nnsight but
without this package, both with the weights loaded and without them, as in NDIF's sandbox. NDIF's queue, its keys and
models spread over several GPUs are untested.
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
from internal_policy.measure import kernel, matmul, metrics, spread, stacked, transform
from internal_policy.measure.sites import WITH_FINAL
from internal_policy.models.families import family_of
from internal_policy.models.family import Side
from internal_policy.models.head import unembedding, weight_alone
from internal_policy.models.hooks import FINAL, HookPoint, Visit, locate, scaled, scaling
from internal_policy.models.modules import final_norm
from internal_policy.models.offload import has_offloaded
from internal_policy.models.passes import one_rotation, remembers
from internal_policy.models.policy import READOUTS
from internal_policy.readers import remote as remotely
from internal_policy.scans.blocks import TOGETHER, padded
from internal_policy.scans.positions import Positions
from internal_policy.scans.reader import Measured, Reader
from internal_policy.tasks.rollouts import Rollout

STATE_BYTES = 2**31
"""The most bytes of hidden states that a server holds at once; longer texts are measured piece by piece."""
SENT = (matmul, transform, spread, metrics, stacked, kernel, remotely)
"""Modules that are sent to a server as text, each after the ones it needs."""

Place = tuple[list[tuple[Any, float]], Side, float]
"""Where hidden states are: envoys with what each is multiplied by, their side, and what the sum is multiplied by."""


def reader(envoy: Envoy) -> Reader:
    """A reader for a model that nnsight has wrapped: it reads in traces, with the wrapper's edits but no final logits.

    Raises InputError for anything but a causal language model of a known family with its weights loaded.
    """
    model = _model(envoy)
    if weight_alone(unembedding(model)).weight.is_meta:
        raise InputError(
            "The model that nnsight wraps has no weights yet. Call its dispatch(), or let NDIF measure it with "
            "internal_policy.readers.nnsight.remote."
        )
    if has_offloaded(model):
        raise InputError(
            "nnsight can't read a model that is offloaded. Use --reader hooks, or devices that hold it whole."
        )
    return Reader(model, weight_alone(unembedding(model)), partial(_run, envoy))


def remote(envoy: Envoy, at: bool | str = True) -> Reader:
    """A reader that lets NDIF measure: pass it to `scan` as the model. Numbers come back, hidden states stay there.

    `at` is nnsight's `remote`: True for NDIF, the address of another server, or "local" to run the same steps here.
    The weights needn't be loaded here. Precision and device are the server's; its logits are float32 or better, unless
    the weights are float32 and it multiplies in TF32.
    Raises InputError for a wrapper that can't tell a server which model it wraps, and if there is no key for NDIF.
    """
    model = _model(envoy)
    if not isinstance(envoy, TransformersModel):
        raise InputError(
            f"A server can't tell which model {type(envoy).__name__} wraps. Use nnsight.TransformersModel('ITS/NAME')."
        )
    if at is True:
        check_key()
    return Reader(model, weight_alone(unembedding(model)), _stay, partial(_measure, envoy, at))


def check_key() -> None:
    """Raise InputError if there is no key for NDIF; other servers may need none."""
    if CONFIG.API.HOST == ApiConfig().HOST and not CONFIG.API.APIKEY:
        raise InputError(
            "NDIF needs a key. Get one at https://login.ndif.us, then set NDIF_API_KEY to it, or store it with "
            "`nnsight login`."
        )


def boot(
    name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, revision: str, **options: Any
) -> TransformersModel:
    """A hub model as NDIF knows it, without its weights."""
    own = copy.deepcopy(tokenizer)  # nnsight changes its padding
    known = None if revision == "main" else revision  # NDIF stores the default revision as None
    return TransformersModel(name, task="text-generation", config=config, tokenizer=own, revision=known, **options)


def _model(envoy: Envoy) -> PreTrainedModel:
    model = envoy._module
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise InputError(f"nnsight wraps a {type(model).__name__}. Wrap a whole causal language model.")
    family = family_of(model.config)
    if family.flat or family.norm_first:
        why = "flattens the batch inside its layers" if family.flat else "runs its final norm twice in a pass"
        raise InputError(f"nnsight can't read {model.config.model_type}, because it {why}. Use the model without it.")
    return model


def _places(envoy: Envoy, points: Iterable[HookPoint]) -> dict[HookPoint, Place]:
    """Where each point is, in the order of a forward pass, which a trace must follow."""
    model = _model(envoy)
    path = {module: name for name, module in model.named_modules()}
    places = {}
    for point in sorted(set(points), key=lambda p: (p == FINAL, p.layer, WITH_FINAL.index(p.site))):
        modules, side = locate(model, point)
        each, factor = scaling(model.config, point)
        spots = [envoy.get(path[module]) for module in modules]
        places[point] = (list(zip(spots, each, strict=True)), side, factor)
    return places


def _run(envoy: Any, points: Iterable[HookPoint], visit: Visit, **inputs: Any) -> None:
    places = _places(envoy, points)
    shape = inputs["input_ids"].shape
    [(last, _)], _, _ = _places(envoy, [FINAL])[FINAL]
    to_the_end = bool(inputs.get("use_cache") or envoy._edits)  # every layer fills the cache, and may have an edit
    try:
        with envoy.trace(fn=_model(envoy).get_decoder(), **inputs) as tracer:
            for point, (spots, side, factor) in places.items():
                states = [spot.input if side == "input" else spot.output for spot, _ in spots]
                parts = [state[0] if isinstance(state, tuple) else state for state in states]
                # Llama 4's experts flatten the batch
                parts = [part if part.dim() > 2 else part.reshape(*shape, part.shape[-1]) for part in parts]
                first, *others = [scaled(part, each) for part, (_, each) in zip(parts, spots, strict=True)]
                visit(point, scaled(sum(others, first), factor))
            if to_the_end and FINAL not in places:
                last.output  # noqa: B018
            tracer.stop()
    except OutOfOrderError as error:
        raise InputError(
            f"An edit of the wrapper comes after the hidden states, where a scan stops ({error}). "
            "Remove it with clear_edits()."
        ) from error


def _stay(*_: Any, **__: Any) -> None:
    raise InputError("Hidden states stay on the server, which measures them. Load the model to read them here.")


def _measure(
    envoy: TransformersModel,
    at: bool | str,
    rollouts: Sequence[Rollout],
    points: Sequence[HookPoint],
    readouts: Sequence[str],
    local: kernel.Kernel,
    positions: Positions,
) -> Iterator[Measured]:
    """Measure a batch on the server, piece by piece, as `local` would here. Raises InputError if the server can't."""
    if lenses := [readout for readout in readouts if readout not in READOUTS]:
        raise InputError(f"The lens '{lenses[0]}' can't be used on a server. Use {' or '.join(READOUTS)}.")
    model, weight = _model(envoy), local.weight
    fields = ("measures", "top_k", "unembedded", "inputs", "streams")  # the server uses the plain matrix product
    request = {
        "shape": tuple(weight.shape),
        "readouts": readouts,
        "transform": asdict(local.transform),
        "fields": {name: getattr(local, name) for name in fields},
        "together": TOGETHER,
    }
    ids_of_all, number_of_all = padded(rollouts, positions)
    states = len(points) + (local.unembedded or 0) * ("norm" in readouts)
    step = max(1, STATE_BYTES // (states * weight.shape[1] * weight.element_size() * len(rollouts)))
    for rows, width, whole in _rotated_alike(model.config, rollouts):
        ids, number = ids_of_all[rows, :width], number_of_all[rows, :width]
        first = min(len(rollouts[row].prompt_ids) for row in rows) - 1  # nothing before this position is measured
        for start in range(first, width, step):
            # always from the beginning, because the server keeps no key-value cache
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
    """Rows to read together, their longest length, and whether to read them whole so that rotation is as for one text.

    Raises InputError for texts whose rotation would depend on earlier texts on the server.
    """
    end = one_rotation(config)
    lengths = [len(rollout.ids) for rollout in rollouts]
    if end is not None and max(lengths) >= end and remembers(config):
        raise InputError(
            f"A rollout has {max(lengths)} tokens, but from {end} on the model's rotary embedding (dynamic NTK) relies "
            "on earlier texts on the server. Measure shorter rollouts there, or load the model locally."
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
    """The numbers at the positions `here`, from one pass over `ids`.

    The block below is sent to the server with the objects it names. None of them belong to this package, because
    the server can't import it. It only calls the model's modules, because it can't access weights on NDIF:
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
            for row, spots, side, factor in places:
                state: Any = None
                for spot, each in spots:
                    part = spot.input if side == "input" else spot.output
                    part = part[0] if isinstance(part, tuple) else part
                    part = part if part.dim() > 2 else part.reshape(*ids.shape, part.shape[-1])
                    part = part if each == 1 else part * each
                    state = part if state is None else state + part
                if weight is None:
                    identity = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
                    weight = unembed(identity).T.contiguous()
                state = state[here.to(state.device)]
                states[row] = state if factor == 1 else state * factor
                if row in normed_too:  # row 0 is FINAL, which is normed already
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
    """The exception for a server's error: out of memory, to ask for less at a time, or else an InputError."""
    message = str(error).strip() or type(error).__name__
    if "out of memory" in message:
        return torch.OutOfMemoryError(f"CUDA out of memory. {message}")
    last = message.splitlines()[-1]
    return InputError(f"The server didn't measure this ({last}). See which models it has with nnsight.status().")


@cache
def program() -> str:
    """The modules in SENT as one text that imports only torch and the standard library.

    It is text, because the server's Python version may differ, and nnsight would send bytecode of dataclasses. The
    annotations use jaxtyping and aren't evaluated.
    """
    statements = ["from __future__ import annotations"]
    for module in SENT:
        for node in ast.parse(inspect.getsource(module)).body:
            package = (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else ""
            if package not in ("internal_policy", "jaxtyping"):
                statements.append(ast.unparse(node))
    return "\n".join(statements)
