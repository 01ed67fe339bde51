"""Read hidden states from the residual stream while a model runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from internal_policy.errors import InputError
from internal_policy.families import Side, decoder_layers, family_of, final_norm

SITES = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
"""The sites of a decoder layer in the order a forward pass reaches them."""


@dataclass(frozen=True)
class HookPoint:
    """Where hidden states are read; prints as `5.attn_out`. `HookPoint(5, "resid_post")` is the paper's layer 6."""

    layer: int
    """Decoder layer, counted from 0; -1 at `FINAL`, which belongs to no layer."""
    site: str
    """One of SITES, or "final"."""

    def __post_init__(self) -> None:
        """Refuse a site that has no name here."""
        if self.site not in SITES and (self.layer, self.site) != (-1, "final"):
            raise InputError(
                f"There is no hook point {self.layer}.{self.site}; "
                f"it is LAYER.SITE with a site of {', '.join(SITES)}, or final."
            )

    def __str__(self) -> str:
        """Return `5.attn_out`, or `final`."""
        return "final" if self.site == "final" else f"{self.layer}.{self.site}"

    @classmethod
    def parse(cls, text: str) -> "HookPoint":
        """Read what `str` writes: `5.attn_out` or `final`. Raises InputError."""
        layer, _, site = text.partition(".")
        if text == "final":
            return FINAL
        if not layer.isdecimal() or site not in SITES:
            raise InputError(
                f"'{text}' is no hook point; it is LAYER.SITE such as 5.resid_post (layers from 0), or final."
            )
        return cls(int(layer), site)


FINAL = HookPoint(-1, "final")
"""After the final norm: its policy is the model's own."""

Visit = Callable[[HookPoint, Float[Tensor, "batch seq d_model"]], None]

_open_here: ContextVar[frozenset[object]] = ContextVar("_open_here", default=frozenset())


@contextmanager
def hooked(model: PreTrainedModel, points: Iterable[HookPoint], visit: Visit) -> Iterator[None]:
    """While open, call `visit(point, hidden)` each time `model` reaches one of `points`.

    `hidden` is (batch, seq, d_model), live and on the autograd graph: a visitor that measures keeps
    nothing, one that trains backpropagates through it. Threads may read one shared model at the same
    time: each sees its own passes only. Raises InputError for a point that the model does not have.
    """
    me = object()

    def report(point: HookPoint, hidden: Any) -> None:
        if me in _open_here.get():
            visit(point, hidden[0] if isinstance(hidden, tuple) else hidden)

    handles = []
    try:
        for point in dict.fromkeys(points):
            module, side = locate(model, point)
            handles.append(_register(module, side, partial(report, point)))
        before = _open_here.set(_open_here.get() | {me})
        try:
            yield
        finally:
            _open_here.reset(before)
    finally:
        for handle in handles:
            handle.remove()


def _register(module: nn.Module, side: Side, report: Callable[[Any], None]) -> RemovableHandle:
    if side == "input":
        return module.register_forward_pre_hook(lambda _, args: report(args))
    return module.register_forward_hook(lambda _, __, out: report(out))


def locate(model: PreTrainedModel, point: HookPoint) -> tuple[nn.Module, Side]:
    """The module at `point` and the side of it. Raises InputError for a layer that the model does not have."""
    if point == FINAL:
        return final_norm(model), "output"
    layers = decoder_layers(model)
    if not 0 <= point.layer < len(layers):
        raise InputError(f"There is no hook point {point}: the model's layers are 0 to {len(layers) - 1}.")
    path, side = family_of(model.config.model_type).sites[point.site]
    return layers[point.layer].get_submodule(path), side
