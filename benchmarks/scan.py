"""Whole scans of random models with the shapes of real ones, for the benchmarks."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import reference
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from internal_policy.models.head import unembedding
from internal_policy.scans.scan import Scanner
from internal_policy.scans.selection import Selection, plan
from internal_policy.tasks.rollouts import Rollout

QWEN3: dict[str, Any] = {"family": "qwen3", "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        **QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "qwen3-4b": {
        **QWEN3,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-3.2-1b": {
        "family": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}
FEW = ("entropy", "kl", "rank", "norm")


def model(shape: str, dtype: torch.dtype, device: torch.device, layers: int | None) -> Any:
    """A model with random weights, with fewer layers if `layers` is given."""
    fields = dict(SHAPES[shape])
    config = AutoConfig.for_model(fields.pop("family"), **fields)
    config.num_hidden_layers = layers or config.num_hidden_layers
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def candidates(
    model: Any, texts: int, tokens: int, products: Callable[[Tensor, Tensor], dict[str, Callable[[], object]]]
) -> dict[str, Callable[[], object]]:
    """What to compare for texts of one prompt token and `tokens` response tokens, all with the readout raw."""
    weight = unembedding(model).weight
    ids = torch.randint(10, 10_000, (texts, tokens + 1), generator=torch.Generator().manual_seed(0))
    rollouts = [Rollout("", None, 0, (text[0],), tuple(text[1:]), "", None, True) for text in ids.tolist()]
    ids = ids.to(weight.device)
    selection = Selection(tuple(range(model.config.num_hidden_layers)), readouts=("raw",))
    few, everything = (Scanner.of(model, choice) for choice in (replace(selection, measures=FEW), selection))
    # a part at a time, because the logits of all states don't fit into memory
    states = torch.randn(min(8192, plan(selection).unembedded * texts * tokens), weight.shape[1]).to(weight)
    times = plan(selection).unembedded * texts * tokens / len(states)

    def run(product: Callable[[], object]) -> None:
        for _ in range(round(times)):
            product()

    return {
        **{f"bare products, {name}": partial(run, product) for name, product in products(states, weight).items()},
        "the model's forward pass": lambda: model.model(ids, use_cache=False),
        "ours: entropy, KL, rank, norm": lambda: few.measure(rollouts),
        "ours: all measures, top 5": lambda: everything.measure(rollouts),
        "reference algorithm: entropy": lambda: [reference.scan(model, text[None], 1) for text in ids],
    }
