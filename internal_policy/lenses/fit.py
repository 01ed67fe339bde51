"""Fit a lens to a model: affine translators whose policies come as close as possible to the model's own."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import pandas as pd
import psutil
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import kl_div

from internal_policy.errors import InputError
from internal_policy.lenses import lens
from internal_policy.lenses.lens import FittedLens, Translator
from internal_policy.look import statistics
from internal_policy.measure.matmul import precision
from internal_policy.models.adapters import inside
from internal_policy.models.families import sites_of
from internal_policy.models.head import unembedding, weight_alone
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.modules import decoder_layers
from internal_policy.models.passes import evaluating
from internal_policy.models.policy import READOUTS, unembed
from internal_policy.scans.blocks import blocks
from internal_policy.scans.reader import reader_of
from internal_policy.scans.scan import Scanner
from internal_policy.scans.selection import Selection, canonical
from internal_policy.tasks.rollouts import Rollout

STREAM = ("resid_pre", "resid_post")
"""Sites that get translators by default, as in the tuned lens."""
BATCH = 8
"""Rollouts to read together."""


def points_of(known: Mapping[int, Collection[str]], sites: Iterable[str]) -> list[HookPoint]:
    """The hook points that need a translator, in the order of a forward pass: all but the output of the last layer.

    They are those of `sites` in each layer that has them; `known` are the sites of each layer.
    """
    sites, last = tuple(sites), HookPoint(len(known) - 1, "resid_post")
    cells = dict.fromkeys(canonical(layer, site) for layer in known for site in sites if site in known[layer])
    return [point for point in cells if point != last]


def apart(rollouts: Sequence[Rollout], share: float, seed: int) -> tuple[list[Rollout], list[Rollout]]:
    """The rollouts to fit on, and those of a `share` of the problems that are held out. Raises InputError."""
    problem_of = [rollout.problem or str(number) for number, rollout in enumerate(rollouts)]
    problems = list(dict.fromkeys(problem_of))
    if len(problems) < 2:
        raise InputError("A lens is fitted on some problems and measured on others. Give 2 or more problems.")
    shuffled = torch.randperm(len(problems), generator=torch.Generator().manual_seed(seed)).tolist()
    number = min(max(1, round(share * len(problems))), len(problems) - 1)
    held = {problems[n] for n in shuffled[:number]}
    both = list(zip(rollouts, problem_of, strict=True))
    return [r for r, problem in both if problem not in held], [r for r, problem in both if problem in held]


def fit(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    points: Sequence[HookPoint],
    *,
    steps: int = 800,
    learning_rate: float = 1.0,
    batch_tokens: int = 256,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda *_: None,
) -> FittedLens:
    """Fit translators of `points` to make KL(final || lens) small at the response tokens (arXiv 2303.08112).

    They start at 0, which is the norm readout. Adam, with a rate of `learning_rate` / d_model that falls to 0 over the
    steps, only changes them, not the model. Hidden states are read once and kept. The translators and the loss are
    float32 or better. Raises InputError if there isn't enough memory, and for options out of range.
    """
    check_options(steps, learning_rate, batch_tokens)
    if not points:
        raise InputError("There is no hook point to fit: the last layer's output needs no translator. Add sites.")
    if not (tokens := sum(len(rollout.response_ids) for rollout in rollouts)):
        raise InputError("There are no response tokens to fit on. Give at least one rollout.")
    weight, dtype = reader_of(model).unembedding.weight, precision(inside(model).dtype)
    d_model = weight.shape[1]
    check_memory(len(points), tokens, d_model, weight.element_size())
    new = {"dtype": dtype, "device": weight.device, "requires_grad": True}
    at = {point: Translator(torch.zeros(d_model, d_model, **new), torch.zeros(d_model, **new)) for point in points}
    n_layers = len(decoder_layers(model))
    tuned = lens.of(FittedLens(at, n_layers), model)
    parameters = [tensor for translator in at.values() for tensor in translator]
    optimizer = torch.optim.Adam(parameters, learning_rate / d_model)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    hidden = states(model, rollouts, [FINAL, *points])
    shuffled, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch_tokens:
            order = torch.cat([order, torch.randperm(hidden.shape[1], generator=shuffled)])
        batch, order = hidden[:, order[:batch_tokens]].to(weight.device), order[batch_tokens:]
        with torch.no_grad():
            final = unembed(model, batch[0]).to(dtype).log_softmax(-1)
        for state, (point, translator) in zip(batch[1:], at.items(), strict=True):
            policy = unembed(model, state, tuned, point).to(dtype).log_softmax(-1)
            loss = kl_div(policy, final, reduction="batchmean", log_target=True)
            for tensor, gradient in zip(translator, torch.autograd.grad(loss, translator), strict=True):
                tensor.grad = gradient  # only for the translators, not for the model
        optimizer.step()
        schedule.step()
        advance(1, batch_tokens)
    if not all(tensor.isfinite().all() for tensor in parameters):
        raise InputError(f"The translators became infinite. Use a learning rate lower than {learning_rate}.")
    fitted = {point: Translator(weight.detach(), bias.detach()) for point, (weight, bias) in at.items()}
    return FittedLens(fitted, n_layers)


def check_options(steps: int, learning_rate: float, batch_tokens: int, held_out: float = 0.2) -> None:
    """Raise InputError for options that are out of range."""
    for name, value in (("steps", steps), ("learning-rate", learning_rate), ("batch-tokens", batch_tokens)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; it must be above 0.")
    if not 0 < held_out < 1:
        raise InputError(f"held-out is {held_out}; it must be above 0 and below 1, such as 0.2.")


def check_memory(points: int, tokens: int, d_model: int, item: int) -> None:
    """Raise InputError if the hidden states, the translators and Adam's state don't fit into memory."""
    need = (points + 1) * tokens * d_model * item + 4 * 4 * points * d_model * (d_model + 1)
    free = psutil.virtual_memory().available
    if need > free:
        raise InputError(
            f"The translators of {points} hook points and their hidden states at {tokens:,} tokens need "
            f"{need / 1e9:.1f} GB, but only {free / 1e9:.1f} GB is free. Use fewer responses (--limit) or --sites."
        )


@torch.no_grad()
def states(
    model: nn.Module, rollouts: Sequence[Rollout], points: Sequence[HookPoint]
) -> Float[Tensor, "points pos d_model"]:
    """The hidden states at `points` where the response tokens are predicted, in no particular order."""
    weight, count, start = (
        weight_alone(unembedding(model)).weight,
        sum(len(rollout.response_ids) for rollout in rollouts),
        0,
    )
    kept = weight.new_empty(len(points), count, weight.shape[1], device="cpu")
    with evaluating(inside(model)):
        for first in range(0, len(rollouts), BATCH):
            for index, _, hidden in blocks(model, rollouts[first : first + BATCH], points):
                kept[:, start : start + len(index)] = hidden
                start += len(index)
    return kept


def kl(model: nn.Module, rollouts: Sequence[Rollout], fitted: FittedLens) -> pd.DataFrame:
    """KL(final || readout) in nats at each hook point with a map: layer, site, readout, mean, low, high.

    Means are over the response tokens of `rollouts`, with 95% intervals over the rollouts.
    """
    sites = tuple(site for site in sites_of(inside(model).config) if site in {point.site for point in fitted.at})
    readouts = (*READOUTS, fitted.kind)
    selection = Selection(tuple(sorted({p.layer for p in fitted.at})), sites, readouts, ("kl",), 0)
    scanner = Scanner.of(model, selection, {fitted.kind: lens.of(fitted, model)})
    parts = [scanner.measure(rollouts[first : first + BATCH], first)[1] for first in range(0, len(rollouts), BATCH)]
    layers = pa.concat_tables(parts).to_pandas()
    means = [statistics.means(layers[layers["readout"] == name], "kl").assign(readout=name) for name in readouts]
    frame = pd.concat(means, ignore_index=True)
    having = [HookPoint(layer, site) in fitted.at for layer, site in zip(frame["layer"], frame["site"], strict=True)]
    return frame[having].reset_index(drop=True)
