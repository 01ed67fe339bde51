"""Compute how much memory a scan needs at its peak, from the model's configuration, before anything is loaded."""

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from internal_policy.measure import stacked
from internal_policy.measure.controls import NULLS
from internal_policy.measure.kernel import TILE_ROWS, TILE_VOCAB
from internal_policy.measure.transform import LogitTransform
from internal_policy.models.passes import continuing
from internal_policy.scans.blocks import GPU_SHARE, GPU_TOGETHER, PREFILL, STATE_BYTES, TOGETHER, WHOLE_BYTES
from internal_policy.scans.selection import Plan, Selection

FLOAT = 4
"""Bytes of a logit and of a measured number."""
SAMPLED = 6
"""Tensors as large as the logits of a step, while a token is sampled."""
TABLES, TABLES_ON_GPU = 4, 2
"""Copies of a batch's numbers while they become tables, and those of them that are on a GPU."""
TILES = 8
"""Tensors as large as a tile of logits that a CPU measures with."""
LIBRARIES = 48 * 2**20
"""Bytes that libraries load when they are first used."""
STATES, NULL_STATES = 3, 2
"""Copies of the hidden states that are measured together: as they were read, of a readout, and in float32; and those of
null states besides, as they are made and of a readout."""


@dataclass(frozen=True)
class Batch:
    """The rollouts that a scan reads or samples at a time."""

    rollouts: int
    """How many."""
    prompt: int
    """Tokens of the longest prompt."""
    response: int
    """Tokens of the longest response."""
    sampled: bool
    """Whether the responses are sampled first."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a scan needs on the device that runs the model."""

    weights: int
    """The weights."""
    checked: int
    """What checking them for NaN needs, right after they are loaded."""
    sampling: int
    """Keys and values of the attention, and the logits of a step, while responses are sampled; 0 if they are given."""
    states: int
    """Hidden states while they are read, and what the forward pass computes besides them."""
    kernel: int
    """Logits and statistics while policies are measured."""
    tables: int
    """The numbers of a batch while they become tables."""

    @property
    def peak(self) -> int:
        """Most bytes needed at once: the weights, and the most of loading, sampling, measuring and writing."""
        measuring = self.states + self.kernel + self.tables // 2  # of this batch, and of the last, which is written
        return self.weights + max(self.checked, self.sampling, measuring, self.tables) + LIBRARIES


def memory(
    config: PreTrainedConfig,
    selection: Selection,
    plan: Plan,
    batch: Batch,
    *,
    weights: int,
    largest: int,
    size: int,
    free: int,
    gpu: bool,
) -> Memory:
    """What a scan needs, in bytes.

    `weights` is the size of the weights in bytes, `largest` the number of elements of the largest one, `size` the bytes
    of each number in a hidden state, and `free` the free bytes of the device. A `gpu` gives a share of the memory that
    is left to hidden states and to logits.
    """
    text = config.get_text_config()
    nulls = 0 if {*NULLS}.isdisjoint(selection.measures) else NULL_STATES
    length, left = batch.prompt + batch.response, max(free - weights, 0)
    together = len(plan.points) * text.hidden_size * size
    goes_on = continuing(config)
    room = left // GPU_SHARE if gpu else STATE_BYTES if goes_on else WHOLE_BYTES
    step = max(1, room // (together * batch.rollouts))
    piece = length if step >= length or not goes_on else min(length, max(step, min(PREFILL, batch.prompt)))
    states = together * batch.rollouts * min(step, batch.response)
    response = len(selection.positions.of(batch.response))
    measured = min(batch.rollouts * min(step, response), GPU_TOGETHER if gpu else TOGETHER)
    if gpu:
        shape = torch.empty(text.vocab_size, text.hidden_size, device="meta")
        each = stacked.token_bytes(stacked.Wanted(shape, LogitTransform(), (), 0), plan.unembedded)
        kernel = max(each, min(each * measured, left // stacked.SHARE, stacked.MOST))
        copies = nulls
    else:
        kernel, copies = TILES * TILE_ROWS * TILE_VOCAB * FLOAT, STATES + nulls
    kernel += copies * together // size * max(size, FLOAT) * measured
    keys = cache_bytes(config, length, size) * batch.rollouts
    logits = SAMPLED * FLOAT * batch.rollouts * text.vocab_size
    sampling = keys + logits + pass_bytes(config, batch.rollouts * batch.prompt, size)
    reading = states + pass_bytes(config, batch.rollouts * piece, size) + (keys if goes_on and piece < length else 0)
    return Memory(
        weights=weights,
        checked=largest * (size + 1),
        sampling=sampling * batch.sampled,
        states=reading,
        kernel=kernel,
        tables=selection.disk_bytes(batch.rollouts * response) * (TABLES_ON_GPU if gpu else TABLES),
    )


def cache_bytes(config: PreTrainedConfig, length: int, size: int) -> int:
    """Bytes of the keys and values of one text of `length` tokens, in numbers of `size` bytes.

    Layers with windowed attention keep no more tokens than the window has, and layers without attention count as 0.
    """
    text = config.get_text_config()
    count = _largest(text, "num_attention_heads")
    heads = _largest(text, "num_key_value_heads") or count
    width = _largest(text, "head_dim") or text.hidden_size // max(count, 1)
    each = 2 * heads * width
    if getattr(text, "kv_lora_rank", None):  # the cache holds what the keys and values of all heads come from
        each = text.kv_lora_rank + text.qk_rope_head_dim
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    windows = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    reach = {kind: min(length, (getattr(text, name, None) or length + 1) - 1) for kind, name in windows.items()}
    reach |= dict.fromkeys(("attention", "full_attention"), length)
    return sum(reach.get(kind, 0) for kind in kinds) * each * size


def pass_bytes(config: PreTrainedConfig, tokens: int, size: int) -> int:
    """Bytes of what a layer computes for so many tokens: its input, queries, keys, values and the FFN's activations."""
    text = config.get_text_config()
    inner = _largest(text, "intermediate_size") or 4 * text.hidden_size
    return tokens * (6 * text.hidden_size + 3 * inner) * size


def _largest(text: Any, name: str) -> int:
    """A number in a configuration; the largest if its layers have different ones, and 0 if it has none."""
    value = getattr(text, name, None)
    return max(value, default=0) if isinstance(value, list) else value or 0


def free_bytes(device: torch.device) -> int:
    """Free memory in bytes: of a GPU, or for other devices of this machine's RAM."""
    if device.type == "cuda":
        return stacked.free_bytes(device)
    return psutil.virtual_memory().available
