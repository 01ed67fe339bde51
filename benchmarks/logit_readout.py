"""TransformerLens's `logit_readout` for the benchmarks: entropy, rank and log-probability of the next token."""

import copy
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from internal_policy.bundle import DATA
from internal_policy.models.hooks import HookPoint

INSTALLED = find_spec("transformer_lens") is not None


def bridge_of(model: Any) -> Any:
    """A bridge over a copy of the model with the same weights, because it makes the model compute attention eagerly."""
    from internal_policy.readers.transformer_lens import boot

    shared = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    return boot(shared, AutoTokenizer.from_pretrained(DATA / "models" / "demo-qwen3"))


def bridge_with(weight: Tensor) -> Any:
    """A bridge over a model whose unembedding is `weight` (d_vocab, d_model), to read hidden states from elsewhere."""
    d_vocab, d_model = weight.shape
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=d_model,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=d_vocab,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=weight.dtype).eval()
    model.to_empty(device=weight.device)
    model.lm_head.weight = model.model.embed_tokens.weight = nn.Parameter(weight, requires_grad=False)
    return bridge_of(model)


def read(bridge: Any, hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Numbers of hidden states (points, ..., d_model) and the tokens that came next (...), 64 states at a time.

    The logits have the type of the model.
    """
    from transformer_lens.tools.analysis import logit_readout

    found = logit_readout(bridge, hidden, apply_ln=False, targets=targets, return_type="log_probs")
    assert found.target_ranks is not None
    return {"entropy": found.entropy, "logprob": found.values[..., 0], "rank": found.target_ranks[..., 0] + 1}


@torch.inference_mode()
def scan(bridge: Any, ids: Tensor, points: Sequence[HookPoint]) -> dict[str, Tensor]:
    """Read a batch of texts, keep the hidden states at `points`, and read them out for all tokens after the first."""
    from internal_policy.readers.transformer_lens import name

    names = [name(point) for point in points]
    _, cache = bridge.run_with_cache(ids, names_filter=names)
    return read(bridge, torch.stack([cache[name][:, :-1] for name in names]), ids[:, 1:])
