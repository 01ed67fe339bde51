"""Measure every internal policy of a model at every token of its responses."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from internal_policy.errors import InputError, joined
from internal_policy.measure.choice import choose
from internal_policy.measure.controls import DIRECTIONS, OF_STATES, SEED, Controls, of_kernel
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.metrics import MEASURES
from internal_policy.models import quantized
from internal_policy.models.families import check_sites, layer_sites, place, row_of, sites_of
from internal_policy.models.head import bias_of, logit_transform
from internal_policy.models.memory import in_halves
from internal_policy.models.naming import title
from internal_policy.models.passes import evaluating, positions
from internal_policy.models.policy import READOUTS, Lens, Readout, opened_at, read_out, readout_name
from internal_policy.models.vocabulary import vocabulary
from internal_policy.scans.blocks import blocks
from internal_policy.scans.positions import Positions, recorded
from internal_policy.scans.reader import Measured, Reader, reader_of
from internal_policy.scans.selection import Plan, Selection, lacking, plan
from internal_policy.scans.shard import WHOLE, Shard
from internal_policy.scans.store import Tables
from internal_policy.scans.tables import Numbers, layers_table, nothing, policies_table, rows_table
from internal_policy.tasks.rollouts import Rollout, check_ids, to_table

NO_LENSES: Mapping[str, Lens] = MappingProxyType({})
"""Name in a selection -> lens; here there are none."""
OnPiece = Callable[[pa.Table], None]
"""Called with each piece of the table `policies` when it is measured: one readout at a few tokens."""


def scan(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Sequence[Rollout],
    *,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    readouts: Sequence[Readout] = READOUTS,
    measures: Sequence[str] = MEASURES,
    top_k: int = 5,
    positions: tuple[int, int | None] = (0, None),
    every: int = 1,
    batch_size: int = 8,
    shard: Shard = WHOLE,
    advance: Callable[[int], None] = lambda _: None,
) -> Tables:
    """Measure the policies of `model` at every response token of `rollouts`; None means all its layers or sites.

    `positions` are the first and the last to measure in each response (None for the end), and `every` their distance.
    `advance` is called after each batch with its number of rollouts.

    `model` is a Hugging Face model, or one wrapped by PEFT, TransformerLens or nnsight (see `reader_of`). Raises
    InputError for a layer, site, readout or measure that doesn't exist or is listed twice, for a batch size below 1,
    for a shard without batches, and for a rollout that the model can't read.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be 1 or more.")
    reader = reader_of(model)
    selection = Selection(
        tuple(range(reader.n_layers) if layers is None else layers),
        tuple(sites_of(reader.model.config) if sites is None else sites),
        tuple(map(readout_name, readouts)),
        tuple(measures),
        top_k,
        Positions(*positions, every),
    )
    lenses = {readout_name(readout): readout for readout in readouts if not isinstance(readout, str)}
    scanner = Scanner.of(reader, selection, lenses)
    check_sites(reader.model.config, selection.layers, sites or ())
    check_rollouts(reader, rollouts)
    selection.positions.check(max(len(rollout.response_ids) for rollout in rollouts))
    mine = _batches(rollouts, batch_size, shard)
    tables = []
    for first, batch in mine.items():
        tables.append((numbered(batch, first), *scanner.measure(batch, first)))
        advance(len(batch))
    rollout_rows, policies, layer_means = (pa.concat_tables(kind) for kind in zip(*tables, strict=True))
    texts = pa.Table.from_pandas(vocabulary(tokenizer, reader.unembedding.out_features), preserve_index=False)
    record = {
        **facts(scanner),
        "rollouts": len(rollout_rows),
        "tokens": scanner.tokens(len(rollout.response_ids) for batch in mine.values() for rollout in batch),
        "asked": {},
        **({"shard": str(shard), "all_rollouts": len(rollouts)} if shard.count > 1 else {}),
    }
    kinds = {"rollouts": rollout_rows, "policies": policies, "layers": layer_means, "vocabulary": texts}
    return Tables(record, kinds)


def _batches(rollouts: Sequence[Rollout], size: int, shard: Shard) -> dict[int, Sequence[Rollout]]:
    """The number of the first rollout of each batch of a shard -> the batch. Raises InputError if there is none."""
    batches = {first: rollouts[first : first + size] for first in range(0, len(rollouts), size)}
    mine = {first: batches[first] for first in shard.parts([*batches])}
    if not mine:
        raise InputError(
            f"Shard {shard} has no rollouts: {len(rollouts)} of them make only {len(batches)} batches of {size}. "
            "Use fewer shards or a smaller batch_size."
        )
    return mine


def facts(scanner: "Scanner") -> dict[str, Any]:
    """What the record of a scan says of its model and of what was measured in it."""
    reader = scanner.reader
    return {
        "model": name_of(reader.model),
        "family": reader.model.config.model_type,
        "row": dict(zip(("name", "proved"), row_of(reader.model.config), strict=True)),
        "n_layers": reader.n_layers,
        "d_model": reader.unembedding.in_features,
        "d_vocab": reader.unembedding.out_features,
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "device": str(reader.unembedding.weight.device),
        **quantized.facts(reader.model),
        "selection": recorded(scanner.selection),
        "lacking": scanner.lacking,
        **scanner.drawn,
    }


def name_of(model: PreTrainedModel) -> str:
    """The hub id or folder name of a loaded model, and the hook point where it is an internal policy."""
    name, point = model.config.name_or_path or model.config.model_type, opened_at(model)
    return title(name) if point is None else f"{title(name)} as {point}"


def numbered(rollouts: Sequence[Rollout], first: int = 0) -> pa.Table:
    """The table `rollouts`: the rollouts with their numbers, starting at `first`."""
    table = to_table(rollouts)
    return table.add_column(0, "rollout", pa.array(np.arange(first, first + len(rollouts), dtype=np.int32)))


def check_rollouts(model: Any, rollouts: Sequence[Rollout]) -> None:
    """Raise InputError for the first of `rollouts` that the model can't read, or if there are none."""
    reader = reader_of(model)
    longest, d_vocab = positions(reader.model.config), reader.unembedding.out_features
    if not rollouts:
        raise InputError("There are no rollouts to measure. Give at least one.")
    check_ids(rollouts, longest, d_vocab)


@dataclass(frozen=True, eq=False)
class Scanner:
    """A model and what to measure in it: built once, then given one batch of rollouts after another."""

    reader: Reader
    """The model."""
    selection: Selection
    """What to measure."""
    plan: Plan
    """The hidden states that the selection needs."""
    readouts: Mapping[str, Readout]
    """Name in the selection -> readout."""
    kernel: Kernel
    """Hidden states in, numbers out."""

    @classmethod
    def of(
        cls,
        model: Any,
        selection: Selection,
        lenses: Mapping[str, Lens] = NO_LENSES,
    ) -> "Scanner":
        """Prepare to measure `selection` of `model` with the fastest exact matrix product.

        Raises InputError for a layer, site or readout that the model doesn't have, and for a top-k it can't give.
        """
        reader = reader_of(model)
        config, weight = reader.model.config, reader.unembedding.weight
        if outside := [layer for layer in selection.layers if not 0 <= layer < reader.n_layers]:
            raise InputError(f"There is no layer {outside[0]}: the model's layers are 0 to {reader.n_layers - 1}.")
        for site in selection.sites:
            place(config, site)
        known: dict[str, Readout] = {**{name: name for name in READOUTS}, **lenses}
        if unknown := [name for name in selection.readouts if name not in known]:
            raise InputError(f"There is no readout '{unknown[0]}'. Choose from {', '.join(known)}.")
        if selection.top_k > len(weight):
            raise InputError(f"top-k is {selection.top_k}, but the model has only {len(weight)} tokens. Lower it.")
        planned = plan(selection, layer_sites(config))
        if reader.measure and (extra := [name for name in selection.measures if name in OF_STATES]):
            them = "it" if len(extra) == 1 else "them"
            raise InputError(f"A server can't measure {joined(extra)}. Leave {them} out, or load the model here.")
        kernel = Kernel(
            weight,
            logit_transform(reader.model),
            of_kernel(selection.measures),
            selection.top_k,
            choose(weight, weight.dtype),
            planned.unembedded,
            planned.inputs,
            planned.streams,
            bias_of(reader.unembedding),
        )
        return cls(reader, selection, planned, {name: known[name] for name in selection.readouts}, kernel)

    @property
    def lacking(self) -> dict[str, list[int]]:
        """Each selected site that some of the selected layers lack -> those layers."""
        return lacking(self.selection, layer_sites(self.reader.model.config))

    @property
    def drawn(self) -> dict[str, dict[str, int]]:
        """What the record says of the null states: the seed, and how many random directions; empty without them."""
        return {} if not self._controls.nulls else {"controls": {"seed": SEED, "directions": DIRECTIONS}}

    def tokens(self, lengths: Iterable[int]) -> int:
        """How many tokens of responses with these `lengths` are measured."""
        return sum(len(self.selection.positions.of(length)) for length in lengths)

    def measure(
        self,
        rollouts: Sequence[Rollout],
        first: int = 0,
        smaller: Callable[[int], None] = lambda _: None,
        on_piece: OnPiece | None = None,
    ) -> tuple[pa.Table, pa.Table]:
        """The tables `policies` and `layers` of one batch, whose first rollout is number `first`.

        If the batch doesn't fit into memory, it is measured in halves, and `smaller` is called with their size.
        `on_piece` is called with each piece of `policies` as soon as it is measured, and may stop the work by raising.
        """
        return self.measured(rollouts, first, smaller, on_piece)()

    def measured(
        self,
        rollouts: Sequence[Rollout],
        first: int = 0,
        smaller: Callable[[int], None] = lambda _: None,
        on_piece: OnPiece | None = None,
    ) -> Callable[[], tuple[pa.Table, pa.Table]]:
        """Measure now, and return a function that lays out the tables of `measure`, which another thread may call."""
        parts = in_halves(
            lambda span: self._numbers(rollouts[span], first + span.start, on_piece), len(rollouts), smaller
        )

        def tables() -> tuple[pa.Table, pa.Table]:
            policies = pa.concat_tables(policies_table(*part) for part in parts)
            return policies, pa.concat_tables(layers_table(*part) for part in parts)

        return tables

    @torch.inference_mode()
    def _numbers(
        self, rollouts: Sequence[Rollout], first: int, on_piece: OnPiece | None
    ) -> tuple[Numbers, Selection, Plan, int, Sequence[range], int]:
        """The arguments of `policies_table` and `layers_table`."""
        collected: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        order: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        measured = [self.selection.positions.of(len(rollout.response_ids)) for rollout in rollouts]
        with evaluating(self.reader.model):
            for index, tensors in self._measured(rollouts):
                piece = {
                    key: values.transpose(0, 1).to(torch.int32 if key[1] == "topk_ids" else torch.float32).contiguous()
                    for key, values in tensors.items()
                }
                for key, values in piece.items():
                    collected[key].append(values)
                    order[key].append(index.cpu().numpy())
                if on_piece is not None:
                    numbers = {key: values.cpu().numpy() for key, values in piece.items()}
                    on_piece(self._piece(numbers, index.cpu().numpy(), measured, first))
        numbers = {  # copied only now, because a GPU computes ahead until a number is needed
            key: np.take(torch.cat(values).cpu().numpy(), np.concatenate(order[key]).argsort(), 0)
            for key, values in collected.items()
        }
        numbers = numbers or nothing(self.selection, self.plan)
        return numbers, self.selection, self.plan, self.reader.n_layers, measured, first

    def _piece(self, numbers: Numbers, index: np.ndarray, measured: Sequence[range], first: int) -> pa.Table:
        """The rows of `policies` for the tokens number `index` of a batch."""
        readouts = tuple(dict.fromkeys(readout for readout, _ in numbers))
        ends = np.cumsum([len(positions) for positions in measured])
        row = np.searchsorted(ends, index, side="right")
        position = np.concatenate(measured)[index]
        return rows_table(
            numbers,
            replace(self.selection, readouts=readouts),
            self.plan,
            self.reader.n_layers,
            (first + row).astype(np.int32),
            position.astype(np.int32),
        )

    def _measured(self, rollouts: Sequence[Rollout]) -> Iterator[Measured]:
        if self.reader.measure:
            yield from self.reader.measure(
                rollouts, self.plan.points, tuple(self.readouts), self.kernel, self.selection.positions
            )
            return
        for index, targets, hidden in blocks(self.reader, rollouts, self.plan.points, self.selection.positions):
            for called, readout in reversed([*self.readouts.items()]):  # norm, which people look at first, before raw
                states = self._states(hidden, readout)
                found = self.kernel.numbers(hidden, targets, states)
                found |= self._controlled(hidden, targets, readout, states, found)
                yield index, {(called, name): values for name, values in found.items()}

    def _controlled(
        self, hidden: Tensor, targets: Tensor, readout: Readout, states: Tensor | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The numbers of `Controls`, given those of the policies; null states are read out like the others."""
        controls, read = self._controls, hidden[: self.plan.unembedded]
        numbers = {}
        if "entropy_at_input_scale" in controls.measures:
            of_input = read if states is None else states
            numbers["entropy_at_input_scale"] = controls.at_input_scale(of_input, targets, found["logit_scale"])
        for name, null in controls.nulls.items():
            made = null(read, targets)
            states = self._states(made, readout)
            numbers[name] = controls.entropy(made if states is None else states, targets)
        return numbers

    @cached_property
    def _controls(self) -> Controls:
        return Controls(self.kernel, tuple(name for name in self.selection.measures if name in OF_STATES))

    def _states(
        self, hidden: Float[Tensor, "points pos d_model"], readout: Readout
    ) -> Float[Tensor, "unembedded pos d_model"] | None:
        """The hidden states as `readout` brings them to the unembedding; None if it leaves them as they are."""
        states = hidden[: self.plan.unembedded]
        if readout == "raw":
            return None
        if readout == "norm":  # the policy at FINAL is the model's own whatever the readout
            return torch.cat([states[:1], read_out(self.reader.model, states[1:], readout).to(states.device)])
        return torch.stack(
            [
                read_out(self.reader.model, state.clone(), readout, point).to(state.device)
                for point, state in zip(self.plan.points, states, strict=False)
            ]
        )
