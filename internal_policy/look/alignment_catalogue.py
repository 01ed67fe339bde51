"""Every figure of an alignment by its name, from the data to the drawing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from internal_policy.errors import InputError, joined
from internal_policy.look import alignment as alignments
from internal_policy.look import alignment_figure, choices
from internal_policy.look.alignment import AlignmentTable
from internal_policy.look.theme import Style


@dataclass(frozen=True)
class AlignmentChoice:
    """What a figure shows of an alignment."""

    site: str | None = None
    """Site whose policies are drawn: resid_post, attn_out or mlp_out; None for the first that was measured."""
    style: Style = "screen"
    """`screen`, or `paper` for print, where layers count from 1."""


Chosen = Sequence[AlignmentTable]


def sites(found: AlignmentTable) -> list[str]:
    """The sites that were measured, in order."""
    return list(dict.fromkeys(site for site, _ in alignments.policies(found.table)))


def _site(found: AlignmentTable, choice: AlignmentChoice) -> str:
    """The site to draw. Raises InputError if it wasn't measured."""
    known = sites(found)
    site = choice.site or known[0]
    if site not in known:
        raise InputError(f"This alignment has no {site}, but {joined(known)}. Align again with --sites {site}.")
    return site


def _gains(chosen: Chosen, choice: AlignmentChoice) -> pd.DataFrame:
    (found,) = chosen
    return alignment_figure.rows(found, _site(found, choice))


def alignment(chosen: Chosen, choice: AlignmentChoice) -> go.Figure:
    """Share of GRPO's first-order gain that a step on each layer's policy has, raw and norm, beside the step's cost."""
    (found,) = chosen
    return alignment_figure.alignment(found, _site(found, choice), choice.style)


class Entry(NamedTuple):
    """A figure of an alignment."""

    read: Callable[[Chosen, AlignmentChoice], pd.DataFrame]
    """The numbers in the figure."""
    draw: Callable[[Chosen, AlignmentChoice], go.Figure]
    """The figure. Its docstring describes it."""
    uses: tuple[str, ...] = ()
    """What can be chosen: fields of `AlignmentChoice`. Every figure has a style."""


FIGURES: Mapping[str, Entry] = {"alignment": Entry(_gains, alignment, ("site",))}
"""Name -> how to draw it, and what can be chosen."""
USES: Mapping[str, tuple[str, ...]] = {name: entry.uses for name, entry in FIGURES.items()}
"""Name -> what can be chosen of the figure."""


def data(name: str, chosen: Chosen, choice: AlignmentChoice) -> pd.DataFrame:
    """The numbers in the figure with that name. Raises InputError for a site that wasn't measured."""
    _check(name, chosen, choice)
    return FIGURES[name].read(chosen, choice)


def draw(name: str, chosen: Chosen, choice: AlignmentChoice) -> go.Figure:
    """The figure with that name. Raises InputError as `data` does."""
    _check(name, chosen, choice)
    return FIGURES[name].draw(chosen, choice)


def _check(name: str, chosen: Chosen, choice: AlignmentChoice) -> None:
    choices.check(name, choices.changed(choice), USES)
    if len(chosen) != 1:
        raise InputError(f"{name} draws a single alignment, but {len(chosen)} are given.")
