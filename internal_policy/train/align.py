"""Measure how well GRPO's gradient at each hook point agrees with that of the whole policy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from internal_policy.errors import InputError
from internal_policy.jupyter import progress
from internal_policy.look.aligned import Alignment
from internal_policy.models import families
from internal_policy.models.adapters import inside
from internal_policy.models.head import to_logits
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.memory import in_halves
from internal_policy.models.modules import decoder_layers
from internal_policy.models.passes import check_padding, device_of
from internal_policy.models.policy import READOUTS, Readout
from internal_policy.scans.scan import name_of
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train import padding
from internal_policy.train.alignment import Blocks, Sums, compare, sums
from internal_policy.train.gradients import Weighted, advantages, gradients, trainable

BLOCKS, FEWEST = 16, 4
"""Blocks of prompts by default, and at least."""
SITES = ("resid_post", "attn_out", "mlp_out")
"""Outputs whose policy can be trained."""
GENERATION, TRAINING = 1, 3
"""Cost of a step in forward passes: one samples the responses, and a backward pass takes as long as two."""
COLUMNS = ["layer", "site", "readout", "cost", "measure", "mean", "low", "high", "left_out"]
Policy = tuple[HookPoint, Readout]
Groups = Sequence[Sequence[Weighted]]


@dataclass(frozen=True)
class Batch:
    """Responses in groups. The groups with spread are divided into blocks."""

    groups: int
    """Prompts."""
    responses: int
    """Responses to all prompts."""
    blocks: Sequence[Sequence[Weighted]]
    """The responses to the prompts with spread, block by block."""
    spread: int
    """Prompts whose responses have different rewards; all others have no gradient."""


def align(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    *,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] = ("resid_post",),
    readouts: Sequence[str] = READOUTS,
    temperature: float = 1.0,
    blocks: int = BLOCKS,
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
    smaller: Callable[[int], None] = lambda _: None,
) -> Alignment:
    """How far GRPO's gradient at each hook point points the way of GRPO's own, from responses with rewards.

        rollouts = ip.generate(model, tokenizer, problems, limit=96, samples=8)
        found = ip.align(model, rollouts)                                 # every layer, raw and norm
        found.best(), found.table, found.plot.alignment()
        ip.align(model, rollouts, layers=[2, 5], sites=["attn_out"])

    Responses with the same prompt are a group, as in training, and need at least two different rewards to count.
    `temperature` is that at which they were sampled. Only parameters with `requires_grad` count. The table has a row
    for each layer, site, readout and measure:

    - gain: first-order gain of a step by the signs of the gradient, as Adam's first is, on prompts that the step wasn't
      taken from, as a share of the gain of GRPO's own step
    - cosine: cosine of the two gradients, without the bias of their noise; NaN if noise is all there is
    - gain_in_batch and cosine_in_batch: the same on the prompts that the step was taken from, which the noise that both
      gradients share draws towards 1 or 0

    `low` and `high` are the ends of a 95% interval by a jackknife over `blocks` of prompts, `left_out` the values
    without each block, and `cost` what a step costs as a share of GRPO's. `about` has the numbers of prompts and
    blocks, and `kept`, the share of GRPO's gain in the batch that remains on other prompts. Fewer blocks are used if
    memory needs it. Raises InputError for responses without rewards, and for too few prompts with spread.
    """
    config = inside(model).config
    check_padding(config)
    padding.check(config)
    points = policies(inside(model).config, layers, sites, readouts)
    count, at_once = _fitting(model, len(batched(rollouts, blocks).blocks))
    batch = batched(rollouts, count)

    shown = progress.bar("Measuring gradients", passes(batch, len(points)), "responses x policies")
    with shown if advance is None else nullcontext(advance) as count_passes:

        def measured(some: Sequence[Policy]) -> list[dict[str, Tensor]]:
            return _gradients(model, batch.blocks, some, temperature, batch_size, count_passes, smaller)

        rows, kept = _compared(model, points, at_once, measured)
    counts = {"prompts": batch.groups, "with_spread": batch.spread, "responses": batch.responses, "blocks": count}
    about = {"model": name_of(inside(model)), "n_layers": config.get_text_config().num_hidden_layers}
    return Alignment({**about, **counts, "kept": kept}, pd.DataFrame(rows, columns=COLUMNS))


def _compared(
    model: nn.Module,
    points: Sequence[Policy],
    at_once: int,
    measured: Callable[[Sequence[Policy]], list[dict[str, Tensor]]],
) -> tuple[list[list[object]], float]:
    """The rows of the table, and the share of GRPO's gain that remains on other prompts."""
    own: tuple[Blocks, Sums] | None = None
    rows: list[list[object]] = []
    for some in _chunks([(FINAL, "raw"), *points], at_once):
        for (point, readout), gradient in zip(some, measured(some), strict=True):
            if own is None:  # the first is the whole policy
                own = gradient, sums(gradient, gradient)
                continue
            estimates = vars(compare(gradient, *own))
            first = [point.layer, point.site, readout, cost(model, point)]
            rows += [[*first, name, one.value, *one.interval, [*one.left_out]] for name, one in estimates.items()]
    assert own is not None
    return rows, float(own[1].held_out.trace() / own[1].steps[0])


def batched(rollouts: Sequence[Rollout], blocks: int) -> Batch:
    """The responses with their advantages, in blocks of whole groups. Raises InputError."""
    groups: dict[tuple[int, ...], list[Rollout]] = {}
    for number, rollout in enumerate(rollouts):
        if rollout.reward is None:
            raise InputError(f"Rollout {number} has no reward, and gradients need one. Give problems with answers.")
        groups.setdefault(tuple(rollout.prompt_ids), []).append(rollout)
    spread = [group for group in groups.values() if len({rollout.reward for rollout in group}) > 1]
    if len(spread) < FEWEST:
        raise InputError(
            f"Prompts whose responses have different rewards: {len(spread)} of {len(groups)}. At least {FEWEST} are "
            "needed. Use more problems, more responses to each, or problems that are neither too easy "
            "nor too hard."
        )
    count = min(max(blocks, FEWEST), len(spread))
    divided = [[one for group in spread[start::count] for one in weighted(group)] for start in range(count)]
    return Batch(len(groups), len(rollouts), divided, len(spread))


def weighted(group: Sequence[Rollout]) -> list[Weighted]:
    """The responses to one prompt with their advantages."""
    rewards = torch.tensor([[rollout.reward for rollout in group]], dtype=torch.float64)
    return [Weighted(*pair) for pair in zip(group, advantages(rewards)[0].tolist(), strict=True)]


def policies(
    config: PreTrainedConfig, layers: Sequence[int] | None, sites: Sequence[str], readouts: Sequence[str]
) -> list[Policy]:
    """The hook points with their readouts. Raises InputError for one that a model of this configuration lacks."""
    known = families.layer_sites(config)
    for name, given, choices in (("site", sites, SITES), ("readout", readouts, READOUTS)):
        if unknown := [value for value in given if value not in choices]:
            raise InputError(f"There is no {name} '{unknown[0]}'. Choose from {', '.join(choices)}.")
    if layers is not None:
        if unknown := [layer for layer in layers if layer not in known]:
            raise InputError(f"There is no layer {unknown[0]}. The layers are 0 to {len(known) - 1}.")
        families.check_sites(config, layers, sites)
    chosen: Sequence[int] = list(known) if layers is None else layers
    return [
        (HookPoint(layer, site), readout)  # pyright: ignore[reportReturnType]
        for site in sites
        for readout in readouts
        for layer in chosen
        if site in known[layer]
    ]


def cost(model: nn.Module, point: HookPoint) -> float:
    """Cost of a training step on the policy at a hook point as a share of GRPO's, counted in multiplications.

    Sampling is a forward pass of the whole model, and training three passes up to the hook point.
    """
    each = [sum(weight.numel() for weight in layer.parameters()) for layer in decoder_layers(model)]
    head = sum(weight.numel() for weight in to_logits(model).parameters())
    share = (sum(each[: point.layer + 1]) + head) / (sum(each) + head)
    return (GENERATION + TRAINING * share) / (GENERATION + TRAINING)


def _fitting(model: nn.Module, blocks: int) -> tuple[int, int]:
    """How many blocks, and of how many hook points at a time, have gradients that fit into half of the free memory.

    Raises InputError if those of the fewest blocks at one hook point don't.
    """
    device = device_of(model)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    one = sum(weight.numel() * max(weight.element_size(), 4) for weight in trainable(model).values())
    count = min(blocks, free // 2 // max(2 * one, 1))
    if count < FEWEST:
        raise InputError(
            f"The gradients of {FEWEST} blocks of prompts at two hook points need {2 * FEWEST * one / 1e9:.1f} GB, but "
            f"only half of {free / 1e9:.1f} GB is used. Use a smaller model, an adapter (LoRA), or more memory."
        )
    return count, free // 2 // max(count * one, 1) - 1


def _chunks(points: Sequence[Policy], size: int) -> Iterator[Sequence[Policy]]:
    for start in range(0, len(points), size):
        yield points[start : start + size]


def _gradients(
    model: nn.Module,
    blocks: Groups,
    points: Sequence[Policy],
    temperature: float,
    batch_size: int,
    advance: Callable[[int], None],
    smaller: Callable[[int], None],
) -> list[dict[str, Tensor]]:
    """The gradient at each of `points`, for each block."""
    found: list[dict[str, Tensor]] = [{} for _ in points]
    weights = trainable(model)
    for number, block in enumerate(blocks):
        rows = sorted(block, key=lambda one: len(one.rollout.ids))
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]

            def part(some: slice, batch: Sequence[Weighted] = batch) -> list[dict[str, Tensor]]:
                return gradients(model, batch[some], points, temperature)

            for parts in in_halves(part, len(batch), smaller):
                for sums_of, gradient in zip(found, parts, strict=True):
                    for name, value in gradient.items():
                        if name not in sums_of:
                            kind = torch.promote_types(weights[name].dtype, torch.float32)
                            sums_of[name] = torch.zeros(len(blocks), *value.shape, dtype=kind, device=value.device)
                        sums_of[name][number] += value
            advance(len(batch) * len(points))
    return found


def passes(batch: Batch, points: int) -> int:
    """How often `advance` counts a response while `points` hook points and the whole policy are measured."""
    return sum(map(len, batch.blocks)) * (points + 1)
