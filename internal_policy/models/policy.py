"""Turn hidden states into internal policies: distributions over the next token."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.families import family_of
from internal_policy.models.head import logit_transform, to_logits
from internal_policy.models.hooks import FINAL, HookPoint, attach, check_visits, hooked, locate
from internal_policy.models.modules import backbone, decoder_layers, final_norm
from internal_policy.models.passes import eager

Lens = Callable[[Float[Tensor, "*batch d_model"], HookPoint], Float[Tensor, "*batch d_model"]]
"""Turns the hidden state at a hook point into what the unembedding reads, and applies the final norm itself if needed.

A scan reads a layer's input as the output of the layer before, and gives the lens that hook point."""
Readout = Literal["raw", "norm"] | Lens
"""How a hidden state is brought to the unembedding: unchanged (the paper), through the final norm (the logit lens), or
through your own lens."""
READOUTS = ("raw", "norm")
"""Readouts that every model has."""


def readout_name(readout: Readout) -> str:
    """What tables and figures call a readout: raw, norm, or the lens's `__name__`.

    A `functools.partial` is named after its function, and an object without a name after its class. Raises InputError
    for a lens called raw or norm.
    """
    if isinstance(readout, str):
        return readout
    called = readout.func if isinstance(readout, partial) and not hasattr(readout, "__name__") else readout
    name = getattr(called, "__name__", type(called).__name__)
    if name in READOUTS:
        raise InputError(f"A lens can't be called '{name}', because that is a readout. Give it another __name__.")
    return name


def unembed(
    model: nn.Module,
    hidden: Float[Tensor, "*batch d_model"],
    readout: Readout = "raw",
    point: HookPoint | str | None = None,
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of `hidden` by the model's own unembedding matrix (Eqs. 5 and 6 of arXiv 2512.19673; `norm`: Eq. 1).

        policy = ip.unembed(model, hidden).softmax(-1)  # (batch, seq, d_vocab)

    If the model divides or caps its logits (Gemma 2), this does too.
    `point` is where `hidden` was read, such as "5.resid_post". A lens needs it: raises InputError without it.
    """
    point = None if point is None else HookPoint.parse(point)
    state = read_out(model, hidden, readout, point)
    return logit_transform(model)(to_logits(model)(state.to(inside(model).dtype)))  # Mamba's stream may be in float32


def read_out(
    model: nn.Module, hidden: Float[Tensor, "*batch d_model"], readout: Readout, point: HookPoint | None = None
) -> Float[Tensor, "*batch d_model"]:
    """`hidden` as the unembedding reads it; at `FINAL` it is unchanged, whatever the readout.

    Raises InputError for an unknown readout, a lens without a `point`, and a lens that returns anything but a tensor
    of the same shape.
    """
    if readout == "raw" or point == FINAL:
        return hidden
    if readout == "norm":
        return final_norm(model)(hidden)
    if isinstance(readout, str):
        raise InputError(f"There is no readout '{readout}'. Use {' or '.join(READOUTS)}, or pass a callable.")
    if point is None:
        raise InputError(
            f"The lens '{readout_name(readout)}' needs to know where the hidden state was read. Pass `point` too, "
            "such as HookPoint(5, 'resid_post')."
        )
    state = readout(hidden, point)
    if not isinstance(state, Tensor) or state.shape != hidden.shape:
        came = f"a tensor of shape {tuple(state.shape)}" if isinstance(state, Tensor) else f"a {type(state).__name__}"
        raise InputError(
            f"The lens '{readout_name(readout)}' returned {came} at {point}; expected a tensor of shape "
            f"{tuple(hidden.shape)}."
        )
    return state.to(hidden.dtype)


def policy_logits(
    model: nn.Module, point: HookPoint | str, readout: Readout = "raw", **inputs: Any
) -> Float[Tensor, "batch seq d_vocab"]:
    """Logits of the internal policy at `point` for the model's `inputs`, on the autograd graph.

    At `FINAL` they are the model's own, whatever the readout: the final norm is never applied twice.
    Threads may share one model. Raises InputError for a point that the model doesn't have.
    """
    model, point, seen = inside(model), HookPoint.parse(point), list[Tensor]()
    with hooked(model, [point], lambda _, hidden: seen.append(hidden)):
        backbone(model)(**inputs, use_cache=False)
    return unembed(model, seen[-1], readout, point)


_open: WeakKeyDictionary[nn.Module, HookPoint] = WeakKeyDictionary()
"""Model inside an open `as_policy` -> the hook point."""


def opened_at(model: nn.Module) -> HookPoint | None:
    """The hook point of the `as_policy` that is open on `model`; None if none is."""
    return _open.get(inside(model))


@contextmanager
def as_policy(model: nn.Module, point: HookPoint | str, readout: Readout = "raw") -> Iterator[None]:
    """Inside, `model` is the internal policy at `point`: `model(...)`, `model.generate(...)` and losses all use it.

        with ip.as_policy(model, "5.resid_post"):  # what would layer 5 write?
            rollouts = ip.generate(model, tokenizer, ["What is 47 + 385?"])
            model(**inputs, labels=labels).loss.backward()  # layers 0 to 5 get a gradient

    `point` is a HookPoint or its name, such as "5.resid_post". Layers above it are neither computed nor stored, and the
    final norm passes the hidden state on unchanged; with `readout="norm"` it normalizes it, and a lens takes its place.
    On leaving, even after an exception, the model is as it was. The model changes in every thread while this is open:
    a thread started inside generates from the policy too, and other threads must not use the model. Compiled modules
    run uncompiled inside. Raises InputError for a point that the model doesn't have or that a pass doesn't visit
    exactly once, and for a model that already is an internal policy.
    """
    model, point = inside(model), HookPoint.parse(point)
    if model in _open:
        raise InputError(
            f"The model is already one of its internal policies. Leave that `as_policy` before entering {point}."
        )
    if point == FINAL:
        yield
        return
    locate(model, point)
    parent, name = backbone(model), family_of(model.config).layers.rpartition(".")[2]
    layers, norm, bypass = decoder_layers(model), final_norm(model), _Bypass(model, point, readout)
    with ExitStack() as stack:
        stack.enter_context(eager())
        stack.callback(parent.register_forward_pre_hook(bypass.begin).remove)
        stack.callback(parent.register_forward_hook(bypass.end, always_call=True).remove)
        attach(stack, model, point, bypass.capture)
        stack.callback(norm.register_forward_pre_hook(bypass.to_norm).remove)
        if readout != "norm" or bypass.norm_first:
            stack.callback(norm.register_forward_hook(bypass.from_norm).remove)
        stack.callback(_open.pop, model)
        stack.callback(setattr, parent, name, layers)
        _open[model] = point
        setattr(parent, name, layers[: point.layer + 1])
        yield


class _Bypass:
    """Carry the hidden state at a hook point past the modules after it, to the unembedding."""

    def __init__(self, model: nn.Module, point: HookPoint, readout: Readout) -> None:
        self.model, self.point = model, point
        self.readout: Readout = readout
        self.captured: list[Tensor] = []
        self.norm_first = family_of(inside(model).config).norm_first
        self.before_layers = False
        """Whether the norm's next input is the embedding."""
        self.running = False
        """Whether the backbone is running."""
        self.reading = False
        """Whether a readout is running, which may use the final norm."""

    def begin(self, *_: Any) -> None:
        self.running, self.before_layers = True, self.norm_first
        self.captured.clear()

    def end(self, *_: Any) -> None:
        self.running = False
        self.captured.clear()

    def capture(self, hidden: Tensor) -> None:
        if self.running:  # gradient checkpointing recomputes layers after the pass
            self.captured.append(hidden)

    def to_norm(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        if self.reading or self.before_layers or not self.running:
            return args
        check_visits([self.point], {self.point: len(self.captured)})
        return (self.captured[0],)

    def from_norm(self, _: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        if self.reading or not self.running:
            return output
        if self.before_layers:
            self.before_layers = False
            return output
        self.reading = True
        try:
            return read_out(self.model, args[0], self.readout, self.point)
        finally:
            self.reading = False
