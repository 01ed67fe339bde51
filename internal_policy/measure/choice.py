"""Choose the fastest exact way to measure policies on this machine."""

import time
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from internal_policy.measure import matmul, native
from internal_policy.measure.kernel import Kernel

BOUND = 5e-5
"""How much larger the error against float64 may be than that of plain PyTorch in float32: nats, or the share of a
number above 1."""
D_VOCAB, POINTS, POSITIONS = 65_600, 140, 32
"""Vocabulary entries and hidden states that are measured to choose on a GPU."""
CPU_WEIGHTS, CPU_POINTS, CPU_POSITIONS = 2**21, 32, 8
"""Weights of the unembedding and hidden states that are measured to choose on a CPU."""
COMPARED = 2
"""Positions that are compared with float64."""


def choose(weight: Float[Tensor, "d_vocab d_model"], hidden: torch.dtype) -> str:
    """`Kernel.matmul` for this unembedding and hidden states of this dtype, measured once per process and device.

    A small unembedding isn't worth measuring, and always gets PyTorch.
    """
    simple = "stacked" if weight.is_cuda else matmul.choose(weight, hidden)
    if weight.device.type not in ("cuda", "cpu") or weight.numel() < matmul.WORTH_MEASURING:
        return simple
    if torch.float64 in (weight.dtype, hidden):
        return simple
    names = (simple, "fused" if weight.is_cuda else "native")
    seconds = exact(names, hidden, weight.dtype, weight.device, weight.shape[1])
    return min(seconds, key=seconds.__getitem__, default=simple)


def works(name: str, weight: torch.dtype, device: torch.device) -> bool:
    """Whether `Kernel.matmul` may have this name for such an unembedding, for hidden states of its dtype."""
    if device.type == "cuda":
        return name in ("stacked", "fused")
    return name in matmul.candidates(weight, weight, device) or (name == "native" and native.works(weight, weight))


@cache
def exact(
    names: tuple[str, ...], hidden: torch.dtype, weight: torch.dtype, device: torch.device, d_model: int
) -> dict[str, float]:
    """Those values of `Kernel.matmul` that work on this device and agree with float64, with their seconds."""
    gpu = device.type == "cuda"
    points, positions = (POINTS, POSITIONS) if gpu else (CPU_POINTS, CPU_POSITIONS)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    states = normal(points, positions, d_model) * normal(points, positions, 1).exp()  # logits of very different sizes
    rows = (normal(D_VOCAB if gpu else CPU_WEIGHTS // d_model, d_model) * 3 / d_model**0.5).to(weight)
    states, scale = states.to(hidden), normal(points // 2, positions).exp()
    targets = torch.arange(positions, device=device)
    few = states[:, :COMPARED], targets[:COMPARED], scale[:, :COMPARED]
    product = "stacked" if gpu else "plain"
    truth = Kernel(rows.double(), matmul=product).measure(few[0].double(), few[1], few[2].double())
    plain = Kernel(rows.float(), matmul=product).measure(few[0].float(), few[1], few[2])
    seconds: dict[str, float] = {}
    for name in names:
        kernel = Kernel(rows, matmul=name)
        try:
            found = kernel.measure(*few)
        except Exception:  # without Triton or a compiler, or on a device that can't run it
            continue
        if agree(found, plain, truth):
            seconds[name] = min(_seconds(kernel, states, targets, scale) for _ in range(3))
    return seconds


def agree(found: dict[str, Tensor], plain: dict[str, Tensor], truth: dict[str, Tensor]) -> bool:
    """Whether numbers are as exact as those of float32 products (`plain`), up to BOUND and tokens that nearly tie."""
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
    clock = time.perf_counter if states.is_cuda else time.process_time  # CPU time, which other programs don't change
    states.flatten()[0].item()  # wait for what the device still computes
    start = clock()
    kernel.measure(states, targets, scale)["entropy"].cpu()
    return clock() - start
