"""`internal-policy evaluate --plan`: the smallest difference that a sample can detect, before sampling it."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from internal_policy.cli import paired
from internal_policy.cli.console import document, paragraph, uncut
from internal_policy.errors import InputError, counted

WANTED = (10.0, 5.0, 2.0, 1.0)
"""Differences in percentage points to plan for if none is asked for."""
DESIGNS = {"paired": True, "unpaired": False}
"""Name of a comparison -> whether both models answer the same problems."""


def run(names: Sequence[str], problems: int | None, samples: int, detect: float | None, *, as_json: bool) -> None:
    """Print what a sample detects, and what differences need.

    `names` are up to two evaluations that show how much problems vary, and `problems` is the number to plan for; None
    for as many as those have. `detect` is the wanted difference in percentage points. Raises InputError.
    """
    from internal_policy.tasks import pass_at_k, power

    if detect is not None and not 0 < detect < 100:
        raise InputError(f"--detect is {detect:g}. Give a difference in percentage points, such as 5.")
    if samples < 1:
        raise InputError(f"samples is {samples}; it must be 1 or more.")
    read = [paired.read(name) for name in names]
    right = _right(read)
    number = problems if problems is not None else len(right[0])
    spread = power.estimated(right, read[0].samples) if read else power.assumed()
    rows = [
        {"samples": k, **{name: power.smallest(spread, k, number, paired=one) for name, one in DESIGNS.items()}}
        for k in pass_at_k.ks(samples)
    ]
    wanted = WANTED if detect is None else (detect,)
    needs = [
        {"points": d, **{name: power.needed(spread, samples, d / 100, paired=one) for name, one in DESIGNS.items()}}
        for d in wanted
    ]
    said = _source(read)
    if as_json:
        spreads = {"between": spread.between, "within": spread.within, "shared": spread.shared}
        given = {"problems": number, "samples": samples, "power": power.POWER, "level": power.LEVEL}
        document({**given, **spreads, "smallest": rows, "needed": needs, "source": said})
        return
    uncut(_smallest(rows, number))
    uncut(_needed(needs, samples))
    paragraph(
        "With 80% power at the 5% level, two-sided. Paired: both models answer the same problems; compare them with "
        "`internal-policy evaluate A B --paired`. Unpaired: they answer different ones."
    )
    paragraph(said)


def _right(read: "Sequence[paired.Evaluation]") -> list[list[int]]:
    """How many responses to each problem are correct in each evaluation, over all sets of problems."""
    if len(read) == 2:
        return [list(counts) for counts in list(paired.aligned(read[0], read[1]).values())[-1]]
    return [[count for found in each.right().values() for count in found["correct"]] for each in read]


def _source(read: "Sequence[paired.Evaluation]") -> str:
    """Where the variances come from, in a sentence."""
    from internal_policy.tasks.power import CORRELATION, MEAN, SHARE

    correlated = f"the problems that are hard for one model are hard for the other (correlation {CORRELATION:g})"
    if not read:
        return (
            f"Assumed: {MEAN:.0%} of the responses are correct, {SHARE:.0%} of their variance lies between problems, "
            f"and {correlated}. Name an evaluation, or one of each model, to take this from their responses."
        )
    names = " and ".join(each.name for each in read)
    split = f" Assumed: {SHARE:.0%} of the variance lies between problems." if read[0].samples == 1 else ""
    if len(read) == 1:
        return f"The variance within and between problems is that of {names}.{split} Assumed: {correlated}."
    return f"The variances, and how alike problems are for both models, are those of {names}.{split}"


def _smallest(rows: Sequence[dict[str, Any]], number: int) -> Table:
    title = f"Smallest difference of Avg@K that {counted(number, 'problem')} can detect, in percentage points"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("responses per problem", "paired", "unpaired"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(str(row["samples"]), *(_points(row[name]) for name in DESIGNS))
    return table


def _points(share: float) -> str:
    if share != share:
        return "none"
    return f"{100 * share:.1f}" if share <= 1 else "none"


def _needed(needs: Sequence[dict[str, Any]], samples: int) -> Table:
    title = f"Problems that a difference needs, with {counted(samples, 'response')} each"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("difference", "paired", "unpaired"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in needs:
        table.add_row(f"{row['points']:g}", *(f"{row[name]:,}" for name in DESIGNS))
    return table
