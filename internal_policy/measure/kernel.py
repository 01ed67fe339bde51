"""Measure policies one tile of the vocabulary at a time, without ever holding all of their logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internal_policy.measure.matmul import MATMULS
from internal_policy.measure.metrics import EMPTY, FROM_LOGITS, LOWEST, MEASURES, cosine, norm, precision, scale_to
from internal_policy.measure.spread import SPREAD, Spread
from internal_policy.measure.stacked import Fold, Wanted, fold, measure_stacked, token_bytes
from internal_policy.measure.transform import LogitTransform

TILE_ROWS, TILE_VOCAB = 512, 2048
"""Hidden states and vocabulary entries in one product, small enough that its logits stay in the processor's cache."""
COSINES = 2**26
"""Elements of the states whose cosines a GPU computes at once."""
GROUP = 64
"""The k largest of a tile lie in the k groups of this size with the largest maxima."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """What to measure and how: built once for a scan, and used for every block of hidden states."""

    weight: Float[Tensor, "d_vocab d_model"]
    """The unembedding."""
    transform: LogitTransform = field(default_factory=LogitTransform)
    """How the model divides or caps its logits."""
    measures: Sequence[str] = MEASURES
    """Measures to compute, such as entropy."""
    top_k: int = 5
    """How many of the most likely tokens `topk` keeps."""
    matmul: str = "plain"
    """How to multiply: the name in `MATMULS` of a product that PyTorch computes on a CPU, "native" for C++ that also
    takes the statistics (but not in float64), or "stacked" or "fused" (see `folds`), which are for GPUs."""
    unembedded: int | None = None
    """How many of the first hidden states `numbers` unembeds; None for all. The others only give norms and cosines."""
    inputs: Sequence[int] = ()
    """Rows whose norms `numbers` scales the rows 1, 2, ... to, for `entropy_at_input_norm`."""
    streams: Sequence[tuple[int, int]] = ()
    """Rows of a module's output and of the stream it is added to, for `cosine`."""
    bias: Float[Tensor, " d_vocab"] | None = None
    """Added to the unembedding's logits, before the transform."""

    def numbers(
        self,
        hidden: Float[Tensor, "points pos d_model"],
        targets: Int[Tensor, " pos"],
        states: Float[Tensor, "unembedded pos d_model"] | None = None,
    ) -> dict[str, Tensor]:
        """Every number of a block: those of `measure`, with norms and cosines, (points, pos).

        `states` are the hidden states as a readout brings them to the unembedding; None for the raw readout, the only
        one with `entropy_at_input_norm`, because the others don't depend on the norm.
        """
        norms = norm(hidden)
        scale = None
        if states is None:
            states = hidden[: self.unembedded]
            scale = scale_to(norms[self._inputs], norms[1 : 1 + len(self.inputs)]) if self.inputs else None
        measured = self.measure(states, targets, scale)
        cosines = torch.full_like(norms, torch.nan)
        step = max(1, COSINES // hidden[0].numel()) if hidden.is_cuda else 1
        for pairs in self._streams.split(step):
            modules, streams = pairs.unbind(1)
            cosines[modules] = cosine(hidden[modules], hidden[streams])
        return {**measured, "norm": norms, "cosine": cosines}

    @cached_property  # because a GPU waits for every copy of a list
    def _inputs(self) -> Int[Tensor, " scaled"]:
        return torch.tensor(self.inputs, dtype=torch.int64, device=self.weight.device)

    @cached_property
    def _streams(self) -> Int[Tensor, "modules 2"]:
        return torch.tensor(self.streams, dtype=torch.int64, device=self.weight.device).view(-1, 2)

    def measure(
        self,
        hidden: Float[Tensor, "points pos d_model"],
        targets: Int[Tensor, " pos"],
        scale: Float[Tensor, "scaled pos"] | None = None,
    ) -> dict[str, Tensor]:
        """Numbers of the policies softmax(transform(hidden @ weight.T + bias)), (points, pos); topk has a third axis.

        `hidden[0]` was read at FINAL: `kl` compares with its policy. `targets` are the tokens that came next. `scale`
        belongs to `hidden[1 : 1 + scaled]`: `entropy_at_input_norm` is the entropy after multiplying these states by it
        (NaN at the other points); for large scales it approaches ln of how many tokens share the largest logit.
        Entropies and `kl` are in nats, `rank` 1 is the most likely token. Logits within the rounding bound of the
        target's own, 2 eps |hidden| |row|, tie with it. A NaN policy has NaN numbers.
        Memory doesn't grow with the vocabulary: logits exist one tile at a time, in float32 or better.
        """
        if not set(self.measures) & FROM_LOGITS:
            return {}
        if scale is not None:
            scale = scale.clamp(max=torch.finfo(scale.dtype).max)  # 0 times infinity would be NaN
        wanted = Wanted(self.weight, self.transform, self.measures, self.top_k, self.bias)
        if self.matmul == "native" and precision(hidden.dtype) == torch.float32:
            from internal_policy.measure import native

            return native.measure(wanted, hidden, targets, scale)
        if hidden.is_cuda or self.matmul not in MATMULS:
            plain = self.bias is not None or not {*SPREAD}.isdisjoint(self.measures)  # which Triton's kernels lack
            how = "stacked" if plain or hidden.dtype != self.weight.dtype else self.matmul
            return measure_stacked(*folds(how), wanted, hidden, targets, scale)
        return self._tile_by_tile(hidden, targets, scale)

    def _tile_by_tile(
        self,
        hidden: Float[Tensor, "points pos d_model"],
        targets: Int[Tensor, " pos"],
        scale: Float[Tensor, "scaled pos"] | None,
    ) -> dict[str, Tensor]:
        """Measure with one of `MATMULS`."""
        points, positions, d_model = hidden.shape
        step = max(1, TILE_ROWS // positions)
        scaled = 0 if scale is None or "entropy_at_input_norm" not in self.measures else len(scale)
        starts = [0, *range(1, 1 + scaled, step), *range(1 + scaled, points, step)]
        spans = [slice(a, b) for a, b in zip(starts, [*starts[1:], points], strict=True)]
        rows = [hidden[span].reshape(-1, d_model) for span in spans]

        def logits(tile: Tensor) -> Iterator[Tensor]:
            multiply = MATMULS[self.matmul](tile, TILE_ROWS)
            return (multiply(row).unflatten(0, (-1, positions)) for row in rows)

        bias = None if self.bias is None else self.bias.to(precision(hidden.dtype))
        own, own_bias = self.weight[targets], 0 if bias is None else bias[targets]
        tallies = [
            Tally(
                self,
                # rounding must not rank a token, or a copy of it, above itself
                z.diagonal(dim1=1, dim2=2)
                + own_bias
                + 2 * torch.finfo(z.dtype).eps * (norm(hidden[span]) * norm(own) + abs(own_bias)),
                scale[span.start - 1 : span.stop - 1] if scale is not None and 0 < span.start <= scaled else None,
            )
            for span, z in zip(spans, logits(own), strict=True)
        ]
        size = max(len(row) for row in rows) * TILE_VOCAB
        scratch, final_scratch = tallies[0].aim.new_empty(2, size), tallies[0].aim.new_empty(2, positions * TILE_VOCAB)
        for start in range(0, len(self.weight), TILE_VOCAB):
            tiles = zip(tallies, logits(self.weight[start : start + TILE_VOCAB]), strict=True)
            add = None if bias is None else bias[start : start + TILE_VOCAB]
            first, z = next(tiles)
            final = first.add(z, start, targets, None, final_scratch, add)  # kept while the others compare with it
            for tally, z in tiles:
                tally.add(z, start, targets, final if "kl" in self.measures else None, scratch, add)
        results = [tally.result(tallies[0]) for tally in tallies]
        return {name: torch.cat([result[name] for result in results]) for name in results[0]}


def folds(name: str) -> tuple[Fold, Callable[[Wanted, int], int]]:
    """What folds hidden states on a GPU, and the memory it needs: "fused" is in Triton, any other in PyTorch alone."""
    if name == "fused":
        from internal_policy.measure import fused

        return fused.fold, fused.token_bytes
    return fold, token_bytes


@dataclass
class Moments:
    """Running s = sum e^u and t = sum u e^u with u = z - max z, over the vocabulary seen so far."""

    s: Tensor
    t: Tensor

    def add(self, u: Float[Tensor, "points pos tile"], shrink: Float[Tensor, "points pos"], out: Tensor) -> Tensor:
        """Add a tile; the maximum has risen by -`shrink` since the last. Overwrites `u`. Returns e^u, in `out`."""
        weights = torch.exp(u.clamp_(min=LOWEST), out=out)
        shrink = shrink.clamp(min=LOWEST)  # a large scale times EMPTY is -inf
        fade = shrink.exp()
        self.t = fade * (self.t + self.s * shrink) + (u.mul_(weights)).sum(-1)
        self.s = fade * self.s + weights.sum(-1)
        return weights

    def entropy(self) -> Float[Tensor, "points pos"]:
        """Shannon entropy in nats."""
        return self.s.log() - self.t / self.s


@dataclass(frozen=True)
class FinalTile:
    """A tile of the final policy, which the other policies need to measure KL."""

    weights: Float[Tensor, "points pos tile"]
    """e^u of the final policy."""
    shrink: Float[Tensor, "points pos"]
    s_before: Float[Tensor, "points pos"]


class Tally:
    """The numbers of a few hook points at the same positions, over the vocabulary seen so far."""

    def __init__(self, kernel: Kernel, aim: Float[Tensor, "points pos"], scale: Tensor | None) -> None:
        """`aim` is the logit of the token that came next, known before the first tile; ranks compare with it.

        `aim`, `largest`, `target` and `top_logits` are taken before the logit transform. It keeps their order, but may
        make ties, because tanh of all large values is 1.
        """
        zero = torch.zeros_like(aim)
        self.aim, self.scale, self.transform = aim, scale, kernel.transform
        self.measures, self.top_k = kernel.measures, kernel.top_k if "topk" in kernel.measures else 0
        self.largest, self.scaled_largest = torch.full_like(aim, EMPTY), torch.full_like(aim, EMPTY)
        self.policy, self.scaled, self.cross = Moments(zero, zero), Moments(zero, zero), zero
        self.above, self.target = torch.zeros_like(aim), aim.clone()
        self.spread = None if {*SPREAD}.isdisjoint(self.measures) else Spread(aim)
        self.top_logits = aim.new_full((*aim.shape, self.top_k), -torch.inf)
        self.top_ids = torch.zeros_like(self.top_logits, dtype=torch.int64)

    def add(
        self,
        z: Float[Tensor, "points pos tile"],
        start: int,
        targets: Int[Tensor, " pos"],
        final: FinalTile | None,
        scratch: Float[Tensor, "2 entries"],
        bias: Float[Tensor, " tile"] | None = None,
    ) -> FinalTile:
        """Add `z` + `bias`, the unembedding's logits of a tile that begins at `start`. Overwrites `z` and `scratch`."""
        room, more_room = scratch[:, : z.numel()].view(2, *z.shape)
        follows = self.transform.cap is not None or bias is not None  # a cap and a bias come after the scale
        if self.scale is not None and follows:
            scaled = torch.mul(z, self.scale.unsqueeze(-1), out=room)
            scaled = scaled if bias is None else scaled.add_(bias)
            before, self.scaled_largest = self.scaled_largest, torch.maximum(self.scaled_largest, scaled.amax(-1))
            self.scaled.add(*self._below(scaled, before, self.scaled_largest), out=more_room)
        z = z if bias is None else z.add_(bias)
        if "rank" in self.measures or "logprob" in self.measures:
            self._follow_target(z, start, targets, room)
        if self.top_k:
            self._keep_largest(z, start)
        before, self.largest = self.largest, torch.maximum(self.largest, z.amax(-1))
        u, shrink = self._below(z, before, self.largest)
        if final is not None:
            fade = final.shrink.exp()
            self.cross = fade * (self.cross + final.s_before * shrink) + torch.mul(u, final.weights, out=room).sum(-1)
        if self.scale is not None and not follows:
            self.scaled.add(torch.mul(u, self.scale.unsqueeze(-1), out=room), shrink * self.scale, out=more_room)
        if self.spread is not None:
            self.spread.add_logits(u, self.transform(self.largest), out=room)
        s_before = self.policy.s
        weights = self.policy.add(u, shrink, out=more_room)
        if self.spread is not None:
            self.spread.add_weights(weights, shrink.clamp(min=LOWEST).exp(), out=room)
        return FinalTile(weights, shrink, s_before)

    def _below(self, z: Tensor, before: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """How far the policy's logits are below their maximum, in place of `z`, and minus how much that has risen.

        The maxima now and `before` come from the largest logits, because the transform keeps the order.
        """
        maximum = self.transform(largest)
        return self.transform.overwrite(z).sub_(maximum.unsqueeze(-1)), self.transform(before) - maximum

    def _follow_target(self, z: Tensor, start: int, targets: Tensor, scratch: Tensor) -> None:
        self.above += torch.gt(z, self.aim.unsqueeze(-1), out=scratch).sum(-1)
        here = ((targets >= start) & (targets < start + z.shape[-1])).nonzero().squeeze(-1)
        own = z[:, here, targets[here] - start]
        self.target[:, here] = own

    def _keep_largest(self, z: Tensor, start: int) -> None:
        groups = z.shape[-1] // GROUP
        if groups > self.top_k and z.shape[-1] % GROUP == 0:
            maxima = z.unflatten(-1, (GROUP, groups)).amax(-2)
            best = maxima.topk(self.top_k).indices  # group g holds the entries g, g + groups, g + 2 groups, ...
            ids = (best.unsqueeze(-1) + groups * torch.arange(GROUP, device=z.device)).flatten(-2)
            logits = z.gather(-1, ids)
        else:
            ids = torch.arange(z.shape[-1], device=z.device).expand(z.shape)
            logits = z
        logits, ids = torch.cat([self.top_logits, logits], -1), torch.cat([self.top_ids, ids + start], -1)
        self.top_logits, order = logits.topk(self.top_k)
        self.top_ids = ids.gather(-1, order)

    def result(self, final: "Tally") -> dict[str, Tensor]:
        """Every requested number, (points, pos), topk (points, pos, top_k)."""
        normaliser = self.transform(self.largest) + self.policy.s.log()
        result = {
            "entropy": self.policy.entropy(),
            "logprob": self.transform(self.target) - normaliser,
            "rank": (self.above + 1).masked_fill(normaliser.isnan(), torch.nan),
            "topk_ids": self.top_ids,
            "topk_probs": (self.transform(self.top_logits) - normaliser.unsqueeze(-1)).exp(),
            "kl": (self.policy.s.log() - self.cross / final.policy.s - final.policy.entropy()).clamp(min=0),
            "entropy_at_input_norm": self.aim * torch.nan if self.scale is None else self.scaled.entropy(),
            **({} if self.spread is None else self.spread.result(self.policy.s)),
        }
        return {n: v for n, v in result.items() if n.removesuffix("_ids").removesuffix("_probs") in self.measures}
