"""Measure how the model's own policy changes when a layer, attention block or FFN is taken away."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from internal_policy.errors import InputError
from internal_policy.measure.choice import choose
from internal_policy.measure.kernel import Kernel
from internal_policy.models.ablation import WRITES, ablatable, ablated, can_restart, recorded, restarted
from internal_policy.models.head import bias_of, logit_transform
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.memory import in_halves
from internal_policy.models.passes import alone, device_of, evaluating
from internal_policy.scans.blocks import GPU_TOGETHER, TOGETHER, WHOLE_BYTES, blocks, padded
from internal_policy.scans.effects import MEAN, MEASURES, REPLACEMENTS
from internal_policy.scans.positions import EVERY, Positions
from internal_policy.scans.reader import Reader, reader_of
from internal_policy.tasks.rollouts import Rollout

Target = tuple[int, str]
"""A layer, and what is ablated of it: layer (all of it), attn or mlp."""
Averages = Mapping[Target, Float[Tensor, " d_model"]]
"""What each target adds to the stream, as a mean over tokens."""
Advance = Callable[[int, int], None]
"""Called with the rollouts and with the tokens that were measured, for each layer."""
PROBE = 16
"""Tokens of the text by which `Ablator.of` finds out whether passes can restart at a layer."""
OF_POLICIES = ("entropy", "logprob", "kl", "topk")
"""What the kernel measures of an ablated model."""


def targets_of(model: Any, layers: Sequence[int], modules: Sequence[str]) -> list[Target]:
    """What can be ablated in these layers. Raises InputError for an unknown module or layer, and if nothing is left."""
    if unknown := [module for module in modules if module not in WRITES]:
        raise InputError(f"There is no module '{unknown[0]}'. Choose from {', '.join(WRITES)}.")
    known = ablatable(model)
    if outside := {*layers} - {layer for layer, _ in known}:
        raise InputError(f"Layer {min(outside)} can't be ablated, because the model doesn't have it or doesn't run it.")
    found = [target for target in known if target[0] in layers and target[1] in modules]
    if not found:
        raise InputError(f"These layers have no {' or '.join(modules)} to ablate. Choose other layers or modules.")
    return found


def averages(
    model: Any,
    batches: Sequence[Sequence[Rollout]],
    targets: Sequence[Target],
    positions: Positions = EVERY,
    *,
    advance: Advance = lambda *_: None,
    smaller: Callable[[int], None] = lambda _: None,
) -> dict[Target, Float[Tensor, " d_model"]]:
    """What each target adds to the stream, as a mean in float64 over the positions where response tokens are predicted.

    Memory that runs out halves a batch, and then calls `smaller` with its size.
    """
    reader = reader_of(model)
    points = list(dict.fromkeys(point for target in targets for point in _points(target)))
    row = {point: number for number, point in enumerate(points)}
    total, count = torch.zeros(len(points), reader.unembedding.in_features, dtype=torch.float64), 0

    def summed(rollouts: Sequence[Rollout]) -> tuple[Tensor, int]:
        found, tokens = torch.zeros_like(total), 0
        for index, _, hidden in blocks(reader, rollouts, points, positions):
            found += hidden.double().sum(1).cpu()
            tokens += len(index)
        return found, tokens

    with torch.inference_mode(), evaluating(reader.model):
        for batch in batches:
            parts = in_halves(lambda span, batch=batch: summed(batch[span]), len(batch), smaller)
            total += sum(part for part, _ in parts)
            tokens = sum(tokens for _, tokens in parts)
            count += tokens
            advance(len(batch), tokens)
    if not count:
        raise InputError("There are no response tokens to average over. Choose other rollouts.")
    mean = total / count
    after = {target: mean[row[_points(target)[-1]]] for target in targets}
    return {
        target: value - mean[row[_points(target)[0]]] if target[1] == "layer" else value
        for target, value in after.items()
    }


def _points(target: Target) -> list[HookPoint]:
    """The hook points that tell what a target adds to the stream: a layer adds its output minus its input."""
    layer, module = target
    return [HookPoint(layer, site) for site in (*(["resid_pre"] if module == "layer" else []), WRITES[module])]


@dataclass(frozen=True, eq=False)
class Ablator:
    """A model, and what is taken away of it, one by one: built once, then given one batch after another."""

    reader: Reader
    """The model."""
    kernel: Kernel
    """Final hidden states in, numbers out."""
    targets: Sequence[Target]
    """What is ablated, by layer."""
    replacements: Sequence[str]
    """How: zero, mean, or both."""
    averages: Averages
    """What replaces each target with `mean`."""
    restarts: bool
    """Whether only the layers from the ablated one upward run again."""
    positions: Positions = EVERY
    """The positions of each response that are measured."""

    @classmethod
    def of(
        cls,
        model: Any,
        targets: Sequence[Target],
        replacements: Sequence[str],
        averages: Averages,
        probe: Sequence[int],
        positions: Positions = EVERY,
        matmul: str | None = None,
    ) -> "Ablator":
        """Prepare with the fastest exact matrix product, unless `matmul` names one.

        The token ids `probe` tell whether passes can restart. Raises InputError for an unknown replacement, and for a
        target without an average.
        """
        if unknown := [name for name in replacements if name not in REPLACEMENTS]:
            raise InputError(f"There is no replacement '{unknown[0]}'. Choose from {', '.join(REPLACEMENTS)}.")
        if MEAN in replacements and (missing := [target for target in targets if target not in averages]):
            raise InputError(f"There is no mean for the {missing[0][1]} of layer {missing[0][0]}. Compute its average.")
        reader = reader_of(model)
        weight = reader.unembedding.weight
        kernel = Kernel(
            weight,
            logit_transform(reader.model),
            OF_POLICIES,
            1,
            matmul or choose(weight, weight.dtype),
            bias=bias_of(reader.unembedding),
        )
        ids = torch.tensor([list(probe)[:PROBE]], device=device_of(reader.model))
        with torch.inference_mode(), evaluating(reader.model):
            restarts = can_restart(reader.model, ids)
        return cls(reader, kernel, targets, replacements, averages, restarts, positions)

    def effects(
        self,
        rollouts: Sequence[Rollout],
        first: int = 0,
        *,
        advance: Advance = lambda *_: None,
        smaller: Callable[[int], None] = lambda _: None,
    ) -> pa.Table:
        """The table `effects` of a batch, whose first rollout is number `first`; see docs/columns.md.

        `advance` is called for every layer. If the batch doesn't fit into memory, it is measured in halves, and
        `smaller` is called with their size.
        """
        tables: list[pa.Table] = []
        size = self._together(rollouts)
        for start in range(0, len(rollouts), size):
            some = rollouts[start : start + size]
            tables += in_halves(
                lambda span, some=some, at=first + start: self._effects(some[span], at + span.start, advance),
                len(some),
                smaller,
            )
        return pa.concat_tables(tables)

    def _together(self, rollouts: Sequence[Rollout]) -> int:
        """How many rollouts are read at once, because the states of all layers are kept to restart from."""
        weight = self.reader.unembedding.weight
        width = max(len(rollout.ids) for rollout in rollouts)
        kept = len({layer for layer, _ in self.targets}) if self.restarts else 1
        return max(1, WHOLE_BYTES // (kept * width * weight.shape[1] * weight.element_size()))

    @torch.inference_mode()
    def _effects(self, rollouts: Sequence[Rollout], first: int, advance: Advance) -> pa.Table:
        ids, number = padded(rollouts, self.positions)
        at = (number >= 0).flatten().nonzero().squeeze(-1)
        counts = np.array([len(self.positions.of(len(rollout.response_ids))) for rollout in rollouts])
        if not len(at):
            return _table([], counts, first)
        weight = self.reader.unembedding.weight
        following = ids.roll(-1, 1).flatten()[at].to(weight.device)
        lengths, ids = [len(rollout.ids) for rollout in rollouts], ids.to(device_of(self.reader.model))
        layers = list(dict.fromkeys(layer for layer, _ in self.targets))
        below = [layer - 1 for layer in layers if layer and self.restarts]
        found: list[dict[str, Any]] = []
        with evaluating(self.reader.model), alone(self.reader.model, lengths):
            with recorded(self.reader.model, below) as outputs:
                own = self._final(ids, at)
            for layer in layers:
                names, states = [], [own]
                for name, vector, point in self._ablations(layer):
                    with ExitStack() as stack:
                        if layer - 1 in outputs:
                            stack.enter_context(restarted(self.reader.model, layer, outputs[layer - 1]))
                        stack.enter_context(ablated(self.reader.model, point, vector))
                        states.append(self._final(ids, at))
                    names.append(name)
                changes = self._changes(torch.stack(states), following)
                found += [
                    {"layer": layer, **name, **{measure: values[row] for measure, values in changes.items()}}
                    for row, name in enumerate(names)
                ]
                advance(len(rollouts), len(at) * len(names))
        return _table(found, counts, first)

    def _ablations(self, layer: int) -> Iterator[tuple[dict[str, str], Tensor | None, HookPoint]]:
        """What is ablated of a layer, and how: its names in the table, the replacement, the hook point."""
        for at, module in self.targets:
            for name in self.replacements if at == layer else ():
                vector = self.averages[at, module] if name == MEAN else None
                yield {"module": module, "replacement": name}, vector, HookPoint(layer, WRITES[module])

    def _final(self, ids: Int[Tensor, "batch seq"], at: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
        """The hidden states after the final norm where response tokens are predicted."""
        seen: list[Tensor] = []
        self.reader.run([FINAL], lambda _, state: seen.append(state), input_ids=ids, use_cache=False)
        weight = self.reader.unembedding.weight
        return seen[-1].flatten(0, 1)[at.to(seen[-1].device)].to(weight.device, weight.dtype)

    def _changes(
        self, states: Float[Tensor, "points pos d_model"], following: Int[Tensor, " pos"]
    ) -> dict[str, np.ndarray]:
        """How the policy of each state after the first differs from that of the first, at each position."""
        together = GPU_TOGETHER if states.is_cuda else max(TOGETHER, torch.get_num_threads())
        pieces = [
            self.kernel.measure(hidden, tokens)
            for hidden, tokens in zip(states.split(together, 1), following.split(together), strict=True)
        ]
        numbers = {name: torch.cat([piece[name] for piece in pieces], 1) for name in pieces[0]}
        top = numbers["topk_ids"][..., 0]
        found = {
            "kl": numbers["kl"][1:],
            "logprob_change": numbers["logprob"][1:] - numbers["logprob"][:1],
            "entropy_change": numbers["entropy"][1:] - numbers["entropy"][:1],
            "top_changed": (top[1:] != top[:1]).to(torch.float64),
        }
        return {name: values.double().cpu().numpy() for name, values in found.items()}


def _table(rows: Sequence[Mapping[str, Any]], counts: np.ndarray, first: int) -> pa.Table:
    """Means over the tokens of each rollout: a row per rollout and ablation. Rollouts without tokens are left out.

    A row has the names of an ablation and each measure at all tokens of all rollouts, which have so many `counts`.
    """
    some = np.flatnonzero(counts)
    lengths, starts = counts[some], np.cumsum([0, *counts[some]])[:-1]

    def means(measure: str) -> np.ndarray:
        found = [np.add.reduceat(row[measure], starts) / lengths for row in rows]
        return np.concatenate(found) if found else np.empty(0)

    def named(name: str) -> list[Any]:
        return [row[name] for row in rows for _ in some]

    return pa.table(
        {
            "rollout": pa.array(np.tile(first + some, len(rows)).astype(np.int32)),
            "layer": pa.array(named("layer"), pa.int32()),
            "module": pa.array(named("module"), pa.string()),
            "replacement": pa.array(named("replacement"), pa.string()),
            "tokens": pa.array(np.tile(lengths, len(rows)).astype(np.int32)),
            **{measure: pa.array(means(measure), pa.float64()) for measure in MEASURES},
        }
    )
