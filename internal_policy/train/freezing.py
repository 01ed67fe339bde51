"""Which parts of a model are trained, and at which rate: frozen parts, and slower or faster upper layers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside, of_peft
from internal_policy.models.hooks import FINAL
from internal_policy.models.modules import backbone, decoder_layers, final_norm
from internal_policy.train.schedule import Phase, first_internal

NAMES = ("embeddings", "norm", "head")
"""Parts besides the decoder layers: what comes before them, the final norm, and the unembedding."""


@dataclass(frozen=True)
class Parts:
    """Parts of a model."""

    layers: frozenset[int]
    """Decoder layers, from 0."""
    names: frozenset[str]
    """Some of NAMES."""

    @classmethod
    def parse(cls, text: str) -> "Parts":
        """Read `0-4,7,embeddings`. Raises InputError."""
        layers, names = set[int](), set[str]()
        for part in map(str.strip, text.split(",")):
            match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
            if part in NAMES:
                names.add(part)
            elif match and int(match[1]) <= int(match[2] or match[1]):
                layers |= {*range(int(match[1]), int(match[2] or match[1]) + 1)}
            else:
                raise InputError(
                    f"'{part}' isn't a part of a model. Write layers and {', '.join(NAMES)}, such as 0-4,7,embeddings."
                )
        return cls(frozenset(layers), frozenset(names))


NOTHING = Parts(frozenset(), frozenset())


@dataclass(frozen=True)
class Frozen:
    """What a configuration freezes."""

    parts: Parts = NOTHING
    """The named parts."""
    others: bool = False
    """Whether all other parts are frozen instead."""
    text: str = ""
    """The field and its value, for messages."""

    @classmethod
    def of(cls, frozen_layers: str | None, only_layers: str | None) -> "Frozen":
        """From the fields of a configuration. Raises InputError."""
        if frozen_layers is not None and only_layers is not None:
            raise InputError("only_layers freezes all other parts of the model. Remove frozen_layers.")
        if only_layers is not None:
            return cls(Parts.parse(only_layers), True, f"only_layers is {only_layers}")
        if frozen_layers is not None:
            return cls(Parts.parse(frozen_layers), False, f"frozen_layers is {frozen_layers}")
        return cls()

    def within(self, n_layers: int) -> Parts:
        """The frozen parts of a model with `n_layers` layers. Raises InputError for layers that it doesn't have."""
        if unknown := sorted(layer for layer in self.parts.layers if layer >= n_layers):
            raise InputError(f"{self.text}, but there is no layer {unknown[0]}: they are 0 to {n_layers - 1}.")
        if not self.others:
            return self.parts
        return Parts(frozenset(range(n_layers)) - self.parts.layers, frozenset(NAMES) - self.parts.names)


def check(
    model: PreTrainedConfig, frozen: Frozen, phases: Sequence[Phase] | None = None, layer_lr_scale: float = 1.0
) -> None:
    """Raise InputError for frozen layers that a model doesn't have.

    If the `phases` are known, also for one that only trains frozen layers, and for a `layer_lr_scale` without layers
    above the first phase's.
    """
    n_layers = model.get_text_config().num_hidden_layers
    parts = frozen.within(n_layers)
    if phases is None:
        return
    first = first_internal(phases)
    if layer_lr_scale != 1 and first is None:
        raise InputError("layer_lr_scale needs a schedule, whose first layer says which layers are above. Remove it.")
    for point in [phase.point for phase in phases if phase.point != FINAL]:
        trained = range(point.layer + 1)
        if parts.layers >= {*trained}:
            which = f"layers 0 to {point.layer}, which are all" if point.layer else "layer 0, which is"
            raise InputError(
                f"{frozen.text}, but {point} trains {which} frozen. Choose a higher layer, or freeze less."
            )
    if layer_lr_scale != 1 and first is not None and first.point.layer >= n_layers - 1:
        raise InputError(f"layer_lr_scale needs layers above {first.point}, the first to be trained. Remove it.")


def parameters(model: nn.Module) -> dict[int | str, list[nn.Parameter]]:
    """The parameters of each part of a model, with its adapters; tied embeddings are part of the head too."""
    causal = inside(model)
    found: dict[int | str, list[nn.Parameter]] = {
        number: list(layer.parameters()) for number, layer in enumerate(decoder_layers(causal))
    }
    found["norm"] = list(final_norm(causal).parameters())
    known = {id(parameter) for part in found.values() for parameter in part}
    found["embeddings"] = [each for each in backbone(causal).parameters() if id(each) not in known]
    known |= {id(parameter) for parameter in found["embeddings"]}
    tied = causal.get_output_embeddings()
    outside = [each for each in causal.parameters() if id(each) not in known]
    found["head"] = [*outside, *(() if tied is None else tied.parameters())]
    return found


def freeze(model: nn.Module, frozen: Frozen) -> None:
    """Turn off the gradients of what is frozen, adapters included. Raises InputError if nothing is left to train.

    Of tied embeddings, `embeddings` and `head` are the same weights: freezing one freezes both, and training only one
    of them trains both.
    """
    by_part = parameters(model)
    parts = frozen.within(len(decoder_layers(model)))
    off = {*parts.layers, *parts.names}
    kept = {id(each) for part, weights in by_part.items() if part not in off for each in weights}
    for part in off:
        for each in by_part[part]:
            if not (frozen.others and id(each) in kept):
                each.requires_grad_(False)
    if not any(each.requires_grad for each in model.parameters()):
        raise InputError(f"{frozen.text}, which leaves nothing to train. Freeze less.")


def scale(optimizer: Optimizer, model: nn.Module, above: int, factor: float) -> None:
    """Multiply the learning rate of the layers above layer `above`; the optimizer hasn't made an update yet."""
    layers = {number: weights for number, weights in parameters(model).items() if isinstance(number, int)}
    upper = {id(each) for number, weights in layers.items() if number > above for each in weights}
    groups = []
    for is_upper in (False, True):  # the rate in the log is that of the first group
        for group in optimizer.param_groups:
            weights = [each for each in group["params"] if (id(each) in upper) == is_upper]
            if weights:
                groups.append({**group, "params": weights, "lr": group["lr"] * (factor if is_upper else 1)})
    optimizer.param_groups[:] = groups


def in_words(model: nn.Module) -> str | None:
    """What is frozen, in a sentence; None if nothing is. With adapters, parts that have none aren't mentioned."""
    wrapped: Any = model
    prefix = wrapped.base_model.prefix if of_peft(model) else ""  # of adapters, such as lora_
    could = {id(each) for name, each in model.named_parameters() if prefix in name}
    off = {
        part
        for part, weights in parameters(model).items()
        if any(id(each) in could for each in weights) and not any(each.requires_grad for each in weights)
    }
    layers = sorted(part for part in off if isinstance(part, int))
    names = [name for name in NAMES if name in off]
    if not off:
        return None
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    ranges = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    return "Frozen: " + ", ".join([f"layers {', '.join(ranges)}" if layers else "", *names]).removeprefix(", ") + "."
