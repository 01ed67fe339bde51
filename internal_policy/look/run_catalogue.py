"""Every figure of a training run by its name, from the data to the drawing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from internal_policy.errors import InputError, counted
from internal_policy.look import (
    choices,
    exam_figure,
    runs,
    seed_figures,
    seeds,
    step_figures,
    studies,
    training_figures,
)
from internal_policy.look.runs import RunTables
from internal_policy.look.theme import Style

MOST = 6
"""Most runs in one figure whose lines are still distinguishable."""
WINDOW = 10
"""Steps that each point of the comparison over seeds averages, unless told otherwise."""


@dataclass(frozen=True)
class RunChoice:
    """What a figure shows of a training run. Each figure takes what it uses."""

    measure: str | None = None
    """Measure of dynamics and layer; None for the first that was measured."""
    site: str | None = None
    """Site of dynamics and layer; None for the first that has the measure."""
    layer: int | None = None
    """Layer of the figure layer, from 0; None for the layer that was trained first or watched."""
    difference: bool = False
    """Whether dynamics, trained and layer show differences from the first scan, before training."""
    smooth: int | None = None
    """Steps that each point of training or seeds averages, up to its own; None for 1, or 10 in seeds."""
    readout: str | None = None
    """Readout of steps; None for the first that was measured."""
    step: int | None = None
    """Step that the figure steps shows first; None for the last."""
    method: str | None = None
    """Method that seeds compares with GRPO, by its name in that figure; None for BuPO with the most seeds."""
    style: Style = "screen"
    """`screen`, or `paper` for print, where layers count from 1."""


Chosen = Sequence[RunTables]


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


def _dynamics(chosen: Chosen, choice: RunChoice) -> pd.DataFrame:
    frame, measure, site = _measured(chosen[0], choice)
    rows = frame[frame["site"].isin([site, "final"])]
    return runs.since_start(rows, measure) if choice.difference else rows


def dynamics(chosen: Chosen, choice: RunChoice) -> go.Figure:
    """A measure by layer and training step, or its difference from step 0, with the reward below (Figs. 5 and 7)."""
    (run,) = chosen
    frame, measure, site = _measured(run, choice)
    metrics = _metrics(run)
    caption = _of_steps(run, frame) if metrics is None else runs.caption(run.name, metrics, frame)
    return training_figures.dynamics(frame, metrics, caption, measure, site, choice.style, difference=choice.difference)


def _metrics(run: RunTables) -> pd.DataFrame | None:
    """The numbers of each training step; None for a study, which has none."""
    return None if studies.is_study(run.folder) else run.metrics()


def _of_steps(run: RunTables, frame: pd.DataFrame) -> str:
    return f"{run.name} · {counted(frame['step'].nunique(), 'step')}"


def _target(run: RunTables) -> int:
    """The layer trained first or watched. Raises InputError if there is none."""
    if studies.is_study(run.folder):
        raise InputError(f"{run.name} is a study of checkpoints, in which no layer was chosen. Choose a layer.")
    layer = runs.trained(run.metrics(), run.dynamics())
    if layer is None:
        raise InputError(
            f"{run.folder} doesn't say which layer was trained or watched. Train with --scan-every 1 or more."
        )
    return layer


def _trained(chosen: Chosen) -> pd.DataFrame:
    frame = chosen[0].dynamics()
    return frame[(frame["layer"] >= _target(chosen[0])) & frame["site"].isin(training_figures.BESIDE)]


def trained(chosen: Chosen, choice: RunChoice) -> go.Figure:
    """The layer trained first compared with later ones, and its entropy change (Fig. 5)."""
    (run,) = chosen
    frame, metrics = run.dynamics(), run.metrics()
    caption, target = runs.caption(run.name, metrics, frame), _target(run)
    return training_figures.trained(frame, metrics, target, caption, choice.style, difference=choice.difference)


def _layer(chosen: Chosen, choice: RunChoice) -> tuple[dict[str, pd.DataFrame], int, str, str]:
    """Rows of one layer and site by the run's label, with the layer, measure and site. Raises InputError."""
    _, measure, site = _measured(chosen[0], choice)
    target = _target(chosen[0]) if choice.layer is None else choice.layer
    tables = {}
    for label, run in zip(runs.labels(chosen), chosen, strict=True):
        frame, _, _ = _measured(run, replace(choice, measure=measure, site=site))
        rows = frame[(frame["layer"] == target) & (frame["site"] == site) & frame[measure].notna()]
        if not len(rows):
            raise InputError(f"{run.folder} has no {measure} at layer {target}. Choose another layer or measure.")
        tables[label] = rows
    return tables, target, measure, site


def layer(chosen: Chosen, choice: RunChoice) -> go.Figure:
    """A measure at one layer by training step, one line for each of up to six runs."""
    tables, target, measure, site = _layer(chosen, choice)
    caption = _caption(chosen)
    return training_figures.layer(tables, target, caption, measure, site, choice.style, difference=choice.difference)


def _layers(chosen: Chosen, choice: RunChoice) -> pd.DataFrame:
    tables, _, measure, _ = _layer(chosen, choice)
    found = {label: runs.since_start(rows, measure) if choice.difference else rows for label, rows in tables.items()}
    return pd.concat([rows.assign(run=label) for label, rows in found.items()], ignore_index=True)


def _caption(chosen: Chosen) -> str:
    (first, *others) = chosen
    if others:
        return f"{len(chosen)} runs"
    metrics = _metrics(first)
    return _of_steps(first, first.dynamics()) if metrics is None else runs.caption(first.name, metrics)


def _training(chosen: Chosen) -> pd.DataFrame:
    tables = {label: run.metrics() for label, run in zip(runs.labels(chosen), chosen, strict=True)}
    if len(tables) == 1:
        return chosen[0].metrics()
    return pd.concat([metrics.assign(run=label) for label, metrics in tables.items()], ignore_index=True)


def training(chosen: Chosen, choice: RunChoice) -> go.Figure:
    """Entropy, reward, clip fraction and perplexity by training step (Fig. 6), of up to six runs."""
    window = choice.smooth or 1
    if len(chosen) == 1:
        return training_figures.training(chosen[0].metrics(), _caption(chosen), choice.style, window=window)
    tables = {label: run.metrics() for label, run in zip(runs.labels(chosen), chosen, strict=True)}
    return training_figures.several(tables, _caption(chosen), choice.style, window=window)


def _exams(chosen: Chosen) -> pd.DataFrame:
    if len(chosen) == 1:
        return chosen[0].exams()
    labelled = zip(runs.labels(chosen), chosen, strict=True)
    return pd.concat([runs.overall(run.exams()).assign(run=label) for label, run in labelled], ignore_index=True)


def exam(chosen: Chosen, choice: RunChoice) -> go.Figure:
    """Avg@K and Pass@K on held-out problems by training step, beside the reward in training, of up to six runs."""
    if len(chosen) == 1:
        return exam_figure.exam(chosen[0].exams(), chosen[0].metrics(), _caption(chosen), choice.style)
    tables = {label: (run.exams(), run.metrics()) for label, run in zip(runs.labels(chosen), chosen, strict=True)}
    return exam_figure.several(tables, choice.style)


def _seeds(chosen: Chosen, choice: RunChoice) -> pd.DataFrame:
    curves, difference, _ = seeds.compared(seeds.read(chosen), choice.method, choice.smooth or WINDOW)
    return pd.concat([curves, difference.assign(method=" - ".join(curves["method"].unique()))], ignore_index=True)


def by_seed(chosen: Chosen, choice: RunChoice) -> go.Figure:
    """Reward of a method and of GRPO with 95% intervals over seeds, and their difference with the same seed.

    With one run it takes the runs that were recorded beside it, in steps.parquet; with more, the runs themselves.
    """
    window = choice.smooth or WINDOW
    curves, difference, name = seeds.compared(seeds.read(chosen), choice.method, window)
    return seed_figures.seeds(curves, difference, name, choice.style, window=window)


def pass_at_k(chosen: Chosen, choice: RunChoice) -> go.Figure:
    """Pass@k by k, one curve per evaluated model."""
    (run,) = chosen
    return exam_figure.pass_at_k(run.pass_at_k(), run.name, choice.style)


def _steps(chosen: Chosen, choice: RunChoice) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Means of a measure by step, its changes since the first, and what the record says. Raises InputError."""
    (run,) = chosen
    about = studies.about(run.folder)
    frame = studies.layers(run.folder, choice.readout or getattr(run, "readout", None))
    measure = choice.measure or studies.measures(frame)[0]
    values = studies.means(frame, measure)
    since = studies.changes_since(frame, measure) if frame["step"].nunique() > 1 else values[:0]
    return values, since, {**about, "readout": frame["readout"].iloc[0], "measure": measure}


def _both(chosen: Chosen, choice: RunChoice) -> pd.DataFrame:
    values, since, _ = _steps(chosen, choice)
    keys = ["step", "layer", "site"]
    named = since.rename(columns={"mean": "since_first", "low": "since_first_low", "high": "since_first_high"})
    return values.merge(named, how="left", on=keys)


def steps(chosen: Chosen, choice: RunChoice) -> go.Figure:
    """A measure by layer at each step, with a slider to play them, and its change since the first step below."""
    values, since, about = _steps(chosen, choice)
    name = getattr(chosen[0], "name", "")
    return step_figures.steps(values, since, name, about, choice.step, choice.style)


class Entry(NamedTuple):
    """A figure of a training run."""

    read: Callable[[Chosen, RunChoice], pd.DataFrame]
    """The numbers in the figure."""
    draw: Callable[[Chosen, RunChoice], go.Figure]
    """The figure. Its docstring describes it."""
    uses: tuple[str, ...] = ()
    """What can be chosen: fields of `RunChoice`, or `against` for more runs. Every figure has a style."""


FIGURES: Mapping[str, Entry] = {
    "dynamics": Entry(_dynamics, dynamics, ("measure", "site", "difference")),
    "steps": Entry(_both, steps, ("measure", "readout", "step")),
    "trained": Entry(lambda chosen, _: _trained(chosen), trained, ("difference",)),
    "layer": Entry(_layers, layer, ("measure", "site", "layer", "difference", "against")),
    "exam": Entry(lambda chosen, _: _exams(chosen), exam, ("against",)),
    "training": Entry(lambda chosen, _: _training(chosen), training, ("smooth", "against")),
    "seeds": Entry(_seeds, by_seed, ("smooth", "method", "against")),
    "pass-at-k": Entry(lambda chosen, _: chosen[0].pass_at_k(), pass_at_k),
}
"""Name -> how to draw it, and what can be chosen."""
USES: Mapping[str, tuple[str, ...]] = {name: entry.uses for name, entry in FIGURES.items()}
"""Name -> what can be chosen of the figure."""


def data(name: str, chosen: Chosen, choice: RunChoice) -> pd.DataFrame:
    """The numbers in the figure with that name.

    Raises InputError for a choice that it doesn't use, for too many runs, or if a run lacks them.
    """
    _check(name, chosen, choice)
    return FIGURES[name].read(chosen, choice)


def draw(name: str, chosen: Chosen, choice: RunChoice) -> go.Figure:
    """The figure with that name. Raises InputError as `data` does."""
    _check(name, chosen, choice)
    return FIGURES[name].draw(chosen, choice)


def _check(name: str, chosen: Chosen, choice: RunChoice) -> None:
    choices.check(name, choices.changed(choice), USES)
    most = MOST if "against" in USES[name] else 1
    if len(chosen) > most and name != "seeds":
        takes = f"at most {MOST} runs" if most > 1 else "a single run"
        raise InputError(f"{len(chosen)} runs can't be drawn in {name}. Give it {takes}.")
    folders = [run.folder.resolve() for run in chosen]
    if twice := next((run.name for run in chosen if folders.count(run.folder.resolve()) > 1), None):
        raise InputError(f"{twice} is given twice. Name each run once.")
    if choice.smooth is not None and choice.smooth < 1:
        raise InputError(f"Can't average over {choice.smooth} steps. Choose 1 or more.")
