"""Every figure of a training run by its name, from the data to the drawing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from internal_policy.errors import InputError
from internal_policy.look import choices, runs, training_figures
from internal_policy.look.runs import RunTables
from internal_policy.look.theme import Style


@dataclass(frozen=True)
class RunChoice:
    """What a figure shows of a training run. Each figure takes what it uses."""

    measure: str | None = None
    """Measure of dynamics; None for the first that was measured."""
    site: str | None = None
    """Site of dynamics; None for the first that has the measure."""
    style: Style = "screen"
    """`screen`, or `paper` for print, where layers count from 1."""


def _measured(run: RunTables, choice: RunChoice) -> tuple[pd.DataFrame, str, str]:
    """The table of layers, with the measure and site to draw. Raises InputError if the run lacks them."""
    frame = run.dynamics()
    known = runs.measures(frame)
    if not known:
        raise InputError(f"{run.folder} has no measures of its layers. Train with --scan-every 1 or more.")
    measure = choice.measure or known[0]
    if measure not in known:
        raise InputError(f"{run.folder} has no {measure}. Choose one of {', '.join(known)}.")
    sites = runs.sites(frame, measure)
    site = choice.site or sites[0]
    if site not in sites:
        raise InputError(f"{run.folder} has no {measure} at {site}. Choose one of {', '.join(sites)}.")
    return frame, measure, site


def _dynamics(run: RunTables, choice: RunChoice) -> pd.DataFrame:
    frame, _, site = _measured(run, choice)
    return frame[frame["site"].isin([site, "final"])]


def dynamics(run: RunTables, choice: RunChoice) -> go.Figure:
    """A measure by layer and training step, with the reward below (Figs. 5 and 7)."""
    frame, measure, site = _measured(run, choice)
    metrics = run.metrics()
    caption = runs.caption(run.name, metrics, frame)
    return training_figures.dynamics(frame, metrics, caption, measure, site, choice.style)


def _layer(run: RunTables) -> int:
    """The layer trained first or watched. Raises InputError if there is none."""
    layer = runs.trained(run.metrics(), run.dynamics())
    if layer is None:
        raise InputError(
            f"{run.folder} doesn't say which layer was trained or watched. Train with --scan-every 1 or more."
        )
    return layer


def _trained(run: RunTables) -> pd.DataFrame:
    frame = run.dynamics()
    return frame[(frame["layer"] >= _layer(run)) & frame["site"].isin(training_figures.BESIDE)]


def trained(run: RunTables, choice: RunChoice) -> go.Figure:
    """The layer trained first compared with later ones, and its entropy change (Fig. 5)."""
    frame, metrics = run.dynamics(), run.metrics()
    caption = runs.caption(run.name, metrics, frame)
    return training_figures.trained(frame, metrics, _layer(run), caption, choice.style)


def training(run: RunTables, choice: RunChoice) -> go.Figure:
    """Entropy, reward, clip fraction and perplexity by training step (Fig. 6)."""
    metrics = run.metrics()
    return training_figures.training(metrics, runs.caption(run.name, metrics), choice.style)


def pass_at_k(run: RunTables, choice: RunChoice) -> go.Figure:
    """Pass@k by k, one curve per evaluated model."""
    return training_figures.pass_at_k(run.pass_at_k(), run.name, choice.style)


class Entry(NamedTuple):
    """A figure of a training run."""

    read: Callable[[RunTables, RunChoice], pd.DataFrame]
    """The numbers in the figure."""
    draw: Callable[[RunTables, RunChoice], go.Figure]
    """The figure. Its docstring describes it."""
    uses: tuple[str, ...] = ()
    """What can be chosen: fields of `RunChoice`. Every figure has a style."""


FIGURES: Mapping[str, Entry] = {
    "dynamics": Entry(_dynamics, dynamics, ("measure", "site")),
    "trained": Entry(lambda run, _: _trained(run), trained),
    "training": Entry(lambda run, _: run.metrics(), training),
    "pass-at-k": Entry(lambda run, _: run.pass_at_k(), pass_at_k),
}
"""Name -> how to draw it, and what can be chosen."""
USES: Mapping[str, tuple[str, ...]] = {name: entry.uses for name, entry in FIGURES.items()}
"""Name -> what can be chosen of the figure."""


def data(name: str, run: RunTables, choice: RunChoice) -> pd.DataFrame:
    """The numbers in the figure with that name.

    Raises InputError for a choice that it doesn't use, or if the run lacks them.
    """
    choices.check(name, choices.changed(choice), USES)
    return FIGURES[name].read(run, choice)


def draw(name: str, run: RunTables, choice: RunChoice) -> go.Figure:
    """The figure with that name. Raises InputError as `data` does."""
    choices.check(name, choices.changed(choice), USES)
    return FIGURES[name].draw(run, choice)
