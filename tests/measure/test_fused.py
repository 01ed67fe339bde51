"""The Triton kernels agree with float64: on a GPU if there is one, else in Triton's interpreter."""

import copy
from typing import Any

import pytest
import torch
from conftest import random_rollout, tiny_model
from policies import assert_close, reference, states

from internal_policy.measure.kernel import Kernel
from internal_policy.measure.transform import LogitTransform
from internal_policy.scans.scan import Scanner
from internal_policy.scans.selection import Selection

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
HALF = torch.bfloat16 if GPU else torch.float16  # the interpreter multiplies bfloat16 wrongly


def heavy(points, positions, d_vocab, std=3.0, d_model=64, dtype=torch.float32):
    """Hidden states of very different sizes, with a scale for the points 1 and 2."""
    hidden, weight, targets = states(points, positions, d_vocab, std, d_model, torch.float32)
    hidden = hidden * torch.logspace(-1, 1, positions)[:, None]
    scale = torch.rand(min(2, points - 1), positions, generator=torch.Generator().manual_seed(1)) * 2
    return hidden.to(dtype), weight.to(dtype), targets, scale


def check(hidden, weight, targets, scale, transform=LogitTransform(), top_k=5, bound=5e-5):  # noqa: B008
    """Assert that every number is right, up to the rounding of float32 logits."""
    on_device = (tensor.to(DEVICE) for tensor in (hidden, targets, scale))
    found = Kernel(weight.to(DEVICE), transform, top_k=top_k, matmul="fused").measure(*on_device)
    found = {name: values.cpu() for name, values in found.items()}
    expected = reference(hidden, weight, targets, scale if len(scale) else None, top_k, transform)
    rank, ids = expected.pop("rank"), expected.pop("topk_ids")  # close logits may swap places
    assert ((found.pop("rank") - rank).abs() <= 1 + 1e-3 * rank).all()
    assert (found.pop("topk_ids") != ids).double().mean() < 0.01
    assert_close(found, expected, atol=bound, rtol=bound)


@pytest.mark.parametrize(
    ("points", "positions", "d_vocab"),
    [(1, 1, 130), (5, 7, 700), (150, 1, 256), (70, 3, 300)],
    ids=["one state", "many tokens in a block", "two tokens in a block", "three tokens in a block"],
)
def test_every_shape_is_measured_correctly(points, positions, d_vocab):
    check(*heavy(points, positions, d_vocab))


@pytest.mark.parametrize(
    "transform", [LogitTransform(3.0, factor=0.5), LogitTransform(cap=5.0), LogitTransform(3.0, 5.0, 2.0)], ids=str
)
def test_every_number_is_correct_with_a_transform(transform):
    check(*heavy(4, 5, 300, std=30.0), transform)


@pytest.mark.parametrize("std", [30.0, 1_000.0])
def test_large_logits_are_measured_correctly(std):
    check(*heavy(4, 6, 500, std, dtype=HALF))


@pytest.mark.parametrize("top_k", [1, 20])
def test_the_likeliest_tokens_are_found_in_any_tile(top_k):
    check(*heavy(3, 2, 1300), top_k=top_k)


def test_copies_of_a_token_do_not_lower_its_rank():
    hidden, weight, _, _ = heavy(4, 7, 1000, std=30.0, dtype=HALF)
    weight[:] = weight[torch.arange(1000) % 50]
    targets = torch.arange(7) * 77
    expected = reference(hidden, weight[:50], targets % 50)["rank"]
    kernel = Kernel(weight.to(DEVICE), measures=["rank"], matmul="fused")
    found = kernel.measure(hidden.to(DEVICE), targets.to(DEVICE))["rank"].cpu()
    torch.testing.assert_close(found.double(), (expected.double() - 1) * 20 + 1)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's numpy
def test_a_nan_state_gives_nan_only_in_its_own_row():
    hidden, weight, targets, scale = heavy(6, 5, 300)
    hidden[3, 2, 0] = torch.nan
    found = Kernel(weight.to(DEVICE), matmul="fused").measure(*(t.to(DEVICE) for t in (hidden, targets, scale)))
    for name in ("entropy", "logprob", "kl", "rank"):
        assert found[name].isnan().nonzero().tolist() == [[3, 2]], name
    assert found["topk_ids"].min() >= 0
    assert found["topk_ids"].max() < 300


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_real_widths_are_measured_correctly(dtype):
    check(*heavy(150, 3, 20_000, std=1.0, d_model=2560, dtype=dtype))


@needs_gpu
def test_a_gpu_chooses_an_exact_way():
    from internal_policy.measure import choice

    weight = torch.randn(40_000, 1024, device=DEVICE, dtype=torch.bfloat16)
    names = ("stacked", "fused")
    exact = choice.exact(names, torch.bfloat16, torch.bfloat16, weight.device, 1024)
    assert choice.choose(weight, torch.bfloat16) in exact


@needs_gpu
def test_a_scan_on_a_gpu_agrees_with_one_on_the_cpu():
    model: Any = tiny_model("qwen3").float()
    rollouts = [random_rollout(n_prompt=n, seed=n) for n in (3, 5)]
    here = Scanner.of(model, Selection((0, 1))).measure(rollouts)[0].to_pandas()
    there = Scanner.of(copy.deepcopy(model).cuda(), Selection((0, 1))).measure(rollouts)[0].to_pandas()
    numbers = [name for name in here if name.endswith(("entropy", "logprob", "kl", "norm", "cosine"))]
    assert (here[numbers] - there[numbers]).abs().max().max() < 1e-3
    assert numbers


@needs_gpu
@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
def test_a_block_takes_few_launches():
    from torch.profiler import ProfilerActivity, profile

    hidden, weight, targets, _ = (tensor.to(DEVICE) for tensor in heavy(150, 8, 5000, dtype=HALF))
    kernel = Kernel(weight, matmul="fused", inputs=(2, 3), streams=((1, 4), (2, 5)))
    kernel.numbers(hidden, targets)  # compiles
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        kernel.numbers(hidden, targets)
        torch.cuda.synchronize()
    assert sum(event.device_type.name == "CUDA" for event in seen.events() or ()) < 80
