"""Prove a family's row on a tiny random model."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from internal_policy.errors import InputError, first_line
from internal_policy.models.families import family_of, kind_of, places_at
from internal_policy.models.hooks import FINAL, HookPoint, hooked, locate
from internal_policy.models.independence import continues, samples_alike
from internal_policy.models.modules import decoder_layers, part
from internal_policy.models.policy import as_policy, policy_logits, unembed
from internal_policy.models.tiny import tiny


def points_of(model: PreTrainedModel) -> list[HookPoint]:
    """Every hook point of a model, in the order of a forward pass."""
    layers = range(len(decoder_layers(model)))
    return [*(HookPoint(layer, site) for layer in layers for site in places_at(model.config, layer)), FINAL]


def read(model: PreTrainedModel, input_ids: Tensor) -> dict[HookPoint, Tensor]:
    """The hidden states at every hook point, on the autograd graph, in the order they were reached."""
    seen: dict[HookPoint, Tensor] = {}
    with torch.random.fork_rng(devices=[]), hooked(model, reversed(points_of(model)), seen.__setitem__):
        model(input_ids, use_cache=False)
    return seen


Contradictions = Iterator[str]
"""Descriptions of what contradicts a claim; empty if nothing does."""


def adds_up(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """The stream is its input plus what the modules add, bit for bit, also with dropout in training."""
    extra = family_of(model.config).extra
    for when, each in (("", model), (" in training", dropping(model))):
        with outputs_of(each, extra) as more:
            states = read(each, input_ids)
        for layer in range(len(decoder_layers(model))):
            at = {site: states[HookPoint(layer, site)] for site in places_at(model.config, layer)}
            if not at:  # a layer that is skipped
                continue
            start, added = "resid_pre", [site for site in ("attn_out", "mlp_out") if site in at]
            if "resid_mid" in at:
                mid = at["resid_pre"] + at["attn_out"]
                yield from differs(f"{layer}.resid_mid is not resid_pre + attn_out{when}", at["resid_mid"], mid)
                start, added = "resid_mid", ["mlp_out"]
            terms = [start, *added]
            # modules that are added together may be added in any order, which rounds differently
            sums = [sum((at[term] for term in order[1:]), at[order[0]]) for order in permutations(terms)]
            sums = [(total + more[layer] if extra else total) * scale_of(each, layer) for total in sums]
            if not any(torch.equal(total, at["resid_post"]) for total in sums):
                claim = f"{layer}.resid_post is not {' + '.join(terms)}{f' + {extra}' * bool(extra)}{when}"
                yield from differs(claim, at["resid_post"], sums[0])
            if (below := HookPoint(layer - 1, "resid_post")) in states:
                yield from differs(f"{layer}.resid_pre is not {below}{when}", at["resid_pre"], states[below])


@contextmanager
def outputs_of(model: PreTrainedModel, path: str) -> Iterator[list[Tensor]]:
    """Inside, the list collects the outputs of the module at `path` in each layer; of none if `path` is empty."""
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        for layer in decoder_layers(model) if path else ():
            module = part(layer, path)
            stack.callback(module.register_forward_hook(lambda *given: outputs.append(given[-1])).remove)
        yield outputs


def scale_of(model: PreTrainedModel, layer: int) -> Tensor | float:
    """What multiplies the stream at the end of a layer."""
    name = family_of(model.config).scale
    return decoder_layers(model)[layer].get_buffer(name) if name else 1.0


def dropping(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model in training mode, where every dropout drops half; nothing, if outputs are read before it."""
    trained = copy.deepcopy(model).train()
    for module in trained.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0 if family_of(model.config).undropped else 0.5
    return trained


def reads(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """Attention and FFN see the stream only through attn_in and mlp_in, as gradients show."""
    states = read(model, input_ids)
    for layer in range(len(decoder_layers(model))):
        here = places_at(model.config, layer)
        mid = "resid_mid" if "resid_mid" in here else "resid_pre"
        for stream, source, out in (("resid_pre", "attn_in", "attn_out"), (mid, "mlp_in", "mlp_out")):
            if out not in here:
                continue
            before, at, after = (states[HookPoint(layer, site)] for site in (stream, source, out))
            weights = torch.linspace(-1, 1, after.numel(), dtype=after.dtype).view_as(after)
            known, through = torch.autograd.grad(after, (before, at), weights, retain_graph=True)
            (seen,) = torch.autograd.grad(at, before, through, retain_graph=True)
            if not known.any():
                yield f"{layer}.{out} does not depend on {stream}"
            yield from differs(f"{layer}.{out} sees {stream} past {source}", seen, known)
        if mid == "resid_pre" and {"attn_out", "mlp_in"} <= here.keys():
            point = HookPoint(layer, "mlp_in")
            with shifted(model, HookPoint(layer, "attn_out")):
                yield from differs(f"{point} depends on attn_out", read(model, input_ids)[point], states[point])


@contextmanager
def shifted(model: PreTrainedModel, point: HookPoint) -> Iterator[None]:
    """Inside, 1 is added to the output of the module at `point`."""

    def shift(_: nn.Module, __: Any, out: Any) -> Any:
        return (out[0] + 1, *out[1:]) if isinstance(out, tuple) else out + 1

    with ExitStack() as stack:
        for module in locate(model, point)[0]:
            stack.callback(module.register_forward_hook(shift).remove)
        yield


def is_the_stream(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """resid_pre of each layer and final are transformers' own hidden states; Mamba lists resid_post instead."""
    states, theirs = read(model, input_ids), model(input_ids, output_hidden_states=True, use_cache=False).hidden_states
    first: list[str] = []
    for site in ("resid_pre", "resid_post"):
        points = [point for point in states if point.site in (site, "final")]
        claims = [f"{point} is not hidden_states[{number}]" for number, point in enumerate(points)]
        pairs = zip(claims, points, theirs, strict=True)
        found = [text for claim, point, their in pairs for text in differs(claim, states[point], their)]
        if not found:
            return
        first = first or found
    yield from first


def final_is_the_model(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """The policy at final is the model's own."""
    logits = policy_logits(model, FINAL, input_ids=input_ids)
    yield from differs("the policy at final is not the model's", logits, model(input_ids, use_cache=False).logits)


def comes_in_order(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """A forward pass reaches the hook points in the order of `points_of`."""
    for point, expected in zip(read(model, input_ids), points_of(model), strict=True):
        if point != expected:
            yield f"{point} comes where {expected} should"


def leaves_nothing(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """No hook is left behind, even after an exception in the middle of a pass."""

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    before = hook_count(model)
    try:
        with hooked(model, points_of(model), fail):
            model(input_ids)
    except KeyboardInterrupt:
        pass
    else:
        yield "no hook point was visited"
    if left := hook_count(model) - before:
        yield f"{left} hooks are left behind"


def becomes(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """Inside `as_policy` the model returns the internal policy's logits, and afterwards its own again."""
    states, own = read(model, input_ids), model(input_ids, use_cache=False).logits
    n_layers = len(decoder_layers(model))
    first_of_kind = {kind_of(model.config, layer): layer for layer in reversed(range(n_layers))}
    others = first_of_kind.values() if len(first_of_kind) > 1 else ()
    for layer in sorted({*others, *range(n_layers)[-2:]}):
        for point in (HookPoint(layer, site) for site in places_at(model.config, layer)):
            expected = unembed(model, states[point])
            with as_policy(model, point):
                yield from differs(
                    f"as_policy at {point} isn't that policy", expected, model(input_ids, use_cache=False).logits
                )
    yield from differs("as_policy leaves the model changed", model(input_ids, use_cache=False).logits, own)


PROOFS: Mapping[str, Callable[[PreTrainedModel, Tensor], Contradictions]] = {
    "the stream is exactly what attention and FFN add to it": adds_up,
    "attention and FFN see the stream only through attn_in and mlp_in": reads,
    "resid_pre is transformers' own hidden state": is_the_stream,
    "the policy at final is the model's own": final_is_the_model,
    "a forward pass reaches the hook points in order": comes_in_order,
    "no hook is left behind after an exception": leaves_nothing,
    "as_policy turns the model into each of its policies": becomes,
    "a text read in pieces has the states of the whole text": continues,
    "prompts are sampled in a batch as they are alone": samples_alike,
}
"""Claim about every row -> the function that looks for contradictions."""


def prove(name: str) -> dict[str, str]:
    """Claim -> what contradicts it for the row `name`; empty if the claim is proved."""
    try:
        return proved(tiny(name))
    except Exception as error:  # the installed transformers may lack the family
        return dict.fromkeys(PROOFS, failure(error))


def proved(model: PreTrainedModel) -> dict[str, str]:
    """Claim -> what contradicts it for the row of a tiny model; empty if the claim is proved."""
    with one_thread():
        return {claim: _contradiction(proof, model, input_ids()) for claim, proof in PROOFS.items()}


def input_ids() -> Tensor:
    """The two random texts that the proofs read."""
    return torch.randint(5, 256, (2, 11), generator=torch.Generator().manual_seed(1))


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes in one thread: waiting for a second one takes longer than a whole tiny model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _contradiction(
    proof: Callable[[PreTrainedModel, Tensor], Contradictions], model: PreTrainedModel, ids: Tensor
) -> str:
    try:
        return next(proof(model, ids), "")
    except Exception as error:  # a row may name a missing module, or one of another shape
        return failure(error)


def failure(error: Exception) -> str:
    """The kind of an error, unless it is an InputError, and the first line of its message."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{kind}{first_line(error)}"


def differs(what: str, actual: Tensor, expected: Tensor) -> Contradictions:
    """Yield `what` unless two tensors are equal: bit for bit, or to rounding if `expected` was rounded to float32."""
    rounded = expected.dtype != actual.dtype  # Mamba returns float32 logits, whatever its weights
    actual = actual.to(expected.dtype)
    if not (torch.allclose(actual, expected, rtol=1e-6, atol=1e-6) if rounded else torch.equal(actual, expected)):
        apart = f"{(actual - expected).abs().max():.2g} apart" if actual.shape == expected.shape else "shapes differ"
        yield f"{what} ({apart})"


def hook_count(model: PreTrainedModel) -> int:
    """How many hooks the modules of a model carry."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
