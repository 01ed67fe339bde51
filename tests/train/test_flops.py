"""Operations are counted as PyTorch counts the products that it computes."""

import pytest
import torch
from conftest import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from internal_policy.models.policy import as_policy
from internal_policy.models.rows import FAMILIES
from internal_policy.train import flops, freezing
from internal_policy.train.padding import UNTRAINABLE

BATCH, LENGTH = 2, 6
CAUSAL = (LENGTH + 1) / 2 / LENGTH
"""Share of the pairs that eager attention computes which a causal mask leaves."""


def ids() -> torch.Tensor:
    return torch.randint(5, 250, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


def computed(model, point: str = "final") -> float:
    """Operations that PyTorch counts, forward and backward, without the pairs that the mask hides."""
    with FlopCounterMode(display=False) as counter, as_policy(model, point):
        model(input_ids=ids(), use_cache=False).logits.sum().backward()
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = counts.pop("aten.bmm", 0) + counts.pop("aten.baddbmm", 0)
    return sum(counts.values()) + CAUSAL * attention


def counted(model, point: str = "final", mask: torch.Tensor | None = None) -> float:
    mask = torch.ones_like(ids()) if mask is None else mask
    with as_policy(model, point):
        with flops.counting(model, mask) as count:
            logits = model(input_ids=ids(), attention_mask=mask, use_cache=False).logits
        logits.sum().backward()
    return count.operations + flops.unembedding(model, int(mask.sum()), trained=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "gemma3_text", "gemma4_text", "jetmoe"])
@pytest.mark.parametrize("point", ["final", "0.resid_post", "0.attn_out"])
def test_operations_are_those_that_pytorch_counts(family, point):
    model = tiny_model(family, attn_implementation="eager")
    assert counted(model, point) == pytest.approx(computed(model, point))


def test_modules_that_are_called_with_keywords_are_counted():
    assert counted(tiny_model("jamba")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*UNTRAINABLE}))
def test_every_family_is_counted(family):
    assert counted(tiny_model(family)) > 0


def test_frozen_weights_have_no_gradient_to_count():
    model = tiny_model("llama", attn_implementation="eager")
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    assert counted(model) == pytest.approx(computed(model))


@pytest.mark.parametrize(("frozen", "only"), [("1", None), (None, "1"), ("0-1,norm", None)])
@pytest.mark.parametrize("point", ["final", "1.resid_post"])
def test_operations_of_partly_frozen_models_are_those_that_pytorch_counts(frozen, only, point):
    model = tiny_model("llama", attn_implementation="eager")
    freezing.freeze(model, freezing.Frozen.of(frozen, only))
    assert counted(model, point) == pytest.approx(computed(model, point))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_recomputation_is_not_counted():
    model = tiny_model("llama")
    expected = counted(model.train())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert counted(model) == pytest.approx(expected)


def test_padding_is_not_counted():
    model, mask = tiny_model("llama"), torch.ones_like(ids())
    mask[1] = 0
    assert counted(model, mask=mask) == pytest.approx(counted(model) / BATCH)


def test_a_window_limits_the_pairs_of_attention():
    config = tiny_model("gemma3_text").config
    sliding = config.layer_types.index("sliding_attention")
    config.sliding_window, lengths = 4, torch.tensor([3, 9])
    pairs = (1 + 2 + 3) + (1 + 2 + 3 + 4 * 6)
    assert flops.attention(config, sliding, lengths) == 4 * config.num_attention_heads * config.head_dim * pairs


@pytest.mark.parametrize(
    ("device", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "float32", 66.9),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "bfloat16", 312),
        ("NVIDIA A10", "bfloat16", 125),
        ("Tesla T4", "float16", 65),
        ("Tesla T4", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA A10G", "bfloat16", None),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "float64", None),
    ],
)
def test_peaks_are_those_of_the_named_device(device, precision, tera):
    assert flops.peak(device, precision) == (None if tera is None else tera * 1e12)
