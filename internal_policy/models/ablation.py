"""Take away what a layer, attention block or FFN adds to the residual stream, and run only the layers after that."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from internal_policy.errors import InputError, first_line
from internal_policy.measure.sites import CHANGES
from internal_policy.models.adapters import inside
from internal_policy.models.families import layer_sites
from internal_policy.models.hooks import FINAL, HookPoint, attach, check_visits, hooked, locate, scaling
from internal_policy.models.modules import backbone, decoder_layers
from internal_policy.models.passes import eager

WRITES = {module: after for module, (_, after) in CHANGES.items()}
"""What can be ablated -> the site where it has written to the stream: a whole layer at `resid_post`."""


@contextmanager
def ablated(
    model: nn.Module, point: HookPoint | str, replacement: Float[Tensor, " d_model"] | None = None
) -> Iterator[None]:
    """Inside, what `model` adds to the residual stream at `point` is replaced at every position.

        with ip.ablated(model, "5.mlp_out"):  # without the FFN of layer 5
            model(**inputs)
        with ip.ablated(model, "5.resid_post"):  # without layer 5, which passes its input on
            rollouts = ip.generate(model, tokenizer, ["What is 47 + 385?"])

    `point` is the `attn_out` or `mlp_out` of a layer, or its `resid_post` for all that the layer adds. `replacement` is
    added instead, such as the mean over many tokens, in the units of that hook point; None adds nothing. A module still
    runs, so that keys and values are cached as before. On leaving, even after an exception, the model is as it was. The
    model changes in every thread while this is open. Entropy-Lens (arXiv 2502.16570) skips layers likewise.

    Raises InputError for any other point, for a replacement of another shape, and at the end of a pass that doesn't
    visit the point exactly once.
    """
    point = HookPoint.parse(point)
    if point.site not in WRITES.values():
        raise InputError(f"Can't ablate {point}. Give LAYER.attn_out, LAYER.mlp_out, or LAYER.resid_post for a layer.")
    modules, _ = locate(model, point)
    width = (inside(model).config.get_text_config().hidden_size,)
    if replacement is not None and replacement.shape != width:
        raise InputError(f"The replacement has shape {tuple(replacement.shape)}; expected {width}, one hidden state.")
    visits: list[HookPoint] = []
    with ExitStack() as stack:
        stack.enter_context(eager())
        stack.callback(backbone(model).register_forward_pre_hook(lambda *_: visits.clear()).remove)
        if point.site == "resid_post":
            seen: list[Tensor] = []
            attach(
                stack, model, HookPoint(point.layer, "resid_pre"), lambda state: seen.__setitem__(slice(None), [state])
            )
            hook = partial(_pass_on, seen, replacement)
            stack.callback(modules[0].register_forward_hook(hook).remove)
        else:
            each, factor = scaling(inside(model).config, point)
            for number, module in enumerate(modules):  # of several modules, the first writes the replacement
                share = replacement if number == 0 else None
                hook = partial(_write, share, each[number] * factor)
                stack.callback(module.register_forward_hook(hook).remove)
        stack.callback(modules[-1].register_forward_hook(lambda *_: visits.append(point)).remove)
        end = backbone(model).register_forward_hook(lambda *_: check_visits([point], {point: len(visits)}))
        stack.callback(end.remove)
        yield


def _write(replacement: Tensor | None, factor: float, _: nn.Module, __: Any, output: Any) -> Any:
    """The output of a module that adds `replacement` to the stream after the model has multiplied it by `factor`."""
    state = output[0] if isinstance(output, tuple) else output
    new = torch.zeros_like(state)
    if replacement is not None and factor:
        new += (replacement.double() / factor).to(state)
    return _with_state(output, new)


def _pass_on(seen: list[Tensor], replacement: Tensor | None, _: nn.Module, __: Any, output: Any) -> Any:
    """The output of a layer that adds `replacement` to its input, which is in `seen`."""
    state = output[0] if isinstance(output, tuple) else output
    new = seen[0].to(state).clone()
    return _with_state(output, new if replacement is None else new + replacement.to(state))


def _with_state(output: Any, state: Tensor) -> Any:
    """What a module returned, with another hidden state."""
    return (state, *output[1:]) if isinstance(output, tuple) else state


def ablatable(model: nn.Module) -> list[tuple[int, str]]:
    """Each layer with what can be ablated of it: layer, attn or mlp. Raises InputError for an unknown family."""
    sites = layer_sites(inside(model).config)
    return [(layer, module) for layer, here in sites.items() for module, site in WRITES.items() if site in here]


@contextmanager
def recorded(model: nn.Module, layers: Iterable[int]) -> Iterator[Mapping[int, Any]]:
    """Inside, the mapping holds what each of `layers` returned in the last pass, for `restarted`."""
    outputs: dict[int, Any] = {}
    modules = decoder_layers(model)
    with ExitStack() as stack:
        stack.enter_context(eager())
        for layer in layers:
            hook = partial(lambda number, *given: outputs.__setitem__(number, given[-1]), layer)
            stack.callback(modules[layer].register_forward_hook(hook).remove)
        yield outputs


@contextmanager
def restarted(model: nn.Module, layer: int, output: Any) -> Iterator[None]:
    """Inside, passes begin at `layer`, which reads `output`: what the layer below it returned for the same texts.

    The layers below aren't computed. Everything else runs as in a whole pass, such as masks and rotary embeddings.
    """
    with ExitStack() as stack:
        stack.enter_context(eager())
        for module in decoder_layers(model)[:layer]:
            stack.callback(_restore, module, vars(module).get("forward"))
            module.forward = lambda *_, **__: _copied(output)
        yield


def _restore(module: nn.Module, forward: Any) -> None:
    """Give a module its method `forward` back, or the one that accelerate had put in its place."""
    del module.forward
    if forward is not None:
        module.forward = forward


def _copied(output: Any) -> Any:
    """A copy of what a layer returned, because the next one may write into it."""
    state = output[0] if isinstance(output, tuple) else output
    return _with_state(output, state.clone())


def can_restart(model: nn.Module, input_ids: Int[Tensor, "batch seq"]) -> bool:
    """Whether passes that restart at any layer end with the same hidden states as a whole pass, bit for bit.

    They don't in models whose layers read more of the layers below than the residual stream, such as shared keys.
    """
    finals: list[Tensor] = []

    def run() -> Tensor:
        with hooked(model, [FINAL], lambda _, state: finals.append(state)):
            backbone(model)(input_ids=input_ids, use_cache=False)
        return finals.pop()

    below = range(len(decoder_layers(model)) - 1)
    try:
        with recorded(model, below) as outputs:
            whole = run()
        for layer in below:
            with restarted(model, layer + 1, outputs[layer]):
                if not torch.equal(run(), whole):
                    return False
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if "out of memory" in first_line(error):
            raise
        return False
    return True
