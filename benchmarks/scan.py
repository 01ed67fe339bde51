"""Whole scans of random models with the shapes of real ones, for the benchmarks."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any

import logit_readout
import reference
import torch
from products import products
from timing import Candidate
from transformers import AutoConfig, AutoModelForCausalLM

from internal_policy.models.head import unembedding
from internal_policy.scans.scan import Scanner
from internal_policy.scans.selection import Selection
from internal_policy.tasks.rollouts import Rollout

QWEN3: dict[str, Any] = {"family": "qwen3", "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True}
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
SAMPLE, GPU_SAMPLE = 4096, 8192
"""Most hidden states in a timed bare product, whose time is scaled up. On a GPU the logits of all wouldn't fit into the
memory; with few, packing the unembedding would count too much."""


def model(shape: str, dtype: torch.dtype, device: torch.device, layers: int | None = None) -> Any:
    """A model with random weights, with fewer layers if `layers` is given."""
    fields = SHAPES[shape]
    return build({**fields, "num_hidden_layers": layers or fields["num_hidden_layers"]}, dtype, device)


def build(fields: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A model with random weights and these fields of its configuration, where `family` is its type."""
    config = AutoConfig.for_model(
        fields["family"], **{name: value for name, value in fields.items() if name != "family"}
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def rollouts(ids: torch.Tensor) -> list[Rollout]:
    """Texts of one prompt token each."""
    return [Rollout("", None, 0, (text[0],), tuple(text[1:]), "", None, True) for text in ids.tolist()]


def selected(model: Any) -> Selection:
    """The hidden states of the reference algorithm: 6 sites of every layer and the final policy, each read raw."""
    return Selection(tuple(range(model.config.num_hidden_layers)), sites=reference.SITES, readouts=("raw",))


def candidates(model: Any, texts: int, tokens: int) -> dict[str, Candidate]:
    """What to compare for texts of one prompt token and `tokens` response tokens."""
    weight, selection = unembedding(model).weight, selected(model)
    ids = torch.randint(10, model.config.vocab_size, (texts, tokens + 1), generator=torch.Generator().manual_seed(0))
    batch, ids = rollouts(ids), ids.to(weight.device)
    few, everything = (Scanner.of(model, choice) for choice in (replace(selection, measures=FEW), selection))
    planned = everything.plan
    points = planned.points[: planned.unembedded]
    total = len(points) * texts * tokens
    part = ceil(total / ceil(total / (GPU_SAMPLE if weight.is_cuda else SAMPLE)))
    states = torch.randn(part, weight.shape[1]).to(weight)
    found = {
        **{f"bare products, {name}": Candidate(run, part / total) for name, run in products(states, weight).items()},
        "forward pass": Candidate(lambda: model.model(ids, use_cache=False)),
        "ours: entropy, KL, rank, norm": Candidate(lambda: few.measure(batch)),
        "ours: all measures, top 5": Candidate(lambda: everything.measure(batch)),
        "reference algorithm: entropy": Candidate(lambda: [reference.scan(model, text[None], 1) for text in ids]),
    }
    if logit_readout.INSTALLED:
        bridge = logit_readout.bridge_of(model)
        found["logit_readout: entropy, rank, logprob"] = Candidate(lambda: logit_readout.scan(bridge, ids, points))
    return found
