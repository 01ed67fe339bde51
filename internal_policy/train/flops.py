"""Count the floating-point operations of training, and compare them with the peak of the device.

A matrix product with a weight takes 2 operations per weight and token in the forward pass, and as many again for the
gradient of its input and of its weight, where they are needed. Attention takes 4 per head dimension and pair of a token
and one that it sees in the forward pass, and 8 in the backward pass (Appendix B of arXiv 2204.02311, which counts all
pairs where this counts those that a causal mask leaves). Only modules that run are counted, once even if gradient
checkpointing runs them again. Norms, activations and the recurrences of linear attention are left out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

from internal_policy.models.adapters import inside
from internal_policy.models.families import layer_sites
from internal_policy.models.hooks import HookPoint, locate
from internal_policy.models.modules import decoder_layers

FORWARD = 2
"""Operations per weight and token in the forward pass, and for each gradient in the backward pass."""
ATTENTION = "attn_out"
"""Site of a layer that has attention."""
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kind of attention layer -> the field of the configuration with the number of tokens that it sees."""


class Peak(NamedTuple):
    """Dense peak of a device in TFLOP/s, which is half of that with sparsity; None for a type that it doesn't have."""

    bfloat16: float | None
    """With bfloat16 inputs."""
    float16: float | None
    """With float16 inputs, summed in float32."""
    tf32: float | None
    """With float32 inputs rounded to TF32."""
    float32: float
    """With float32 inputs."""


PEAKS = {
    "B200": Peak(2250, 2250, 1125, 75),
    "H200 NVL": Peak(835, 835, 417.5, 60),
    "H200": Peak(989.4, 989.4, 494.7, 66.9),
    "H100 NVL": Peak(835, 835, 417.5, 60),
    "H100 PCIe": Peak(756, 756, 378, 51.2),
    "H100": Peak(989.4, 989.4, 494.7, 66.9),
    "A100": Peak(312, 312, 156, 19.5),
    "L40S": Peak(362, 362, 183, 91.6),
    "L4": Peak(121, 121, 60, 30.3),
    "A10": Peak(125, 125, 62.5, 31.2),
    "V100-SXM2": Peak(None, 125, None, 15.7),
    "V100-PCIE": Peak(None, 112, None, 14),
    "T4": Peak(None, 65, None, 8.1),
    "RTX 4090": Peak(165.2, 165.2, 82.6, 82.6),
    "RTX 3090": Peak(71, 71, 35.6, 35.6),
    "MI300X": Peak(1307.4, 1307.4, 653.7, 163.4),
}
"""Words of a device's name -> its peak, from its maker's data sheet. The first row that matches counts."""


@dataclass
class Count:
    """Operations counted while a model runs."""

    operations: float = 0.0
    """Operations of the forward and backward pass."""

    def add(self, operations: float) -> None:
        """Count more operations."""
        self.operations += operations


def peak(device: str, precision: str) -> float | None:
    """Dense peak in FLOP/s of a device by its name, such as `NVIDIA H100 80GB HBM3`; None if it isn't in the table.

    `precision` is a field of Peak. A slice of a GPU (MIG) isn't in the table.
    """
    words = device.split()
    for name, row in PEAKS.items():
        if "MIG" not in words and all(any(_is_named(word, part) for word in words) for part in name.split()):
            value = getattr(row, precision, None)
            return None if value is None else value * 1e12
    return None


def _is_named(word: str, name: str) -> bool:
    """Whether a word of a device's name is `name`, maybe with more after a dash: A100-SXM4-80GB is an A100."""
    return word == name or word.startswith(f"{name}-")


@contextmanager
def counting(model: nn.Module, mask: Int[Tensor, "batch seq"]) -> Iterator[Count]:
    """While open, count what the passes of a model over a batch take; the backward pass is counted when it runs.

    The unembedding is left to `unembedding`, because TRL computes it outside of the model's modules. Padding (where
    `mask` is 0) doesn't count: products are counted in proportion to the tokens that aren't padding.
    """
    causal, count = inside(model), Count()
    config, head = causal.config, causal.get_output_embeddings()
    share, lengths = mask.float().mean().item(), mask.sum(1)

    def product(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        read = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor)]
        rows = read[0].numel() // read[0].shape[-1]
        each = FORWARD * share * rows
        sizes = [(_active(weight, read), read[0].requires_grad + weight.requires_grad) for weight in _matrices(module)]
        _count(count, output, each * sum(size for size, _ in sizes), each * sum(size * n for size, n in sizes))

    def attend(number: int, _: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> None:
        forward = attention(config.get_text_config(), number, lengths)
        _count(count, output, forward, 2 * forward)

    hooks: list[tuple[nn.Module, Any]] = [
        (module, product)
        for module in causal.modules()
        if module is not head and not isinstance(module, nn.Embedding) and _matrices(module)
    ]
    for layer, sites in layer_sites(config).items():
        if ATTENTION in sites and layer < len(decoder_layers(model)):
            hooks.append((locate(model, HookPoint(layer, ATTENTION))[0][-1], partial(attend, layer)))
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def _count(count: Count, output: Any, forward: float, backward: float) -> None:
    """Add the operations of a forward pass, and those of the backward pass once it reaches the output."""
    count.operations += forward
    first = output[0] if isinstance(output, tuple) else output
    if first.requires_grad:
        first.register_hook(lambda _: count.add(backward))


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The matrices of a module's own that multiply its input, as those of linear layers and stacked experts do."""
    if isinstance(module, nn.Conv1d):  # a few weights per channel
        return []
    return [weight for weight in module.parameters(recurse=False) if weight.dim() > 1]


def _active(weight: nn.Parameter, inputs: Sequence[Tensor]) -> float:
    """The weights that multiply one row of the first input: all, or those of the experts that it is sent to.

    The second input says to which ones; without it, the rows are those of each expert.
    """
    experts = weight.shape[0] if weight.dim() > 2 else 1
    return weight.numel() / experts * (inputs[1].shape[-1] if experts > 1 and len(inputs) > 1 else 1)


def attention(config: PreTrainedConfig, layer: int, lengths: Int[Tensor, " batch"]) -> float:
    """Operations of a layer's attention in the forward pass over texts of so many tokens; 0 for a recurrent layer."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * (layer + 1)
    if "attention" not in kinds[layer] or kinds[layer] == "linear_attention":
        return 0.0
    if config.is_heterogeneous:
        config = config.per_layer_config[layer]
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if getattr(config, "kv_lora_rank", None):
        width = (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) / 2
    window = getattr(config, WINDOWS.get(kinds[layer], ""), None)
    seen = lengths if window is None else lengths.clamp(max=window)
    pairs = (seen * (seen + 1) // 2 + (lengths - seen) * seen).sum().item()
    return float(2 * FORWARD * heads * width * pairs)


def unembedding(model: nn.Module, tokens: int, *, trained: bool) -> float:
    """Operations of the unembedding of so many response tokens, forward and, if the policy is `trained`, backward."""
    head = cast(nn.Linear, inside(model).get_output_embeddings()).weight
    return float(FORWARD * head.numel() * tokens * (1 + (1 + head.requires_grad) * trained))
