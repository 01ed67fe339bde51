"""Fit a lens to a model: affine translators whose policies come as close as possible to the model's own."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import kl_div

from internal_policy.errors import InputError
from internal_policy.lenses import lens
from internal_policy.lenses.lens import FittedLens, Translator
from internal_policy.measure.matmul import precision
from internal_policy.models.adapters import inside
from internal_policy.models.head import unembedding, weight_alone
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.modules import decoder_layers
from internal_policy.models.passes import evaluating
from internal_policy.models.policy import unembed
from internal_policy.scans.blocks import blocks
from internal_policy.scans.reader import reader_of
from internal_policy.scans.selection import canonical
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
    problems = _shuffled(rollouts, seed)
    if len(problems) < 2:
        raise InputError("A lens is fitted on some problems and measured on others. Give 2 or more problems.")
    count = min(max(1, round(share * len(problems))), len(problems) - 1)
    held = {number for problem in problems[:count] for number in problem}
    both = [*enumerate(rollouts)]
    return [r for number, r in both if number not in held], [r for number, r in both if number in held]


def halves(rollouts: Sequence[Rollout], seed: int) -> list[list[int]]:
    """The numbers of the rollouts of each half of the problems; nothing for a single problem."""
    problems = _shuffled(rollouts, seed)
    parts = [problems[::2], problems[1::2]] if len(problems) > 1 else []
    return [sorted(number for problem in part for number in problem) for part in parts]


def _shuffled(rollouts: Sequence[Rollout], seed: int) -> list[list[int]]:
    """The numbers of the rollouts of each problem, the problems in random order."""
    numbers: dict[str, list[int]] = {}
    for number, rollout in enumerate(rollouts):
        numbers.setdefault(rollout.problem or str(number), []).append(number)
    problems = [*numbers.values()]
    return [problems[n] for n in torch.randperm(len(problems), generator=torch.Generator().manual_seed(seed)).tolist()]


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
    options: Any = {"steps": steps, "learning_rate": learning_rate, "batch_tokens": batch_tokens, "seed": seed}
    return fit_parts(model, rollouts, points, [range(len(rollouts))], **options, advance=advance)[0]


def fit_parts(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    points: Sequence[HookPoint],
    parts: Sequence[Collection[int]],
    *,
    steps: int = 800,
    learning_rate: float = 1.0,
    batch_tokens: int = 256,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda *_: None,
) -> list[FittedLens]:
    """Fit a lens on each part of the rollouts, given by their numbers, as `fit` does: all at once, on the same states.

    Each step draws `batch_tokens` of all tokens, and each lens takes a step on those that belong to its part. A lens
    therefore sees its tokens as often as the others see theirs, and the lens of all rollouts is that of `fit`.
    """
    check_options(steps, learning_rate, batch_tokens)
    if not points:
        raise InputError("There is no hook point to fit: the last layer's output needs no translator. Add sites.")
    if not (tokens := sum(len(rollout.response_ids) for rollout in rollouts)):
        raise InputError("There are no response tokens to fit on. Give at least one rollout.")
    weight = reader_of(model).unembedding.weight
    check_memory(len(points), tokens, weight.shape[1], weight.element_size(), len(parts))
    descents = [_Descent(model, points, learning_rate, steps) for _ in parts]
    hidden = states(model, rollouts, [FINAL, *points])
    owner = torch.arange(len(rollouts)).repeat_interleave(torch.tensor([len(one.response_ids) for one in rollouts]))
    members = [torch.isin(owner, torch.tensor([*part], dtype=torch.int64)) for part in parts]
    shuffled, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch_tokens:
            order = torch.cat([order, torch.randperm(len(owner), generator=shuffled)])
        drawn, order = order[:batch_tokens], order[batch_tokens:]
        batch = hidden[:, drawn].to(weight.device)
        with torch.no_grad():
            final = unembed(model, batch[0]).to(precision(inside(model).dtype)).log_softmax(-1)
        for descent, member in zip(descents, members, strict=True):
            here = member[drawn].to(weight.device)
            descent.step(batch[1:, here], final[here])
        advance(1, batch_tokens)
    return [descent.fitted() for descent in descents]


class _Descent:
    """The translators of one lens while they are fitted, with the state of Adam."""

    def __init__(self, model: nn.Module, points: Sequence[HookPoint], learning_rate: float, steps: int) -> None:
        weight, dtype = reader_of(model).unembedding.weight, precision(inside(model).dtype)
        new, d_model = {"dtype": dtype, "device": weight.device, "requires_grad": True}, weight.shape[1]
        at = {point: Translator(torch.zeros(d_model, d_model, **new), torch.zeros(d_model, **new)) for point in points}
        self.model, self.learning_rate = model, learning_rate
        self.lens = FittedLens(at, len(decoder_layers(model)))
        self.readout = lens.of(self.lens, model)
        self.parameters = [tensor for translator in at.values() for tensor in translator]
        self.optimizer = torch.optim.Adam(self.parameters, learning_rate / d_model)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1, 0, steps)

    def step(self, hidden: Float[Tensor, "points pos d_model"], final: Float[Tensor, "pos d_vocab"]) -> None:
        """Follow the gradient of KL(final || lens) at some tokens; without any, only lower the rate."""
        if len(final):
            for state, (point, translator) in zip(hidden, self.lens.at.items(), strict=True):
                policy = unembed(self.model, state, self.readout, point).to(final.dtype).log_softmax(-1)
                loss = kl_div(policy, final, reduction="batchmean", log_target=True)
                for tensor, gradient in zip(translator, torch.autograd.grad(loss, translator), strict=True):
                    tensor.grad = gradient  # only for the translators, not for the model
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    def fitted(self) -> FittedLens:
        """The lens. Raises InputError if it isn't finite."""
        if not all(tensor.isfinite().all() for tensor in self.parameters):
            raise InputError(f"The translators became infinite. Use a learning rate lower than {self.learning_rate}.")
        at = {point: Translator(*(tensor.detach() for tensor in one)) for point, one in self.lens.at.items()}
        return FittedLens(at, self.lens.n_layers)


def check_options(steps: int, learning_rate: float, batch_tokens: int, held_out: float = 0.2) -> None:
    """Raise InputError for options that are out of range."""
    for name, value in (("steps", steps), ("learning-rate", learning_rate), ("batch-tokens", batch_tokens)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; it must be above 0.")
    if not 0 < held_out < 1:
        raise InputError(f"held-out is {held_out}; it must be above 0 and below 1, such as 0.2.")


def check_memory(points: int, tokens: int, d_model: int, item: int, lenses: int = 1) -> None:
    """Raise InputError if the hidden states, the translators and Adam's state don't fit into memory."""
    need = (points + 1) * tokens * d_model * item + lenses * 4 * 4 * points * d_model * (d_model + 1)
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
    """The hidden states at `points` where the response tokens are predicted, rollout by rollout."""
    weight, count, start = (
        weight_alone(unembedding(model)).weight,
        sum(len(rollout.response_ids) for rollout in rollouts),
        0,
    )
    kept = weight.new_empty(len(points), count, weight.shape[1], device="cpu")
    with evaluating(inside(model)):
        for first in range(0, len(rollouts), BATCH):
            batch = rollouts[first : first + BATCH]
            for index, _, hidden in blocks(model, batch, points):
                kept[:, start + index] = hidden.cpu()
            start += sum(len(rollout.response_ids) for rollout in batch)
    return kept
