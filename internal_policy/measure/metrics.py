"""Entropy, norm and cosine of logits and hidden states, correct even where float32 overflows or underflows."""

import torch
from jaxtyping import Float
from torch import Tensor

from internal_policy.measure.matmul import precision
from internal_policy.measure.spread import SPREAD

MEASURES = ("entropy", "logprob", "rank", "kl", "topk", "norm", "cosine", "entropy_at_input_norm")
"""What is measured at a hook point unless others are named."""
CONTROLS = (*SPREAD, "entropy_at_input_scale", "entropy_shuffled", "entropy_random")
"""What `--controls` measures as well, to tell whether a pattern of the entropies is real."""
KNOWN = (*MEASURES, *CONTROLS)
"""Everything that can be measured, in the order of columns."""
FROM_LOGITS = set(KNOWN) - {"norm", "cosine"}
"""Measures that need a product with the unembedding."""

LOWEST = -80.0
"""Logits further below the largest are raised to this, because exp is many times slower where it underflows."""
EMPTY = -1e30
"""The maximum of no logits; finite, because merging with -inf gives NaN."""
EXTREMES = 1e-15, 1e15
"""Norms outside these may come from squares that underflowed or overflowed float32."""


def entropy(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """Shannon entropy in nats (Eq. 7 of arXiv 2512.19673).

    It is log s - t / s with u = z - max z, s = sum e^u and t = sum u e^u.
    Exact even for logits in the thousands; a logit of -inf has probability 0; NaN and +inf give NaN.
    """
    u = logits.to(precision(logits.dtype))
    u = (u - u.amax(-1, keepdim=True)).clamp(min=LOWEST)
    weights = u.exp()
    total = weights.sum(-1)
    return total.log() - (weights * u).sum(-1) / total


def norm(hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    """Euclidean length of a hidden state, in float32 or better; no square underflows or overflows."""
    if hidden.is_cuda and hidden.dtype != torch.float64:  # a GPU is fast at this, but slow to report extremes
        return torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float64).to(precision(hidden.dtype))
    lengths = torch.linalg.vector_norm(hidden, dim=-1, dtype=precision(hidden.dtype))
    extreme = (lengths < EXTREMES[0]) | (lengths > EXTREMES[1])
    if extreme.any():
        rows = hidden[extreme].to(lengths.dtype)
        largest = rows.abs().amax(-1)
        length = largest * torch.linalg.vector_norm(rows / largest.unsqueeze(-1), dim=-1)
        lengths = lengths.masked_scatter(extreme, torch.where((largest > 0) & largest.isfinite(), length, largest))
    return lengths


def scale_to(lengths: Float[Tensor, "scaled pos"], outputs: Float[Tensor, "scaled pos"]) -> Float[Tensor, "scaled pos"]:
    """Factors that scale outputs of these norms to other lengths, for the norm control.

    An output of 0 has no direction and stays 0 at any scale; its scale is 1, and its policy is uniform, with entropy
    ln V.
    """
    return torch.where(outputs == 0, 1, lengths / outputs)


def cosine(hidden: Float[Tensor, "*batch d_model"], stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    """Cosine of a module's output with the stream it is added to: ~0 new, < 0 suppresses, > 0 amplifies (App. B.5)."""
    dtype = precision(hidden.dtype)
    return torch.cosine_similarity(hidden.to(dtype), stream.to(dtype), dim=-1, eps=0)
