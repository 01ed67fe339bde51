"""Backends that read hidden states: our hooks, TransformerLens or nnsight."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import hooked
from internal_policy.models.modules import backbone, decoder_layers

LIBRARIES = {
    "transformer_lens": "internal_policy.readers.transformer_lens",
    "nnsight": "internal_policy.readers.nnsight",
}
"""Package of a model's class -> the module with its reader, the only one that imports that package."""


Measured = tuple[Tensor, Mapping[tuple[str, str], Tensor]]
"""The number of each position, as counted by `blocks.padded`, and (readout, name) -> numbers (points, pos)."""


@dataclass(frozen=True)
class Reader:
    """A model as a scan reads it, whichever library holds it."""

    model: PreTrainedModel
    """The Hugging Face model inside: its configuration, its layers and its final norm."""
    unembedding: nn.Linear
    """The model's own; its weight is (d_vocab, d_model)."""
    run: Callable[..., None]
    """`run(points, visit, **inputs)` runs the backbone once on its inputs, and visits each hook point it reaches."""
    measure: Callable[..., Iterator[Measured]] | None = None
    """`measure(rollouts, points, readouts, kernel, positions)` replaces `run` if the hidden states stay on a server."""

    @property
    def n_layers(self) -> int:
        """How many decoder layers the model has."""
        return len(decoder_layers(self.model))


def reader_of(model: Any) -> Reader:
    """The reader of a Hugging Face model (PEFT may wrap it), of a TransformerBridge or of an NNsight wrapper.

    Raises InputError if the hidden states or unembedding aren't the model's own, or if accelerate offloads the
    unembedding; offloaded layers are fine.
    """
    if isinstance(model, Reader):
        return model
    packages = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    for package in packages:
        if package in LIBRARIES:
            return import_module(LIBRARIES[package]).reader(model)
    model = inside(model)
    weights = unembedding(model)
    if weights.weight.is_meta:
        raise InputError(
            "The unembedding is offloaded, but a scan needs it at every token. Load the model with "
            "internal_policy.load, which keeps it on a device, or use a device_map that does."
        )
    return Reader(model, weights, partial(_run, model))


def _run(model: PreTrainedModel, points: Any, visit: Any, **inputs: Any) -> None:
    with hooked(model, points, visit):
        backbone(model)(**inputs)
