"""Read hidden states from the residual stream while a model runs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from internal_policy.errors import InputError, is_count
from internal_policy.measure.sites import SITES, WITH_FINAL
from internal_policy.models.adapters import inside
from internal_policy.models.families import factors, family_of, multiplier, place
from internal_policy.models.family import Side, terms
from internal_policy.models.modules import backbone, decoder_layers, final_norm, part
from internal_policy.models.passes import eager

WRITTEN = f"Write LAYER.SITE, such as 5.attn_out, or final. Layers count from 0; the sites are {', '.join(SITES)}."
"""How to write a hook point, for error messages."""


@dataclass(frozen=True)
class HookPoint:
    """Where to read hidden states; prints as `5.attn_out`. `HookPoint(5, "resid_post")` is the paper's layer 6.

    Functions also accept its name, "5.resid_post". Raises InputError for an unknown site.
    """

    layer: int
    """Decoder layer, counted from 0; -1 at `FINAL`, which belongs to no layer."""
    site: str
    """One of SITES, or "final"."""

    def __post_init__(self) -> None:
        """Raise InputError for an unknown site, and for `final` with a layer."""
        if self.site not in SITES and (self.layer, self.site) != (-1, "final"):
            raise InputError(f"There is no hook point {self.layer}.{self.site}. {WRITTEN}")

    def __str__(self) -> str:
        """Return `5.attn_out`, or `final`."""
        return "final" if self.site == "final" else f"{self.layer}.{self.site}"

    @classmethod
    def parse(cls, point: "HookPoint | str") -> "HookPoint":
        """Parse a name such as `5.attn_out` or `final`; a hook point is returned unchanged. Raises InputError."""
        if isinstance(point, HookPoint):
            return point
        if point == "final":
            return FINAL
        layer, _, site = str(point).partition(".")
        if not is_count(layer) or site not in SITES:
            raise InputError(f"Can't read '{point!s:.60}' as a hook point. {WRITTEN}")
        return cls(int(layer), site)


FINAL = HookPoint(-1, "final")
"""After the final norm: its policy is the model's own."""

Visit = Callable[[HookPoint, Float[Tensor, "batch seq d_model"]], None]

_open_here: ContextVar[frozenset[object]] = ContextVar("_open_here", default=frozenset())


@contextmanager
def hooked(model: nn.Module, points: Iterable[HookPoint | str], visit: Visit) -> Iterator[None]:
    """While open, call `visit(point, hidden)` each time `model` reaches one of `points`, such as `["5.attn_out"]`.

        seen = {}
        with ip.hooked(model, ["5.attn_out", "final"], seen.__setitem__):
            model(**inputs)
        seen[ip.HookPoint(5, "attn_out")].shape  # (batch, seq, d_model)

    `model` may be wrapped by PEFT. `hidden` is (batch, seq, d_model), live and on the autograd graph: a visitor that
    measures keeps nothing, one that trains backpropagates through it. `attn_out` and `mlp_out` are what is added to
    the stream; if the model first multiplies a module's output (Granite), `hidden` is a copy of that product.
    Threads may share one model: each sees only its own passes. Compiled modules run uncompiled while this is open.
    Raises InputError for a point that the model doesn't have, at the end of a pass that didn't visit each point
    exactly once, and on leaving if all passes ran in other threads.
    """
    if isinstance(points, str):
        raise InputError(f"The hook points must be a list, not the string '{points}'. Use ['{points}'].")
    wanted = list(dict.fromkeys(map(HookPoint.parse, points)))
    me, visits, elsewhere, here = object(), Counter[HookPoint](), 0, 0

    def report(point: HookPoint, hidden: Tensor) -> None:
        if me in _open_here.get():
            visits[point] += 1
            visit(point, hidden)

    def begin(*_: Any) -> None:
        nonlocal here, elsewhere
        if me in _open_here.get():
            here += 1
            visits.clear()
        else:
            elsewhere += 1

    def end(*_: Any) -> None:
        if me in _open_here.get():
            check_visits(wanted, visits)

    with ExitStack() as stack:
        if wanted:
            stack.enter_context(eager())
            stack.callback(backbone(model).register_forward_pre_hook(begin).remove)
        # two sites may share one state (OLMo 2), and a module calls its hooks in the order of registration
        for point in sorted(wanted, key=lambda point: WITH_FINAL.index(point.site)):
            attach(stack, model, point, partial(report, point))
        if wanted:
            stack.callback(backbone(model).register_forward_hook(end).remove)
        before = _open_here.set(_open_here.get() | {me})
        try:
            yield
        finally:
            _open_here.reset(before)
        if elsewhere and not here:
            raise InputError(
                f"{wanted[0]} was never visited because the model only ran in another thread. Open `hooked` in "
                "the thread that runs the model."
            )


def check_visits(points: Iterable[HookPoint], visits: Mapping[HookPoint, int]) -> None:
    """Raise InputError for the first of `points` that a forward pass didn't visit exactly once."""
    for point in points:
        if (times := visits.get(point, 0)) != 1:
            raise InputError(
                f"A forward pass visited {point} {times} times instead of once. Load the model with "
                "AutoModelForCausalLM, and remove anything that replaces or skips its modules."
            )


def attach(stack: ExitStack, model: nn.Module, point: HookPoint, report: Callable[[Tensor], None]) -> None:
    """Call `report(hidden)` in every pass that reaches `point`, in any thread, until `stack` is left."""
    modules, side = locate(model, point)
    each, factor = scaling(inside(model).config, point)
    family = family_of(inside(model).config)
    if point == FINAL and family.norm_first:
        report = _second(stack, model, report)
    report = (lambda state, live=report: live(state.clone())) if point.site in family.overwritten else report
    place = _Place(each, factor, report, point.site in family.flat)
    if place.flat:
        layer = decoder_layers(model)[point.layer]
        stack.callback(layer.register_forward_pre_hook(place.enter, with_kwargs=True).remove)
    for number, module in enumerate(modules):
        if side == "input":
            handle = module.register_forward_pre_hook(partial(place.before, number), with_kwargs=True)
        else:
            handle = module.register_forward_hook(partial(place.after, number))
        stack.callback(handle.remove)


def _second(stack: ExitStack, model: nn.Module, report: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Report only the second state of each pass, in any thread, until `stack` is left."""
    calls = Counter[int]()  # thread -> calls in this pass
    stack.callback(backbone(model).register_forward_pre_hook(lambda *_: calls.pop(get_ident(), None) and None).remove)

    def later(state: Tensor) -> None:
        calls[get_ident()] += 1
        if calls[get_ident()] == 2:
            report(state)

    return later


class _Place:
    """Report the states of one place, or the sum of what several modules add, whichever thread runs the model."""

    def __init__(self, each: list[float], factor: float, report: Callable[[Tensor], None], flat: bool) -> None:
        self.each, self.factor, self.report, self.flat = each, factor, report, flat
        self.seen: dict[tuple[int, int], Tensor] = {}
        """(thread, number of the module) -> what a module added, so far."""
        self.shapes: dict[int, torch.Size] = {}
        """Thread -> the shape of the layer's input, if the states at this place are flat."""

    def enter(self, _: nn.Module, args: Any, options: Mapping[str, Any]) -> None:
        """Remember the shape of what the layer reads."""
        self.shapes[get_ident()] = (args[0] if args else options["hidden_states"]).shape

    def before(self, number: int, _: nn.Module, args: Any, options: Mapping[str, Any]) -> Any:
        """Hand over what a module reads."""
        if not self.flat:
            return self.hand_over(number, args or options["hidden_states"])
        return (self.through(number, args[0]), *args[1:]), options

    def after(self, number: int, _: nn.Module, args: Any, out: Any) -> Tensor | None:
        """Hand over what a module returns."""
        state = out[0] if isinstance(out, tuple) else out
        if self.flat:
            return self.through(number, state)
        # Llama 4's experts flatten the batch
        return self.hand_over(number, state if state.dim() > 2 else state.view_as(args[0]))

    def through(self, number: int, flat: Tensor) -> Tensor:
        """Hand over a flat state in the shape of the layer's input, and flatten that again, so that it is live."""
        if get_ident() not in self.shapes:  # another thread was inside the layer when this place was attached
            return flat
        state = flat.view(self.shapes[get_ident()])
        self.hand_over(number, state)
        return state.view_as(flat)

    def hand_over(self, number: int, hidden: Any) -> None:
        state = scaled(hidden[0] if isinstance(hidden, tuple) else hidden, self.each[number])
        if len(self.each) > 1:
            state = self.whole(number, state)
        if state is not None:
            self.report(scaled(state, self.factor))

    def whole(self, number: int, state: Tensor) -> Tensor | None:
        """The sum of what the modules added in this pass; None until the last of them has run."""
        keys = [(get_ident(), each) for each in range(len(self.each))]
        if keys[number] in self.seen:  # of a pass that was interrupted
            for key in keys:
                self.seen.pop(key, None)
        self.seen[keys[number]] = state
        if any(key not in self.seen for key in keys):
            return None
        first, *others = map(self.seen.pop, keys)
        return sum(others, first)


def scaling(config: PreTrainedConfig, point: HookPoint) -> tuple[list[float], float]:
    """What each module's output at `point` is multiplied by, and what their sum is; 1 if it isn't."""
    if point == FINAL:
        return [1.0], 1.0
    return factors(config, point.site, point.layer), multiplier(config, point.site)


def scaled(state: Tensor, factor: float) -> Tensor:
    """`state` times `factor`; the same tensor if that is 1."""
    return state if factor == 1 else state * factor


def locate(model: nn.Module, point: HookPoint) -> tuple[list[nn.Module], Side]:
    """The module at `point`, or the several whose sum is read there, and the side.

    Raises InputError for a point that the model doesn't have.
    """
    if point == FINAL:
        return [final_norm(model)], "output"
    layers = decoder_layers(model)
    config = inside(model).config
    check(config, point, len(layers))
    path, side = place(config, point.site, point.layer)
    return [part(layers[point.layer], module) for module, _ in terms(path)], side


def check(config: PreTrainedConfig, point: HookPoint, n_layers: int) -> None:
    """Raise InputError if a model with this configuration and `n_layers` layers doesn't have `point`."""
    if point == FINAL:
        return
    if not 0 <= point.layer < n_layers:
        raise InputError(f"There is no hook point {point}: the model's layers are 0 to {n_layers - 1}.")
    place(config, point.site, point.layer)
