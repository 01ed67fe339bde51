"""Model types that transformers and the table of families don't know, each in a few lines.

This file is also the code of models with their own: it is copied into their folders.
"""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class FittingConfig(LlamaConfig):
    model_type = "fitting"


class FittingForCausalLM(LlamaForCausalLM):
    """Llama under another name."""

    config_class = FittingConfig


class DoubledConfig(LlamaConfig):
    model_type = "doubled"


class DoubledLayer(LlamaDecoderLayer):
    """Adds twice what its FFN returns."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor:
        residual = hidden_states
        hidden_states = residual + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)[0]
        return hidden_states + 2 * self.mlp(self.post_attention_layernorm(hidden_states))


class DoubledForCausalLM(LlamaForCausalLM):
    """Llama with other layers."""

    config_class = DoubledConfig

    def __init__(self, config: DoubledConfig) -> None:
        super().__init__(config)
        layers = [DoubledLayer(config, layer) for layer in range(config.num_hidden_layers)]
        self.model.layers = torch.nn.ModuleList(layers)
        self.post_init()


class BackwardsConfig(LlamaConfig):
    model_type = "backwards"


class BackwardsForCausalLM(LlamaForCausalLM):
    """Reads the text from its end."""

    config_class = BackwardsConfig

    def forward(self, input_ids: Any = None, *_: Any, **options: Any) -> Any:
        found: Any = super().forward(input_ids.flip(1), **options)
        found.logits = found.logits.flip(1)
        return found
