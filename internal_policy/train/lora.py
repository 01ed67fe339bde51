"""Train a LoRA adapter in place of all weights, and save it merged into them."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from internal_policy.errors import InputError, joined, require
from internal_policy.models import origin
from internal_policy.models.adapters import inside, of_peft
from internal_policy.models.families import family_of
from internal_policy.models.modules import decoder_layers

if TYPE_CHECKING:
    from peft import LoraConfig

UNTRAINED = re.compile(r"\b(indexer|dt_proj|\w+_adapter_list)\b")
"""Modules whose adapters would get no gradient: indexers of sparse attention only choose tokens, kernels of Mamba read
the weight of dt_proj directly, and of Zamba 2's own adapters each layer uses one."""
OF_EXPERTS = {"gate_proj", "up_proj", "down_proj"}
"""Names that PEFT takes for those of packed experts in many families, even where other modules are called so."""
OF_MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Model types whose kernels read the weight of `out_proj` directly, so that PEFT refuses to adapt it."""


def targets(model: nn.Module, names: Sequence[str] = ()) -> list[str]:
    """The modules to adapt: all linear ones of the decoder layers, or those called one of `names` (`q_proj`).

    The unembedding and the embeddings are never among them, so that all internal policies keep theirs. Neither are
    the FFNs of a model whose experts are packed in one tensor, routers with a class of their own, and what gets no
    gradient (UNTRAINED). Raises InputError for an unknown name.
    """
    inner = inside(model)
    path, layers = family_of(inner.config).layers, decoder_layers(model)
    skipped = {"out_proj"} if inner.config.model_type in OF_MAMBA else set[str]()
    if any("experts" in name and weight.dim() > 2 for name, weight in layers.named_parameters()):
        skipped |= OF_EXPERTS
    linear = [name for name, module in layers.named_modules() if _is_linear(module)]
    found = [name for name in linear if _last(name) not in skipped and not UNTRAINED.search(name)]
    known = dict.fromkeys(map(_last, found))
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"There is no linear module '{unknown[0]}' in the decoder layers, which LoRA could adapt. They have "
            f"{joined([*known])}."
        )
    return [f"{path}.{name}" for name in found if not names or _last(name) in names]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is linear, quantized or not. Llama 4's router isn't, though its class inherits from one."""
    return isinstance(module, nn.Linear | Conv1D) and not type(module).__name__.endswith("Router")


def adapter(model: nn.Module, rank: int, alpha: int | None = None, names: Sequence[str] = ()) -> "LoraConfig":
    """The adapter of `rank` for the modules that `targets` finds, which is scaled by `alpha` / `rank`.

    By default alpha is twice the rank. It has no dropout, which would change the ratio of a policy without updates.
    Raises InputError without PEFT, and for a model that has an adapter already.
    """
    require("peft", "peft")
    from peft import LoraConfig

    if of_peft(model):
        raise InputError(
            "The model is an adapter already, which training continues. Leave out LoRA, or merge it first."
        )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,
        target_modules=targets(model, names),
    )


def name_base(model: nn.Module) -> None:
    """Name the base model in the configuration of its new adapter so that it is found from any folder."""
    known = origin.checkpoint_of(model)
    if known is None or not of_peft(model):
        return
    wrapped: Any = model
    for config in wrapped.peft_config.values():
        local = known.folder.is_dir()
        config.base_model_name_or_path = str(known.folder.resolve()) if local else known.name
        config.revision = None if local else known.revision


def in_words(model: nn.Module) -> str:
    """The size of the adapter of a PEFT model, and what it adapts."""
    wrapped: Any = model
    trained, total = wrapped.get_nb_trainable_parameters()
    (config,) = wrapped.peft_config.values()
    kinds = sorted({_last(name) for name, module in wrapped.named_modules() if hasattr(module, "lora_A")})
    return f"LoRA of rank {config.r} trains {trained:,} of {total:,} weights, in {joined(kinds)}."


def merged(model: nn.Module) -> PreTrainedModel:
    """The base model with the adapter added to its weights. The adapter is gone afterwards."""
    wrapped: Any = model
    return wrapped.merge_and_unload()
