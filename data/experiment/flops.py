"""Count the floating-point operations of sampling and scoring by formula.

A product with a weight takes 2 operations per weight and token, attention 4 per head dimension and pair of tokens.
Every prompt is read once per response. Texts count with their mean length; padding and norms don't count. The passes of
the updates are counted by the trainer itself (`training_flops`); what is only measured isn't counted at all.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    layers: int
    """Layers."""
    weights: int
    """Weights in the matrices of a layer."""
    head: int
    """Weights of the unembedding."""
    width: int
    """Heads times the dimension of a head."""


def shape(model: Any) -> Shape:
    """The sizes of a Llama or Qwen3 model."""
    config, layer = model.config, model.model.layers[0]
    weights = sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2)
    head = model.get_output_embeddings().weight.numel()
    return Shape(config.num_hidden_layers, weights, head, config.num_attention_heads * config.head_dim)


def forward(sizes: Shape, layers: int, prompt: float, response: float) -> float:
    """Operations to compute the policy after the first `layers` layers at each token of a response to a prompt."""
    tokens = prompt + response
    products = 2 * sizes.weights * tokens
    attention = 4 * sizes.width * tokens * (tokens + 1) / 2
    return layers * (products + attention) + 2 * sizes.head * response
