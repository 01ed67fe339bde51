"""Run a model over a batch of rollouts, handing over the hidden states where response tokens are predicted."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internal_policy.measure.stacked import free_bytes
from internal_policy.models.hooks import HookPoint, check_visits
from internal_policy.models.passes import alone, continuing, device_of
from internal_policy.scans.positions import EVERY, Positions
from internal_policy.scans.reader import reader_of
from internal_policy.tasks.rollouts import Rollout

STATE_BYTES = 64 * 2**20
"""Bytes of hidden states held at once; longer texts are read in pieces that share a key-value cache."""
WHOLE_BYTES = 2**30
"""The same for models that can't continue from a cache, and read each piece from the start of the text."""
GPU_SHARE = 8
"""A GPU holds hidden states in a fraction, 1 / GPU_SHARE, of its free memory instead."""
PREFILL = 1024
"""Positions of the prompt read at once; their hidden states aren't kept."""
TOGETHER, GPU_TOGETHER = 32, 512
"""Positions measured together on a CPU (at least one per thread), and on a GPU, which needs more to be busy."""


def blocks(
    model: Any, rollouts: Sequence[Rollout], points: Sequence[HookPoint], positions: Positions = EVERY
) -> Iterator[tuple[Int[Tensor, " pos"], Int[Tensor, " pos"], Float[Tensor, "points pos d_model"]]]:
    """Run the model over a batch; yield the hidden states at `points` where the response tokens are predicted.

    Those are the tokens at `positions` of each response, by default all.

    Each item is (number of each position in the batch, rollout by rollout; the token that follows; hidden states), for
    at most TOGETHER positions, or GPU_TOGETHER on a GPU, where the states stay. Rollouts are padded on the right, where
    causal attention hides the padding from real tokens, and read in pieces: apart from the key-value cache, memory
    grows with neither the length of a text nor the number of points. If the model can't continue from a cache (Mamba),
    each piece is read from the start of the text.
    """
    reader = reader_of(model)
    ids, number = padded(rollouts, positions)
    kept_columns = (number >= 0).any(0).nonzero().flatten().tolist()
    if not kept_columns:
        return
    width = ids.shape[1]
    weight, device = reader.unembedding.weight, device_of(reader.model)
    ids = ids.to(device)
    per_position = len(points) * weight.shape[1] * weight.element_size() * len(rollouts)
    options = continuing(reader.model.config)
    room = STATE_BYTES if options else WHOLE_BYTES
    if on_gpu := weight.is_cuda:
        room = free_bytes(weight.device) // GPU_SHARE
    step, together = max(1, room // per_position), GPU_TOGETHER if on_gpu else max(TOGETHER, torch.get_num_threads())
    row_of = {point: row for row, point in enumerate(points)}
    first, last = kept_columns[0], kept_columns[-1]  # nothing before or after these positions is kept
    prompt = range(0, first, max(step, PREFILL)) if options else ()
    starts = [0] if step >= width else [*prompt, *range(first, width, step)]
    options = options if len(starts) > 1 else {}
    for start, end in zip(starts, [*starts[1:], width], strict=True):
        if start > last:
            break
        piece = slice(start if options else 0, end)
        kept = number[:, piece] >= 0
        kept[:, : start - piece.start] = False
        here = kept.flatten().nonzero().squeeze(-1)
        index, here = number[:, piece].flatten()[here], here.to(device)
        hidden = weight.new_empty(len(points), len(here), weight.shape[1])

        visits = Counter[HookPoint]()

        def store(
            point: HookPoint, state: Tensor, hidden: Tensor = hidden, here: Tensor = here, visits: Any = visits
        ) -> None:
            visits[point] += 1
            hidden[row_of[point]] = state.flatten(0, 1)[here.to(state.device)]

        visited = points if hidden.shape[1] else ()
        with alone(reader.model, [len(rollout.ids) for rollout in rollouts]):
            reader.run(visited, store, input_ids=ids[:, piece], **(options or {"use_cache": False}))
        check_visits(visited, visits)
        targets = ids.roll(-1, 1)[:, piece].flatten()[here].to(weight.device)
        for first in range(0, len(index), together):
            at = slice(first, first + together)
            yield index[at], targets[at], hidden[:, at]


def padded(
    rollouts: Sequence[Rollout], positions: Positions = EVERY
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Token ids, padded on the right, and the number of each measured position, rollout by rollout.

    The number is -1 wherever no response token at one of the `positions` is predicted.
    """
    width = max(len(rollout.ids) for rollout in rollouts)
    ids = torch.zeros(len(rollouts), width, dtype=torch.int64)
    number = torch.full((len(rollouts), width), -1)
    count = 0
    for row, rollout in enumerate(rollouts):
        ids[row, : len(rollout.ids)] = torch.tensor(rollout.ids)
        measured = positions.of(len(rollout.response_ids))
        # token t is predicted at position t - 1
        at = len(rollout.prompt_ids) - 1 + torch.tensor(measured, dtype=torch.int64)
        number[row, at] = torch.arange(count, count := count + len(measured))
    return ids, number
