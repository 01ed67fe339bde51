"""Measure lenses on held-out rollouts: how far their policies are from the model's own, and from each other."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd
import pyarrow as pa
import torch
from torch import nn

from internal_policy.lenses import card, lens
from internal_policy.lenses.lens import FittedLens
from internal_policy.look import bootstrap, statistics
from internal_policy.measure.matmul import precision
from internal_policy.measure.sites import SITES
from internal_policy.models.adapters import inside
from internal_policy.models.families import sites_of
from internal_policy.models.hooks import HookPoint
from internal_policy.models.passes import evaluating
from internal_policy.models.policy import READOUTS, unembed
from internal_policy.scans.blocks import blocks
from internal_policy.scans.scan import Scanner
from internal_policy.scans.selection import Selection
from internal_policy.tasks.rollouts import Rollout

BATCH = 8
"""Rollouts to read together."""


def measured(model: nn.Module, rollouts: Sequence[Rollout], lenses: Mapping[str, FittedLens]) -> pd.DataFrame:
    """KL(final || readout) in nats of each rollout, a scan's table `layers` of raw, norm and every lens.

    It has the hook points where the first lens has a map. Raises InputError if another lens lacks one of them.
    """
    points = next(iter(lenses.values())).at.keys()
    for other in lenses.values():
        other.check(points)
    sites = tuple(site for site in sites_of(inside(model).config) if site in {point.site for point in points})
    selection = Selection(tuple(sorted({p.layer for p in points})), sites, (*READOUTS, *lenses), ("kl",), 0)
    scanner = Scanner.of(model, selection, {name: lens.of(fitted, model, name) for name, fitted in lenses.items()})
    parts = [scanner.measure(rollouts[first : first + BATCH], first)[1] for first in range(0, len(rollouts), BATCH)]
    layers = pa.concat_tables(parts).to_pandas()
    return layers[_within(layers, points)].reset_index(drop=True)


def tables(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    fitted: FittedLens,
    halves: Sequence[FittedLens] = (),
    others: Mapping[str, FittedLens] = {},
) -> dict[str, pd.DataFrame]:
    """The measurements of a lens card: kl of all readouts and of `others`, gain, and halves if there are two."""
    layers = measured(model, rollouts, {fitted.kind: fitted, **others})
    found = {"kl": kl(layers), "gain": gain(layers, fitted.kind)}
    if halves:
        found["halves"] = card.difference(*halves).merge(between(model, rollouts, *halves), on=["layer", "site"])
    return found


def kl(layers: pd.DataFrame) -> pd.DataFrame:
    """The mean KL(final || readout) in nats over tokens: layer, site, readout, mean, low, high (95% over rollouts).

    Lenses come after raw and norm.
    """
    found = layers["readout"].unique()
    names = [*(name for name in READOUTS if name in found), *(name for name in found if name not in READOUTS)]
    means = [statistics.means(layers[layers["readout"] == name], "kl").assign(readout=name) for name in names]
    return pd.concat(means, ignore_index=True)


def gain(layers: pd.DataFrame, name: str) -> pd.DataFrame:
    """How much closer the lens `name` is to the model than the logit lens: layer, site, mean, low, high.

    That is KL(final || norm) - KL(final || lens) in nats, positive where the lens is better. Rollouts are compared in
    pairs, and the 95% intervals hold for all hook points at once (`bootstrap.simultaneous`).
    """
    keys = ["rollout", "layer", "site"]
    both = {readout: layers[layers["readout"] == readout].set_index(keys)["kl"] for readout in ("norm", name)}
    differences = (both["norm"] - both[name]).unstack(["layer", "site"])
    return _means(differences, layers.groupby("rollout")["tokens"].first(), at_once=True)


@torch.inference_mode()
def between(model: nn.Module, rollouts: Sequence[Rollout], a: FittedLens, b: FittedLens) -> pd.DataFrame:
    """The KL divergence in nats between the policies of two lenses: layer, site, mean, low, high (95% over rollouts).

    That is the mean of KL(a || b) and KL(b || a), at the hook points of `a`. Raises InputError if `b` lacks one.
    """
    points, dtype = [*a.at], precision(inside(model).dtype)
    b.check(points)
    readouts = [lens.of(fitted, model) for fitted in (a, b)]
    lengths = torch.tensor([len(rollout.response_ids) for rollout in rollouts])
    sums = torch.zeros(len(rollouts), len(points), dtype=torch.float64)
    with evaluating(inside(model)):
        for first in range(0, len(rollouts), BATCH):
            owner = torch.arange(first, len(rollouts)).repeat_interleave(lengths[first:])
            for index, _, hidden in blocks(model, rollouts[first : first + BATCH], points):
                for column, (point, state) in enumerate(zip(points, hidden, strict=True)):
                    one, other = (unembed(model, state, each, point).to(dtype).log_softmax(-1) for each in readouts)
                    divergence = ((one.exp() - other.exp()) * (one - other)).sum(-1) / 2
                    sums[:, column].index_add_(0, owner[index.cpu()], divergence.double().cpu())
    having = lengths > 0
    tokens = pd.Series(lengths[having].tolist(), having.nonzero().flatten().tolist())
    columns = pd.MultiIndex.from_tuples([(point.layer, point.site) for point in points], names=["layer", "site"])
    return _means(pd.DataFrame(sums[having].numpy(), tokens.index, columns).div(tokens, axis=0), tokens)


def _means(values: pd.DataFrame, tokens: pd.Series, *, at_once: bool = False) -> pd.DataFrame:
    """Means over tokens of values of each rollout, with 95% intervals that hold for each column, or for all at once."""
    values = values[sorted(values.columns, key=lambda column: (column[0], SITES.index(column[1])))]
    weights, numbers = tokens.reindex(values.index).to_numpy(dtype=float), values.to_numpy(dtype=float)
    found = values.columns.to_frame(index=False)
    found["mean"], found["low"], found["high"] = bootstrap.interval(numbers, weights)
    if at_once:
        found["low"], found["high"] = bootstrap.simultaneous(numbers, weights)
    return found


def _within(frame: pd.DataFrame, points: Collection[HookPoint]) -> list[bool]:
    return [HookPoint(layer, site) in points for layer, site in zip(frame["layer"], frame["site"], strict=True)]
