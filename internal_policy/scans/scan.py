"""Measure every internal policy of a model at every token of its responses."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from internal_policy.errors import InputError
from internal_policy.measure import metrics
from internal_policy.measure.matmul import choose
from internal_policy.models.families import head, place, sites_of
from internal_policy.models.hooks import HookPoint, check_visits
from internal_policy.models.passes import alone, device_of, evaluating, positions
from internal_policy.models.policy import READOUTS, Lens, Readout, read_out, readout_name
from internal_policy.models.vocabulary import vocabulary
from internal_policy.scans.reader import Measured, Reader, reader_of
from internal_policy.scans.selection import Plan, Selection, plan
from internal_policy.scans.store import Tables
from internal_policy.scans.tables import layers_table, policies_table
from internal_policy.tasks.rollouts import Rollout, to_table

STATE_BYTES = 64 * 2**20
"""Hidden states held at once; longer texts are read in pieces, each going on from the key-value cache of the last."""
PREFILL = 1024
"""Positions of the prompt read at once: nothing of them is held."""
TOGETHER = 128
"""Positions measured together."""
NO_LENSES: Mapping[str, Lens] = MappingProxyType({})
"""By the names that a selection has for them."""


def scan(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Sequence[Rollout],
    *,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    readouts: Sequence[Readout] = ("raw",),
    measures: Sequence[str] = metrics.MEASURES,
    top_k: int = 5,
    batch_size: int = 8,
) -> Tables:
    """Measure the policies of `model` at every response token of `rollouts`; `layers` or `sites` None for all it has.

    `model` is one of Hugging Face, or what PEFT, TransformerLens or nnsight made of it (`reader.reader_of`). Raises
    InputError for a layer, site, readout or measure that does not exist or is given twice, for a batch size below 1,
    and for a rollout that the model cannot read.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be 1 or more.")
    reader = reader_of(model)
    chosen = Selection(
        tuple(range(reader.n_layers) if layers is None else layers),
        tuple(sites_of(reader.model.config) if sites is None else sites),
        tuple(map(readout_name, readouts)),
        tuple(measures),
        top_k,
    )
    lenses = {readout_name(readout): readout for readout in readouts if not isinstance(readout, str)}
    check(reader, chosen, rollouts, lenses)
    batches = range(0, len(rollouts), batch_size)
    tables = [
        measure(reader, rollouts[first : first + batch_size], chosen, first=first, lenses=lenses) for first in batches
    ]
    policies, summaries = (pa.concat_tables(kind) for kind in zip(*tables, strict=True))
    texts = pa.Table.from_pandas(vocabulary(tokenizer, reader.unembedding.out_features), preserve_index=False)
    record = {
        "model": reader.model.config.name_or_path or reader.model.config.model_type,
        "family": reader.model.config.model_type,
        "n_layers": reader.n_layers,
        "d_model": reader.unembedding.in_features,
        "d_vocab": reader.unembedding.out_features,
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "device": str(reader.model.device),
        "selection": asdict(chosen),
        "rollouts": len(rollouts),
        "tokens": sum(len(rollout.response_ids) for rollout in rollouts),
        "asked": {},
    }
    kinds = {"rollouts": numbered(rollouts), "policies": policies, "layers": summaries, "vocabulary": texts}
    return Tables(record, kinds)


def numbered(rollouts: Sequence[Rollout], first: int = 0) -> pa.Table:
    """The table `rollouts`: the rollouts with their numbers, from `first` on."""
    table = to_table(rollouts)
    return table.add_column(0, "rollout", pa.array(np.arange(first, first + len(rollouts), dtype=np.int32)))


def check(
    model: Any, selection: Selection, rollouts: Sequence[Rollout], lenses: Mapping[str, Lens] = NO_LENSES
) -> None:
    """Refuse before any work what the model cannot measure. Raises InputError."""
    reader = reader_of(model)
    n_layers, d_vocab = reader.n_layers, reader.unembedding.out_features
    if outside := [layer for layer in selection.layers if not 0 <= layer < n_layers]:
        raise InputError(f"There is no layer {outside[0]}: the model's layers are 0 to {n_layers - 1}.")
    for site in selection.sites:
        place(reader.model.config, site)
    if unknown := [name for name in selection.readouts if name not in (*READOUTS, *lenses)]:
        raise InputError(f"There is no readout '{unknown[0]}'; known are {', '.join((*READOUTS, *lenses))}.")
    if selection.top_k > d_vocab:
        raise InputError(f"top-k is {selection.top_k}, but the model has only {d_vocab} tokens.")
    if not rollouts:
        raise InputError("There are no rollouts to measure.")
    longest = positions(reader.model.config)
    for number, rollout in enumerate(rollouts):
        if not rollout.prompt_ids or not rollout.response_ids:
            raise InputError(f"Rollout {number} has no {'response' if rollout.prompt_ids else 'prompt'} tokens.")
        if outside := [token for token in rollout.ids if not 0 <= token < d_vocab]:
            raise InputError(
                f"Rollout {number} has token id {outside[0]}, but the model's are 0 to {d_vocab - 1}; is it another's?"
            )
        if len(rollout.ids) > longest:
            raise InputError(
                f"Rollout {number} has {len(rollout.ids)} tokens, but the model reads at most {longest}; remove it."
            )


def measure(
    model: Any,
    rollouts: Sequence[Rollout],
    selection: Selection,
    *,
    first: int = 0,
    product: str | None = None,
    smaller: Callable[[int], None] = lambda _: None,
    lenses: Mapping[str, Lens] = NO_LENSES,
) -> tuple[pa.Table, pa.Table]:
    """The tables `policies` and `layers` of one batch, whose first rollout is number `first`.

    Where the batch does not fit into memory, halves of it are measured, and `smaller` is told how many rollouts.
    """
    try:
        return _measure(reader_of(model), rollouts, selection, first, product, lenses)
    except RuntimeError as error:
        if len(rollouts) == 1 or not should_reduce_batch_size(error):
            raise
    clear_device_cache(garbage_collection=True)
    half = (len(rollouts) + 1) // 2
    smaller(half)
    parts = [
        measure(model, part, selection, first=first + start, product=product, smaller=smaller, lenses=lenses)
        for start, part in ((0, rollouts[:half]), (half, rollouts[half:]))
    ]
    policies, summaries = (pa.concat_tables(kind) for kind in zip(*parts, strict=True))
    return policies, summaries


@torch.inference_mode()
def _measure(
    reader: Reader,
    rollouts: Sequence[Rollout],
    selection: Selection,
    first: int,
    product: str | None,
    lenses: Mapping[str, Lens],
) -> tuple[pa.Table, pa.Table]:
    planned = plan(selection, sites_of(reader.model.config))
    collected: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    order: list[Tensor] = []
    with evaluating(reader.model):
        if reader.measure:
            measured = reader.measure(rollouts, planned, selection)
        else:
            measured = _measured(reader, rollouts, planned, selection, product, lenses)
        for index, numbers in measured:
            order.append(index)
            for (readout, name), values in numbers.items():
                collected[readout, name].append(_numpy(name, values.transpose(0, 1)))
    back = torch.cat(order).argsort().cpu().numpy()
    numbers = {key: np.concatenate(values)[back] for key, values in collected.items()}
    layout = (numbers, selection, planned, reader.n_layers, [len(r.response_ids) for r in rollouts], first)
    return policies_table(*layout), layers_table(*layout)


def _measured(
    reader: Reader,
    rollouts: Sequence[Rollout],
    planned: Plan,
    selection: Selection,
    product: str | None,
    lenses: Mapping[str, Lens],
) -> Iterator[Measured]:
    product = product or choose(reader.unembedding.weight, reader.unembedding.weight.dtype)
    for index, targets, hidden in blocks(reader, rollouts, planned.points):
        numbers: dict[tuple[str, str], Tensor] = {}
        for called in selection.readouts:
            readout: Any = lenses.get(called, called)
            found = _numbers(reader, hidden, targets, planned, selection, readout, product)
            numbers |= {(called, name): values for name, values in found.items()}
        yield index, numbers


def _numbers(
    reader: Reader,
    hidden: Float[Tensor, "points pos d_model"],
    targets: Int[Tensor, " pos"],
    planned: Plan,
    selection: Selection,
    readout: Readout,
    product: str,
) -> dict[str, Tensor]:
    """Each number (points, pos), of one block under one readout."""
    states = hidden[: planned.unembedded]
    if readout == "norm":  # the policy at FINAL is the model's own whatever the readout
        states = torch.cat([states[:1], read_out(reader.model, states[1:], readout).to(states.device)])
    elif readout != "raw":
        seen = zip(planned.points, states, strict=False)
        states = torch.stack([read_out(reader.model, s.clone(), readout, point).to(s.device) for point, s in seen])
    return metrics.numbers(
        hidden,
        states,
        reader.unembedding.weight,
        targets,
        inputs=planned.inputs if readout == "raw" else (),
        streams=planned.streams,
        head=head(reader.model),
        measures=selection.measures,
        top_k=selection.top_k,
        product=product,
    )


def _numpy(name: str, values: Tensor) -> np.ndarray:
    return values.to(torch.int32 if name == "topk_ids" else torch.float32).cpu().numpy()


def blocks(
    model: Any, rollouts: Sequence[Rollout], points: Sequence[HookPoint]
) -> Iterator[tuple[Int[Tensor, " pos"], Int[Tensor, " pos"], Float[Tensor, "points pos d_model"]]]:
    """Run the model over a batch; yield the hidden states at `points` where the response tokens are predicted.

    Each yield is (number of each position in the batch, rollout by rollout; the token that came; hidden states), at
    most TOGETHER positions. Rollouts are padded on the right, where causal attention lets no real token see it, and
    read in pieces: what is held grows with neither the length of a text nor the number of points, but for the
    key-value cache.
    """
    reader = reader_of(model)
    ids, number = padded(rollouts)
    width = ids.shape[1]
    weight, device = reader.unembedding.weight, device_of(reader.model)
    ids = ids.to(device)
    per_position = len(points) * weight.shape[1] * weight.element_size() * len(rollouts)
    step = max(1, STATE_BYTES // per_position)
    row_of = {point: row for row, point in enumerate(points)}
    first = min(len(rollout.prompt_ids) for rollout in rollouts) - 1  # before it nothing is kept
    pieces = [*range(0, first, max(step, PREFILL)), *range(first, width, step)]
    starts = [0] if step >= width else pieces
    cache = DynamicCache(config=reader.model.config) if len(starts) > 1 else None
    for start, end in zip(starts, [*starts[1:], width], strict=True):
        piece = slice(start, end)
        here = (number[:, piece] >= 0).to(device)
        hidden = weight.new_empty(len(points), int(here.sum()), weight.shape[1])

        visits = Counter[HookPoint]()

        def store(
            point: HookPoint, state: Tensor, hidden: Tensor = hidden, here: Tensor = here, visits: Any = visits
        ) -> None:
            visits[point] += 1
            hidden[row_of[point]] = state[here.to(state.device)]

        visited = points if hidden.shape[1] else ()
        with alone(reader.model, [len(rollout.ids) for rollout in rollouts]):
            reader.run(visited, store, input_ids=ids[:, piece], past_key_values=cache, use_cache=cache is not None)
        check_visits(visited, visits)
        index = number[:, piece][here.cpu()]
        targets = ids.roll(-1, 1)[:, piece][here].to(weight.device)
        for first in range(0, len(index), TOGETHER):
            at = slice(first, first + TOGETHER)
            yield index[at], targets[at], hidden[:, at]


def padded(rollouts: Sequence[Rollout]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Their token ids, padded on the right, and the number of each position that is measured, rollout by rollout.

    The number is -1 where none is: all but those where a response token is predicted.
    """
    width = max(len(rollout.ids) for rollout in rollouts)
    ids = torch.zeros(len(rollouts), width, dtype=torch.int64)
    number = torch.full((len(rollouts), width), -1)
    count = 0
    for row, rollout in enumerate(rollouts):
        ids[row, : len(rollout.ids)] = torch.tensor(rollout.ids)
        # token t is predicted at position t - 1
        span = slice(len(rollout.prompt_ids) - 1, len(rollout.ids) - 1)
        number[row, span] = torch.arange(count, count := count + len(rollout.response_ids))
    return ids, number
