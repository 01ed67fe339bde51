"""Measure entropies of scaled and uninformative states, which tell whether a pattern of the policies' is real."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internal_policy.measure.kernel import Kernel
from internal_policy.measure.metrics import norm, precision, scale_to

SEED, DIRECTIONS = 0, 64
"""Seed of the permutation and of the random directions, and how many directions there are."""
NULLS = ("entropy_shuffled", "entropy_random")
"""Entropies of states that know nothing of the text."""
OF_STATES = ("entropy_at_input_scale", *NULLS)
"""Measures of this file, which need the policies of other hidden states than those that were read."""


def of_kernel(measures: Sequence[str]) -> tuple[str, ...]:
    """Those of a scan's `measures` that its kernel takes from the policies, with those that `Controls` need."""
    own = [name for name in measures if name not in OF_STATES]
    needed = ["logit_scale"] if "entropy_at_input_scale" in measures else []
    return tuple(dict.fromkeys([*own, *needed]))


Null = Callable[[Float[Tensor, "points pos d_model"], Int[Tensor, " pos"]], Float[Tensor, "points pos d_model"]]
"""Turns hidden states, and the tokens that came next, into states of the same norms that know nothing of the text."""


@dataclass(frozen=True, eq=False)
class Controls:
    """What to measure besides the policies: built once for a scan, and used for every block of hidden states."""

    kernel: Kernel
    """How policies are measured; `inputs` are the rows whose logit scales the rows 1, 2, ... are brought to."""
    measures: tuple[str, ...]
    """Those of OF_STATES to compute."""

    @property
    def nulls(self) -> Mapping[str, Null]:
        """Measure -> the null states whose entropy it is, for the measures that were asked for."""
        known: dict[str, Null] = {"entropy_shuffled": self.shuffled, "entropy_random": self.random}
        return {name: null for name, null in known.items() if name in self.measures}

    def shuffled(
        self,
        hidden: Float[Tensor, "points pos d_model"],
        targets: Int[Tensor, " pos"],  # noqa: ARG002
    ) -> Float[Tensor, "points pos d_model"]:
        """Hidden states with permuted coordinates: what an unembedding with shuffled columns would read.

        There is one permutation, whatever the hook point and the token.
        """
        return hidden[..., self._order]

    def random(
        self, hidden: Float[Tensor, "points pos d_model"], targets: Int[Tensor, " pos"]
    ) -> Float[Tensor, "points pos d_model"]:
        """Random directions with the norms of the hidden states.

        There are DIRECTIONS of them. The token that came next decides which, so that a mean over tokens is one over
        directions, and neither the batch nor the hook point matters.
        """
        return (self._directions[targets % DIRECTIONS] * norm(hidden).unsqueeze(-1)).to(hidden.dtype)

    def at_input_scale(
        self,
        states: Float[Tensor, "unembedded pos d_model"],
        targets: Int[Tensor, " pos"],
        logit_scale: Float[Tensor, "unembedded pos"],
    ) -> Float[Tensor, "unembedded pos"]:
        """Entropy (nats) after multiplying the rows 1, 2, ... of `states` by their inputs' logit scale over their own.

        `states` are what the unembedding reads, so this exists for every readout. The result has the input's logit
        scale exactly unless the logits have a bias, which isn't scaled, or a cap. NaN at the other rows.
        """
        count = len(self.kernel.inputs)
        found = torch.full_like(logit_scale, torch.nan)
        if count:
            scale = scale_to(logit_scale[self._inputs], logit_scale[1 : 1 + count])
            scaled = replace(self.kernel, measures=("entropy_at_input_norm",))
            found[1 : 1 + count] = scaled.measure(states[: 1 + count], targets, scale)["entropy_at_input_norm"][1:]
        return found

    def entropy(
        self, states: Float[Tensor, "points pos d_model"], targets: Int[Tensor, " pos"]
    ) -> Float[Tensor, "points pos"]:
        """Entropy (nats) of the policies of states as the unembedding reads them."""
        return replace(self.kernel, measures=("entropy",)).measure(states, targets)["entropy"]

    @cached_property
    def _inputs(self) -> Int[Tensor, " scaled"]:
        return torch.tensor(self.kernel.inputs, dtype=torch.int64, device=self.kernel.weight.device)

    @cached_property
    def _order(self) -> Int[Tensor, " d_model"]:
        order = torch.randperm(self.kernel.weight.shape[1], generator=torch.Generator().manual_seed(SEED))
        return order.to(self.kernel.weight.device)

    @cached_property
    def _directions(self) -> Float[Tensor, "directions d_model"]:
        generator = torch.Generator().manual_seed(SEED)
        normal = torch.randn(DIRECTIONS, self.kernel.weight.shape[1], generator=generator, dtype=torch.float64)
        weight = self.kernel.weight
        return torch.nn.functional.normalize(normal, dim=-1).to(weight.device, precision(weight.dtype))
