"""Measure how widely logits and probabilities are spread: their standard deviation and two Rényi entropies."""

import torch
from jaxtyping import Float
from torch import Tensor

SPREAD = ("renyi_half", "renyi_2", "logit_scale")
"""Measures of this file: the Rényi entropies of order 1/2 and 2 in nats, and the logits' standard deviation."""


class Spread:
    """Running sums for these measures over the vocabulary seen so far, at a few hook points and the same positions.

    The Rényi entropy of order a (Rényi 1961) of logits z is (ln sum e^(a z) - a ln sum e^z) / (1 - a). A policy doesn't
    change when all of its logits rise, so the logit scale is their standard deviation over the vocabulary.
    """

    def __init__(self, like: Float[Tensor, "points pos"]) -> None:
        """`like` has the shape and dtype of the sums, which begin at 0."""
        self.half = self.two = self.mean = self.squares = torch.zeros_like(like)
        self.seen = 0

    def add_logits(
        self, u: Float[Tensor, "points pos tile"], maximum: Float[Tensor, "points pos"], out: Tensor
    ) -> None:
        """Add a tile's logits, `u` + `maximum`, by their distance from the tile's own mean. Overwrites `out`."""
        count, centre = u.shape[-1], u.mean(-1)
        squares = torch.sub(u, centre.unsqueeze(-1), out=out).square_().sum(-1)
        if self.seen == 0:
            self.mean, self.squares, self.seen = centre + maximum, squares, count
            return
        apart, share = centre + maximum - self.mean, count / (self.seen + count)
        self.squares = self.squares + squares + apart.square() * (self.seen * share)
        self.mean = self.mean + apart * share
        self.seen += count

    def add_weights(
        self, weights: Float[Tensor, "points pos tile"], fade: Float[Tensor, "points pos"], out: Tensor
    ) -> None:
        """Add a tile's e^u; those before it shrank by `fade`, because the maximum rose. Overwrites `out`."""
        self.half = fade.sqrt() * self.half + torch.sqrt(weights, out=out).sum(-1)
        self.two = fade.square() * self.two + torch.square(weights, out=out).sum(-1)

    def result(self, s: Float[Tensor, "points pos"]) -> dict[str, Tensor]:
        """The numbers of SPREAD, given `s` = sum e^u."""
        return renyi(s, self.half, self.two) | {"logit_scale": (self.squares / max(self.seen, 1)).sqrt()}


def renyi(s: Float[Tensor, "*batch"], half: Float[Tensor, "*batch"], two: Float[Tensor, "*batch"]) -> dict[str, Tensor]:
    """Both Rényi entropies, in nats, from the sums of e^u, e^(u / 2) and e^(2 u)."""
    return {"renyi_half": 2 * half.log() - s.log(), "renyi_2": 2 * s.log() - two.log()}


def spread(u: Float[Tensor, "*batch d_vocab"]) -> dict[str, Tensor]:
    """The numbers of SPREAD from all logits, less their maximum."""
    s, half, two = (torch.exp(u if order == 1 else u * order).sum(-1) for order in (1, 0.5, 2))
    return renyi(s, half, two) | {"logit_scale": u.std(-1, correction=0)}
