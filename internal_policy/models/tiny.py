"""Tiny random models, on which the rows of families are proved."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from internal_policy.models.classes import auto_class
from internal_policy.models.rows import FAMILIES

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
"""The configuration of every tiny model."""

SCALE = 0.3
"""Scale of the random weights; with the much smaller default, every policy would be uniform."""


EXACT: dict[str, Any] = {"dtype": torch.float64, "experts_implementation": "eager"}
"""Arguments of a model that computes in float64, which the faster experts don't support."""


def tiny(name: str, **changes: Any) -> PreTrainedModel:
    """A random float64 model of the row `name`, the same in every call, whose entropies vary from layer to layer.

    `changes` override its configuration; a name without a row is used as a `model_type`.
    """
    config = tiny_config(name, **changes)
    dtype = config.dtype or torch.float64  # XGLM fails in float64
    return randomized(lambda: auto_class(FAMILIES.get(name)).from_config(config, **{**EXACT, "dtype": dtype}))


def randomized(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The model that `build` returns with other random weights, the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        for weight in model.state_dict().values():  # buffers too: Gemma 4 multiplies the stream by one
            if weight.is_floating_point():
                weight.normal_(0, SCALE) if weight.dim() > 1 else weight.uniform_(0.5, 1.5)
    return model.eval()


def tiny_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of the tiny model of the row `name`, or of a `model_type` without a row."""
    row = FAMILIES.get(name)
    values = {**TINY, **(row.tiny if row else {}), **changes}
    values = {name: value for name, value in values.items() if value is not None or name not in TINY}
    if row and row.nested:
        values = {row.nested: values, "tie_word_embeddings": values["tie_word_embeddings"], **row.beside}
    return AutoConfig.for_model((row.model_type if row else None) or name, **values)
