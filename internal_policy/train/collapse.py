"""Notice that training has destroyed a policy, and say what changed."""

from collections.abc import Mapping, Sequence
from typing import Any

SPAN = 3
"""Steps over which the beginning and the present are averaged."""
LOST, CUT, BEFORE = 0.1, 0.95, 0.5
"""Share of the first reward below which it is lost; share of cut responses now, and at most at the beginning."""
SMALLEST = 0.05
"""Smallest reward at the beginning that can be lost."""


def collapse(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What has changed, in a sentence, if the policy has collapsed by the last of the `rows` of metrics; else None.

    A policy has collapsed if it has lost nine tenths of its first reward, or if almost all of its responses are cut at
    the length limit and most weren't at first. Means over 3 steps are compared.
    """
    if len(rows) < 2 * SPAN:
        return None
    first, last = (
        {name: sum(row.get(name, 0.0) for row in part) / SPAN for name in ("reward", "cut", "entropy")}
        for part in (rows[:SPAN], rows[-SPAN:])
    )
    without_reward = first["reward"] >= SMALLEST and last["reward"] < LOST * first["reward"]
    endless = first["cut"] <= BEFORE and last["cut"] >= CUT
    if not (without_reward or endless):
        return None
    steps = [f"{part[0]['step']} to {part[-1]['step']}" for part in (rows[:SPAN], rows[-SPAN:])]
    changes = (
        f"the reward went from {first['reward']:.2f} to {last['reward']:.2f}, cut responses from {first['cut']:.0%} to "
        f"{last['cut']:.0%}, and entropy from {first['entropy']:.2f} to {last['entropy']:.2f} nats"
    )
    return (
        f"The policy has collapsed by step {rows[-1]['step']}: between steps {steps[0]} and {steps[1]}, {changes}."
        " Start again with fewer --internal-steps or a lower --learning-rate."
    )
