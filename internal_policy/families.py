"""Where each model family keeps its residual stream: one row of data a family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from internal_policy.errors import InputError

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Family:
    """Paths of modules inside a Hugging Face causal language model."""

    layers: str
    """The list of decoder layers."""
    final_norm: str
    """The norm between the last layer and the unembedding."""
    sites: Mapping[str, tuple[str, Side]]
    """Site -> (module inside the decoder layer, which side of it), as they are reached; "" is the layer itself."""


LLAMA = Family(
    layers="model.layers",
    final_norm="model.norm",
    sites={
        "resid_pre": ("", "input"),
        "attn_in": ("input_layernorm", "output"),
        "attn_out": ("self_attn", "output"),
        "resid_mid": ("post_attention_layernorm", "input"),
        "mlp_in": ("post_attention_layernorm", "output"),
        "mlp_out": ("mlp", "output"),
        "resid_post": ("", "output"),
    },
)

FAMILIES: dict[str, Family] = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA}
"""`config.model_type` -> its row. tests/test_families.py proves every row on a tiny random model."""


def family_of(model_type: str) -> Family:
    """The row of `config.model_type`. Raises InputError if there is none."""
    if model_type not in FAMILIES:
        raise InputError(
            f"Unknown model family '{model_type}'; known are {', '.join(sorted(FAMILIES))}. "
            "Add a row to FAMILIES in internal_policy/families.py."
        )
    return FAMILIES[model_type]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a loaded model, first to last."""
    layers = model.get_submodule(family_of(model.config.model_type).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last layer and the unembedding of a loaded model."""
    return model.get_submodule(family_of(model.config.model_type).final_norm)


def unembedding(model: PreTrainedModel) -> nn.Linear:
    """The unembedding of a loaded model: its weight is (d_vocab, d_model)."""
    module = model.get_output_embeddings()
    assert isinstance(module, nn.Linear)
    return module
