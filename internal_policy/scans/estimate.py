"""Estimate how long a scan takes, from short measurements of this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from internal_policy.measure.choice import choose
from internal_policy.measure.kernel import TILE_ROWS, TILE_VOCAB, Kernel
from internal_policy.models.modules import backbone
from internal_policy.models.tiny import tiny
from internal_policy.scans.blocks import GPU_TOGETHER, TOGETHER
from internal_policy.scans.selection import Plan, Selection

TILES = 2
"""Tiles of the vocabulary that are measured; the others take as long."""
GPU_ROWS, GPU_VOCAB = 4096, 65_536
"""Policies and vocabulary entries that are measured on a GPU, which fewer don't keep busy."""
LARGEST = 4096
"""Rows and columns of the largest matrix that is multiplied to measure the layers."""
BUDGET = 0.08
"""Seconds for each measurement, which is repeated until they have passed."""


@dataclass(frozen=True)
class Size:
    """How much work a scan is."""

    tokens: int
    """Response tokens."""
    measured: int
    """Response tokens whose policies are measured."""
    prompts: int
    """Prompt tokens, over all rollouts."""
    batches: int
    """Batches of rollouts."""
    steps: int
    """Steps of sampling, over all batches; 0 if the responses are given."""
    layers: int
    """Decoder layers."""
    weights: int
    """Weights of the layers that each token is multiplied by."""
    unembedding: int
    """Weights of the unembedding."""
    policies: int
    """Policies that are measured for each response token."""
    scaled: int
    """How many of these are measured at a second norm too (entropy_at_input_norm)."""


@dataclass(frozen=True)
class Speed:
    """Seconds that this machine needs."""

    policy: float
    """To unembed a hidden state and measure its policy."""
    scaled: float
    """The same for a hidden state that is measured at a second norm too."""
    wide: float
    """To multiply a token by a weight of a layer, with many tokens at once."""
    narrow: float
    """To multiply a batch of one token per rollout by a weight, which is read from memory."""
    layer: float
    """To call a decoder layer, however little it computes."""
    step: float
    """To choose the next token of each rollout in a batch, besides the layers."""


def seconds(size: Size, speed: Speed) -> float:
    """How long a scan takes once the model is loaded.

    The prompts and responses pass through the layers; every policy is unembedded and measured; and if the responses
    are sampled, every step of a batch reads all weights. Attention over long texts and writing the tables are left out.
    """
    reading = (size.prompts + size.tokens) * size.weights * speed.wide + size.batches * size.layers * speed.layer
    measuring = size.measured * ((size.policies - size.scaled) * speed.policy + size.scaled * speed.scaled)
    step = (size.weights + size.unembedding) * speed.narrow + size.layers * speed.layer + speed.step
    prompts = size.prompts * size.weights * speed.wide if size.steps else 0.0
    return reading + measuring + size.steps * step + prompts


def active_weights(model: PreTrainedModel) -> int:
    """How many weights of the layers multiply each token; of experts, only those that the token is sent to."""
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    count = 0.0
    for module in backbone(model).modules():
        if isinstance(module, nn.Embedding):
            continue
        for weight in module.parameters(recurse=False):
            if weight.dim() > 1:  # experts are one tensor of (experts, rows, columns)
                share = chosen / len(weight) if weight.dim() == 3 and chosen is not None else 1
                count += weight.numel() * share
    return round(count)


def policies_of(selection: Selection, plan: Plan) -> tuple[int, int]:
    """How many policies are measured for each token, and how many of these at a second norm too.

    Those of null states, and of states at their inputs' logit scale, count as well.
    """
    from internal_policy.measure.controls import NULLS, of_kernel
    from internal_policy.measure.metrics import FROM_LOGITS

    chosen = {*selection.measures}
    scaled = len(plan.inputs) if "raw" in selection.readouts and "entropy_at_input_norm" in chosen else 0
    each = plan.unembedded * bool(FROM_LOGITS & {*of_kernel(selection.measures)})
    each += plan.unembedded * len(chosen & {*NULLS})
    each += (1 + len(plan.inputs)) * ("entropy_at_input_scale" in chosen)
    return len(selection.readouts) * each, scaled


def measured(
    config: PreTrainedConfig, selection: Selection, dtype: torch.dtype, device: torch.device, batch: int, together: int
) -> Speed:
    """The speed of this machine for a model, measured in about half a second without loading it.

    `batch` rollouts are sampled at a time, and `together` response tokens measured.
    """
    text, (policy, scaled) = config.get_text_config(), _kernel(config, selection, dtype, device, together)
    wide, narrow = _products(min(text.hidden_size, LARGEST), dtype, device, batch)
    return Speed(policy, scaled, wide, narrow, *_calls(dtype, device, batch))


@cache
def _products(rows: int, dtype: torch.dtype, device: torch.device, batch: int) -> tuple[float, float]:
    """Seconds to multiply a token by a weight among many tokens, and to multiply a batch of one token per rollout."""
    weight = torch.randn(LARGEST, rows, device=device).to(dtype)
    many, few = (torch.randn(n, rows, device=device).to(dtype) for n in (TILE_ROWS, batch))
    wide = _mean(lambda: many @ weight.T, device) / (len(many) * weight.numel())
    # enough matrices that none is in the processor's cache when its turn comes again
    matrices = [weight, *(weight.clone() for _ in range(64 * 2**20 // (weight.numel() * weight.element_size())))]
    narrow = _mean(lambda: [few @ matrix.T for matrix in matrices], device) / (len(matrices) * weight.numel())
    return wide, narrow


@cache
def _calls(dtype: torch.dtype, device: torch.device, batch: int) -> tuple[float, float]:
    """Seconds to call a layer, and to choose a token: those of a model that computes next to nothing."""
    steps = 8
    small: Any = tiny("qwen3")
    small.to(device, dtype)
    ids = torch.ones(batch, 1, dtype=torch.int64, device=device)
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=steps, eos_token_id=None, pad_token_id=0)
    small.generation_config = config
    with torch.inference_mode():
        layers = _mean(lambda: small(ids, use_cache=True), device)
        sampled = _mean(lambda: small.generate(ids, attention_mask=torch.ones_like(ids)), device) / steps
    return layers / small.config.num_hidden_layers, max(sampled - layers, 0.0)


def _kernel(
    config: PreTrainedConfig, selection: Selection, dtype: torch.dtype, device: torch.device, together: int
) -> tuple[float, float]:
    """Seconds to measure one policy, and one at two norms: those of a few policies over a part of the vocabulary."""
    from internal_policy.measure.controls import of_kernel

    text, gpu = config.get_text_config(), device.type == "cuda"
    positions = max(1, min(together, GPU_TOGETHER if gpu else TOGETHER))
    points = max(1, (GPU_ROWS if gpu else TILE_ROWS) // positions)
    d_vocab, d_model = min(GPU_VOCAB if gpu else TILES * TILE_VOCAB, text.vocab_size), text.hidden_size
    weight = torch.randn(d_vocab, d_model, device=device).to(dtype)
    shape_only = weight[:1].expand(text.vocab_size, d_model)  # no memory: only its shape decides
    hidden = torch.randn(1 + points, positions, d_model, device=device).to(dtype)
    targets = torch.zeros(positions, dtype=torch.int64, device=device)
    times = []
    for inputs in ((), tuple(range(1, 1 + points))):
        kernel = Kernel(
            weight,
            measures=of_kernel(selection.measures),
            top_k=min(selection.top_k, d_vocab),
            matmul=choose(shape_only, dtype),
            inputs=inputs,
        )
        with torch.inference_mode():
            times.append(_mean(lambda kernel=kernel: kernel.numbers(hidden, targets), device))
    whole = text.vocab_size / d_vocab / positions
    plain = times[0] / (1 + points)
    return plain * whole, (times[1] - plain) / points * whole  # the first is never scaled


def _mean(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of `run`, on average over at least two calls and BUDGET seconds, after one that warms up."""
    run()
    _finish(device)
    start, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - start < BUDGET:
        run()
        _finish(device)
        calls += 1
    return (time.perf_counter() - start) / calls


def _finish(device: torch.device) -> None:
    """Wait for what an accelerator still computes."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
