"""Choose the fastest exact way to measure policies on this machine."""

import time
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from internal_policy.measure import matmul
from internal_policy.measure.kernel import Kernel

BOUND = 5e-5
"""How much larger the error against float64 may be than that of plain PyTorch in float32: nats, or the share of a
number above 1."""
D_VOCAB, POINTS, POSITIONS = 65_600, 140, 32
"""Vocabulary entries and hidden states that are measured to choose."""
COMPARED = 2
"""Positions that are compared with float64."""


def choose(weight: Float[Tensor, "d_vocab d_model"], hidden: torch.dtype) -> str:
    """`Kernel.matmul` for this unembedding and hidden states of this dtype, measured once per process and device."""
    if weight.device.type != "cuda":
        return matmul.choose(weight, hidden)
    if weight.numel() < matmul.WORTH_MEASURING or torch.float64 in (weight.dtype, hidden):
        return "stacked"
    seconds = exact(hidden, weight.dtype, weight.device, weight.shape[1])
    return min(seconds, key=seconds.__getitem__, default="stacked")


@cache
def exact(hidden: torch.dtype, weight: torch.dtype, device: torch.device, d_model: int) -> dict[str, float]:
    """The ways that work on this device and agree with float64, with their seconds."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    states = normal(POINTS, POSITIONS, d_model) * normal(POINTS, POSITIONS, 1).exp()  # logits of very different sizes
    states, rows = states.to(hidden), (normal(D_VOCAB, d_model) * 3 / d_model**0.5).to(weight)
    targets = torch.arange(POSITIONS, device=device)
    scale = normal(POINTS // 2, POSITIONS).exp()
    few = states[:, :COMPARED], targets[:COMPARED], scale[:, :COMPARED]
    truth = Kernel(rows.double(), matmul="stacked").measure(few[0].double(), few[1], few[2].double())
    plain = Kernel(rows.float(), matmul="stacked").measure(few[0].float(), few[1], few[2])
    seconds: dict[str, float] = {}
    for name in ("stacked", "fused"):
        kernel = Kernel(rows, matmul=name)
        try:
            found = kernel.measure(*few)
        except Exception:  # without Triton or a C compiler, or on a GPU that can't run it
            continue
        if agree(found, plain, truth):
            seconds[name] = min(_seconds(kernel, states, targets, scale) for _ in range(3))
    return seconds


def agree(found: dict[str, Tensor], plain: dict[str, Tensor], truth: dict[str, Tensor]) -> bool:
    """Whether numbers are as right as `plain` ones from float32 products, up to BOUND and close tokens that swap."""
    swapped = (found["topk_ids"] != truth["topk_ids"]).double().mean() > 0.01
    ranks = ((found["rank"] - truth["rank"]).abs() > 1 + 1e-3 * truth["rank"]).any()
    wrong = [
        ~(error(found[name], values) <= error(plain[name], values) + BOUND)
        for name, values in truth.items()
        if name not in ("topk_ids", "rank")
    ]
    return not torch.stack([swapped, ranks, *wrong]).any()


def error(found: Tensor, truth: Tensor) -> Tensor:
    """The largest error in nats, or as the share of a number above 1; NaN if only one of them is NaN somewhere."""
    errors = (found.double() - truth).abs() / truth.abs().clamp(min=1)
    return torch.where(found.isnan() & truth.isnan(), 0.0, errors).max()


def _seconds(kernel: Kernel, states: Tensor, targets: Tensor, scale: Tensor) -> float:
    states.flatten()[0].item()  # wait for what the device still computes
    start = time.perf_counter()
    kernel.measure(states, targets, scale)["entropy"].cpu()
    return time.perf_counter() - start
