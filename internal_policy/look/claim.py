"""The claims of `check` about a scan's entropies, and what it means that they survive a control."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from internal_policy.errors import counted
from internal_policy.look import summary, targets
from internal_policy.look.bootstrap import FEWEST
from internal_policy.look.evidence import Evidence, sign

KEPT = 0.8
"""Share of layers that must keep their sign or stage for a claim to survive a control."""
NOT_MEASURED = "the entropy before and after wasn't measured"
NO_INTERVAL = f"it needs finite numbers of {FEWEST} or more rollouts"


class Judged(NamedTuple):
    """What a control does to a claim."""

    survives: bool | None
    """None if that can't be told."""
    text: str
    """The numbers in a few words, or why it can't be told."""
    value: float | None = None
    """Nats for the flow, the share of layers that keep their sign or stage, or the target layer. For the changes as
    measured it is the share with a sign."""


Judge = Callable[[Evidence, Evidence], Judged]
"""From what was measured and what a control shows. Both are the same for the pattern as it was measured."""


def flow(_: Evidence, shown: Evidence) -> Judged:
    """Survives if the interval of the last layer's entropy minus the first's is below 0."""
    if not len(shown.path):
        return Judged(None, "it needs the outputs of two layers and, for directions, of all layers between them")
    last = shown.path.iloc[-1]
    if not np.isfinite(last["high_all"]):
        return Judged(None, NO_INTERVAL)
    between = f"{last['low_all']:+.2f} to {last['high_all']:+.2f}"
    return Judged(bool(last["high_all"] < 0), f"{last['mean']:+.2f} nats, {between}", float(last["mean"]))


def signs(change: str) -> Judge:
    """The judge of one kind of entropy change: layer, attn or mlp.

    It survives if at least 80% of the layers whose sign is significant as measured keep it, significantly. As measured
    it takes one such layer.
    """

    def judge(measured: Evidence, shown: Evidence) -> Judged:
        both = _signs(measured, shown, change)
        if isinstance(both, str):
            return Judged(None, both)
        before, after = both
        clear = before != 0
        if shown is measured:
            text = f"{int((before == 1).sum())} up and {int((before == -1).sum())} down, of {len(before)}"
            return Judged(bool(clear.any()), text, float(clear.mean()))
        kept, turned = int((before == after)[clear].sum()), int((before == -after)[clear].sum())
        text = f"{kept} of {counted(int(clear.sum()), 'sign')}" + (f", {turned} reversed" if turned else "")
        share = kept / max(clear.sum(), 1)
        return Judged(bool(share >= KEPT), text, float(share))

    return judge


def _signs(measured: Evidence, shown: Evidence, change: str) -> tuple[pd.Series, pd.Series] | str:
    """The signs by layer, as measured and as shown, of the layers that have both; or why there are none."""
    before, after = (
        pd.Series(sign(rows), rows["layer"].to_numpy())
        for each in (measured, shown)
        for rows in [each.changes[each.changes["change"] == change]]
    )
    if not len(before) or not len(after):
        return NOT_MEASURED
    both = before.dropna().index.intersection(after.dropna().index)
    return (before[both], after[both]) if len(both) else NO_INTERVAL


def stages(measured: Evidence, shown: Evidence) -> Judged:
    """Survives if at least 80% of the layers keep their stage. As measured it takes one that explores or converges."""
    both = _signs(measured, shown, "mlp")
    if isinstance(both, str):
        return Judged(None, both)
    before, after = both
    kept = int((before == after).sum())
    if shown is measured:
        named = pd.DataFrame({"layer": after.index, "stage": [targets.STAGES[1 - int(sign)] for sign in after]})
        text = summary.stages_in_words(targets.spans(named))
        return Judged(bool(after.any()), text, 1.0)
    return Judged(kept >= KEPT * len(after), f"{kept} of {counted(len(after), 'layer')}", kept / len(after))


def target(measured: Evidence, shown: Evidence) -> Judged:
    """Survives if the last layer whose FFN raises the entropy significantly is the same."""
    both = _signs(measured, shown, "mlp")
    if isinstance(both, str):
        return Judged(None, both)
    was, now = (max(signs.index[signs == 1], default=None) for signs in both)
    return Judged(now is not None and now == was, "none" if now is None else f"layer {now}", now)


@dataclass(frozen=True)
class Claim:
    """A claim that papers make about the entropies of a model."""

    name: str
    title: str
    """Its name on screen."""
    heading: str
    """The same above a column."""
    judge: Judge
    """Whether it survives a control."""
    form: str
    """How the value of a judgement is written in a table."""
    seen: str
    """What was measured, as the beginning of a sentence. {} is the text of the judgement."""
    unseen: str
    """What was measured instead if the pattern isn't there, as a sentence."""
    lost: str
    """What happens under a control that it doesn't survive."""
    kept: str
    """What happens under all controls that were tested, if it survives them."""


def _of_changes(change: str, title: str, many: str, one: str) -> Claim:
    return Claim(
        f"change_{change}",
        f"Entropy change of {title}",
        f"Δ {title}",
        signs(change),
        "{:.0%}",
        f"{many} change entropy significantly ({{}})",
        f"No {one} changes entropy significantly ({{}}).",
        "fewer than 80% of these signs stay",
        "at least 80% of these signs stay",
    )


CLAIMS: Sequence[Claim] = (
    Claim(
        "flow",
        "Entropy flow",
        "flow",
        flow,
        "{:+.2f}",
        "Entropy falls from the first layer's output to the last's ({})",
        "Entropy doesn't fall significantly from the first layer's output to the last's ({}).",
        "no significant fall remains",
        "still falls",
    ),
    _of_changes("layer", "layers", "Layers", "layer"),
    _of_changes("attn", "attention", "Attention blocks", "attention block"),
    _of_changes("mlp", "FFNs", "FFNs", "FFN"),
    Claim(
        "stages",
        "Stages",
        "stages",
        stages,
        "{:.0%}",
        "The stages are {}",
        "All layers are in {}.",
        "fewer than 80% of the layers keep theirs",
        "at least 80% of the layers keep theirs",
    ),
    Claim(
        "target",
        "Target layer",
        "target",
        target,
        "{:.0f}",
        "The last FFN that raises entropy significantly is that of {}",
        "No FFN raises entropy significantly.",
        "the target is different",
        "the target stays the same",
    ),
)
"""The claims in the order of the tables."""
