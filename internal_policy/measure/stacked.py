"""Measure policies on a GPU: many hidden states at once over the whole vocabulary, with logits in float32."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internal_policy.measure.matmul import precision
from internal_policy.measure.metrics import LOWEST
from internal_policy.measure.spread import SPREAD, spread
from internal_policy.measure.transform import LogitTransform

SHARE, MOST = 4, 4 * 2**30
"""A block takes at most a fraction, 1 / SHARE, of the free memory, and MOST bytes."""
WIDTH = 64
"""The k largest logits lie in the k groups of this size with the largest maxima."""

_exact = Lock()


@dataclass(frozen=True, eq=False)
class Wanted:
    """What to measure, for any block of hidden states."""

    weight: Float[Tensor, "d_vocab d_model"]
    """The unembedding."""
    transform: LogitTransform
    """How the model divides or caps its logits."""
    measures: Sequence[str]
    """Measures to compute, such as entropy."""
    top_k: int
    """How many of the most likely tokens `topk` keeps."""
    bias: Float[Tensor, " d_vocab"] | None = None
    """Added to the unembedding's logits, before the transform; the Triton kernels can't."""


Fold = Callable[[Wanted, Tensor, Tensor, Tensor], dict[str, Tensor]]
"""Numbers (tokens, points) of hidden states (tokens, points, d_model), the first of each token read at FINAL, given the
token that came next (tokens,) and the scale of the points 1, 2, ... (tokens, scaled). Those that nobody wanted may have
any value or be missing."""


def measure_stacked(
    fold: Fold,
    token_bytes: Callable[[Wanted, int], int],
    wanted: Wanted,
    hidden: Float[Tensor, "points pos d_model"],
    targets: Int[Tensor, " pos"],
    scale: Float[Tensor, "scaled pos"] | None,
) -> dict[str, Tensor]:
    """The numbers of `Kernel.measure`, for as many positions at a time as a part of the free memory holds.

    `token_bytes` tells the memory that `fold` needs for a position of so many points.
    """
    if scale is None or "entropy_at_input_norm" not in wanted.measures:
        scale = hidden.new_empty(0, hidden.shape[1], dtype=precision(hidden.dtype))
    room = min(MOST, free_bytes(hidden.device) // SHARE)
    step = max(1, room // token_bytes(wanted, len(hidden)))
    names = [f"{name}{end}" for name in wanted.measures for end in ("", "_ids", "_probs")]
    with exact_products(), torch.cuda.device(hidden.device) if hidden.is_cuda else nullcontext():
        parts = [
            fold(wanted, states.contiguous(), tokens, scales)
            for states, tokens, scales in zip(
                hidden.transpose(0, 1).split(step), targets.split(step), scale.T.split(step), strict=True
            )
        ]
    return {name: torch.cat([part[name] for part in parts]).transpose(0, 1) for name in names if name in parts[0]}


def token_bytes(wanted: Wanted, points: int) -> int:
    """Memory that `fold` needs for a token: about four tensors as large as the logits."""
    return 4 * 4 * points * len(wanted.weight)


def fold(
    wanted: Wanted,
    hidden: Float[Tensor, "tokens points d_model"],
    targets: Int[Tensor, " tokens"],
    scale: Float[Tensor, "tokens scaled"],
) -> dict[str, Tensor]:
    """Numbers from all logits of these states, in plain PyTorch; a `Fold`."""
    transform, points = wanted.transform, slice(1, 1 + scale.shape[1])
    z = product(hidden.flatten(0, 1), wanted.weight).unflatten(0, hidden.shape[:2])
    scaled = scaled_logits(wanted, z[:, points], scale)
    z = z if wanted.bias is None else z.add_(wanted.bias)
    maximum, target = z.amax(-1), z.gather(-1, targets[:, None, None].expand(-1, z.shape[1], 1)).squeeze(-1)
    found: dict[str, Tensor] = {}
    if "rank" in wanted.measures:
        found["rank"] = (z > aim(wanted, hidden, targets, target).unsqueeze(-1)).sum(-1, dtype=z.dtype) + 1
    if "topk" in wanted.measures:
        found["topk_probs"], found["topk_ids"] = largest(z, wanted.top_k)
    highest = transform(maximum)
    u = transform.overwrite(z).sub_(highest.unsqueeze(-1))
    s, t = moments(u[:, points] * scale.unsqueeze(-1) if scaled is None else scaled)
    found["entropy_at_input_norm"] = torch.full_like(maximum, torch.nan)
    found["entropy_at_input_norm"][:, points] = s.log() - t / s
    del scaled
    if "kl" in wanted.measures:
        p = u[:, 0].softmax(-1)
        cross, entropy = torch.bmm(u, p.unsqueeze(-1)).squeeze(-1), torch.special.entr(p).sum(-1, keepdim=True)
        found["kl"] = -cross - entropy
    if not {*SPREAD}.isdisjoint(wanted.measures):
        found |= spread(u)
    s, t = moments(u)
    log_s = s.log()
    found = {**found, "entropy": log_s - t / s, "logprob": transform(target) - highest - log_s}
    if "rank" in found:
        found["rank"] = found["rank"].masked_fill(log_s.isnan(), torch.nan)
    if "kl" in found:
        found["kl"] = (found["kl"] + log_s).clamp(min=0)
    if "topk" in wanted.measures:
        found["topk_probs"] = (transform(found["topk_probs"]) - highest.unsqueeze(-1) - log_s.unsqueeze(-1)).exp()
    return found


def scaled_logits(
    wanted: Wanted, z: Float[Tensor, "tokens scaled d_vocab"], scale: Float[Tensor, "tokens scaled"]
) -> Float[Tensor, "tokens scaled d_vocab"] | None:
    """How far logits are below their maximum after scaling; None if it is the scale times the distance before."""
    if wanted.bias is None and wanted.transform.cap is None:
        return None
    scaled = z * scale.unsqueeze(-1)
    scaled = wanted.transform.overwrite(scaled if wanted.bias is None else scaled.add_(wanted.bias))
    return scaled.sub_(scaled.amax(-1, keepdim=True)) if scaled.numel() else scaled


def aim(
    wanted: Wanted,
    hidden: Float[Tensor, "tokens points d_model"],
    targets: Int[Tensor, " tokens"],
    target: Float[Tensor, "tokens points"],
) -> Float[Tensor, "tokens points"]:
    """The targets' logits and their rounding, because no token, or copy of it, may rank above itself."""
    states, rows = (torch.linalg.vector_norm(x, dim=-1, dtype=target.dtype) for x in (hidden, wanted.weight[targets]))
    bias = 0 if wanted.bias is None else wanted.bias[targets].abs().unsqueeze(-1)
    return target + 2 * torch.finfo(target.dtype).eps * (states * rows.unsqueeze(-1) + bias)


def moments(u: Float[Tensor, "tokens points d_vocab"]) -> tuple[Tensor, Tensor]:
    """sum e^u and sum u e^u. Overwrites `u`."""
    weights = u.clamp_(min=LOWEST).exp()
    return weights.sum(-1), u.mul_(weights).sum(-1)


def largest(z: Float[Tensor, "tokens points d_vocab"], k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits and their tokens, (tokens, points, k)."""
    whole = z.shape[-1] // WIDTH * WIDTH
    if k < whole // WIDTH:
        groups = z[..., :whole].unflatten(-1, (-1, WIDTH)).amax(-1).topk(k).indices
        ids = (groups.unsqueeze(-1) * WIDTH + torch.arange(WIDTH, device=z.device)).flatten(-2)
        rest = torch.arange(whole, z.shape[-1], device=z.device).expand(*z.shape[:-1], -1)
        ids = torch.cat([ids, rest], -1)
    else:
        ids = torch.arange(z.shape[-1], device=z.device).expand(z.shape)
    found = z.gather(-1, ids).topk(k)
    return found.values, ids.gather(-1, found.indices)


def product(
    hidden: Float[Tensor, "rows d_model"], weight: Float[Tensor, "d_vocab d_model"]
) -> Float[Tensor, "rows d_vocab"]:
    """Logits in float32 or better, from factors in their own precision."""
    dtype = precision(torch.promote_types(hidden.dtype, weight.dtype))
    if hidden.is_cuda and hidden.dtype == weight.dtype != dtype and sums_in_float32(hidden.device):
        return torch.mm(hidden, weight.T, out_dtype=dtype)
    return torch.mm(hidden.to(dtype), weight.to(dtype).T)


@cache
def sums_in_float32(device: torch.device) -> bool:
    """Whether this GPU multiplies half-precision matrices into float32 ones: NVIDIA's do from Ampere on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a GPU, with what PyTorch keeps for itself; 1 GiB elsewhere."""
    if device.type != "cuda":
        return 2**30
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


@contextmanager
def exact_products() -> Iterator[None]:
    """While open, products of float32 matrices on a GPU aren't rounded to TF32, whatever the process has set."""
    setting: Any = torch.backends.cuda.matmul
    with _exact:
        before, setting.fp32_precision = setting.fp32_precision, "ieee"
        try:
            yield
        finally:
            setting.fp32_precision = before
