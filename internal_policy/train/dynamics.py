"""What training does to the layers: the policies of a model over the same rollouts, measured every few steps."""

import math
from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch
from torch import nn

from internal_policy.measure.choice import choose
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.metrics import cosine
from internal_policy.models.adapters import inside
from internal_policy.models.families import sites_of
from internal_policy.models.head import bias_of, logit_transform, unembedding
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.modules import decoder_layers
from internal_policy.models.passes import evaluating
from internal_policy.models.policy import read_out
from internal_policy.scans.blocks import blocks
from internal_policy.scans.scan import Scanner, check_rollouts
from internal_policy.scans.selection import Selection
from internal_policy.tasks.rollouts import Rollout

MEASURES = ("entropy", "entropy_at_input_norm", "norm")
"""Measures of every site, as means over the tokens."""


def measure(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    watched: HookPoint | None,
    readout: Literal["raw", "norm"] = "raw",
) -> pd.DataFrame:
    """The numbers of every policy of the current model: layer, site, and means over the response tokens.

    `entropy` (nats), `entropy_at_input_norm` and `norm` are those of a scan. Every `resid_post` above the hook
    point `watched`, and `final`, are compared with it: `cosine` of the hidden states (not at `final`, which is in
    another space), and `kl`, KL(watched || later) in nats (Fig. 5 of arXiv 2512.19673). `logprob` at `final` is that of
    the response tokens. Raises InputError for rollouts that the model can't read.
    """
    layers = tuple(range(len(decoder_layers(model))))
    chosen = Selection(layers, sites_of(inside(model).config), (readout,), (*MEASURES, "logprob"), 0)
    scanner = Scanner.of(model, chosen)
    check_rollouts(model, rollouts)
    table = scanner.measure(rollouts)[1].to_pandas()
    weighted = table[["layer", "site", "tokens"]].assign(
        **{name: table[name] * table["tokens"] for name in (*MEASURES, "logprob")}
    )
    sums = weighted.groupby(["layer", "site"], sort=False).sum(min_count=1)
    means = sums.drop(columns="tokens").div(sums["tokens"], axis=0).reset_index()
    if watched is None or watched == FINAL:
        return means.assign(cosine=math.nan, kl=math.nan)
    return means.merge(_compared(model, rollouts, watched, readout, len(layers)), how="left", on=["layer", "site"])


@torch.inference_mode()
def _compared(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    watched: HookPoint,
    readout: Literal["raw", "norm"],
    n_layers: int,
) -> pd.DataFrame:
    """Cosine with the hidden state at `watched`, and KL from its policy, of later layers and the model itself."""
    later = [HookPoint(layer, "resid_post") for layer in range(watched.layer, n_layers)]
    later = [point for point in later if point != watched]
    head, sums, count = unembedding(model), torch.zeros(2, len(later) + 1, dtype=torch.float64), 0
    matmul = choose(head.weight, head.weight.dtype)
    kernel = Kernel(head.weight, logit_transform(model), ("kl",), top_k=0, matmul=matmul, bias=bias_of(head))
    with evaluating(inside(model)):
        for _, targets, hidden in blocks(model, rollouts, (watched, *later, FINAL)):
            kl = kernel.measure(torch.cat([read_out(model, hidden[:-1], readout), hidden[-1:]]), targets)["kl"][1:]
            cosines = cosine(hidden[1:], hidden[:1].expand_as(hidden[1:]))
            sums += torch.stack([cosines, kl]).double().sum(-1).cpu()
            count += len(targets)
    mean_cosines, mean_kls = (sums / max(count, 1)).tolist()
    mean_cosines[-1] = math.nan
    names = [(point.layer, point.site) for point in later] + [(n_layers, "final")]
    frame = pd.DataFrame(names, columns=["layer", "site"])
    return frame.assign(cosine=mean_cosines, kl=mean_kls)


def perplexity(frame: pd.DataFrame) -> float:
    """Perplexity of the model's own policy over the tokens that `measure` read."""
    return math.exp(-float(frame.loc[frame["site"] == "final", "logprob"].iloc[0]))
