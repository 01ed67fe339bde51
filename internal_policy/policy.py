"""Turn hidden states into internal policies: distributions over the next token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakSet

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from internal_policy.errors import InputError
from internal_policy.families import decoder_layers, family_of, final_norm, unembedding
from internal_policy.hooks import FINAL, HookPoint, hooked, locate

Readout = Literal["raw", "norm"]
"""How a hidden state is brought to the unembedding: as it is (the paper), or by the final norm (the logit lens)."""


def unembed(
    model: PreTrainedModel, hidden: Float[Tensor, "*batch d_model"], readout: Readout = "raw"
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of `hidden` by the model's own unembedding matrix (Eqs. 5 and 6 of arXiv 2512.19673; `norm`: Eq. 1)."""
    return unembedding(model)(read_out(model, hidden, readout))


def read_out(
    model: PreTrainedModel, hidden: Float[Tensor, "*batch d_model"], readout: Readout
) -> Float[Tensor, "*batch d_model"]:
    """`hidden` as the unembedding is to see it."""
    return final_norm(model)(hidden) if readout == "norm" else hidden


def policy_logits(
    model: PreTrainedModel, point: HookPoint, readout: Readout = "raw", **inputs: Any
) -> Float[Tensor, "batch seq d_vocab"]:
    """Logits of the internal policy at `point` for `inputs` of the model, on the graph.

    At `FINAL` they are the model's own, whatever the readout: the final norm is never applied twice.
    Threads may read a shared model at the same time. Raises InputError for a point that the model does not have.
    """
    seen: list[Tensor] = []
    with hooked(model, [point], lambda _, hidden: seen.append(hidden)):
        model.get_decoder()(**inputs, use_cache=False)
    return unembed(model, seen[-1], "raw" if point == FINAL else readout)


_open: WeakSet[nn.Module] = WeakSet()


@contextmanager
def as_policy(model: PreTrainedModel, point: HookPoint, readout: Readout = "raw") -> Iterator[None]:
    """Inside, `model` is the internal policy at `point`: `model(...)`, `model.generate(...)` and losses are its own.

    The backbone is shortened to the layers up to `point`, so that no layer above is computed or stored, and
    the final norm hands over the hidden state as it is (`readout="norm"`: normed). On leaving, the model is as it
    was, also after an exception. Changes the model while open: other threads must not use it meanwhile.
    Raises InputError for a point that the model does not have, and for a model that is an internal policy already.
    """
    if model in _open:
        raise InputError(f"The model already is one of its internal policies; leave that before it becomes {point}.")
    if point == FINAL:
        yield
        return
    locate(model, point)
    path = family_of(model.config.model_type).layers
    parent, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    layers, norm = decoder_layers(model), final_norm(model)
    captured: list[Tensor] = []

    def capture(_: HookPoint, hidden: Tensor) -> None:
        captured[:] = [hidden]

    def to_norm(_: nn.Module, __: Any) -> tuple[Tensor]:
        return (captured.pop(),)

    def hand_over(_: nn.Module, args: tuple[Tensor], __: Tensor) -> Tensor:
        return args[0]

    with hooked(model, [point], capture):
        handles = [norm.register_forward_pre_hook(to_norm)]
        if readout == "raw":
            handles.append(norm.register_forward_hook(hand_over))
        try:
            _open.add(model)
            setattr(parent, name, layers[: point.layer + 1])
            yield
        finally:
            setattr(parent, name, layers)
            _open.remove(model)
            for handle in handles:
                handle.remove()
