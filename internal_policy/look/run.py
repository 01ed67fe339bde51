"""A training run as one object, with its tables and figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.jupyter import notebook
from internal_policy.jupyter.notebook import printable
from internal_policy.look.runs import METRICS, RunTables, caption, find, listed, read

if TYPE_CHECKING:
    from internal_policy.look.plots import Plots

SHOWN = 8
"""Steps in the table that a notebook shows."""


@dataclass(frozen=True, repr=False)
class Run(RunTables):
    """A training run on disk, with its figures."""

    @property
    def plot(self) -> "Plots":
        """Figures by name, such as `run.plot.training()`. Raises InputError without plotly."""
        notebook.need_plotly()
        from internal_policy.look.plots import RunPlots

        return RunPlots(self)

    def __repr__(self) -> str:
        """Its name, steps and phases."""
        return f"<Run {printable(caption(self.name, self.metrics()))}>"

    def _repr_html_(self) -> str:
        """The training curves as a small picture, and a table of some steps, for a notebook without network."""
        return notebook.page(lambda: _curves(self), lambda: notebook.table(_some_steps(self.metrics())))


def open_run(name: str | Path) -> Run:
    """A training run on disk, by its folder or its name below the cache; two come with the package.

        run = ip.open_run("experiments/bupo")
        run.metrics()                        # a row a step: reward, entropy, ...
        run.dynamics()                       # the layers while they were trained
        run.plot.training(), run.plot.trained(), run.plot.dynamics(measure="entropy", site="resid_post")

    docs/columns.md explains the columns. Raises InputError for an unknown run, with the names of the known ones, and
    for a damaged one.
    """
    folder, known = find(str(name)), list(listed())
    if not files.is_folder(folder):
        raise InputError(
            f"There is no training run '{name!s:.80}'. Choose one of {', '.join(known)}, or give its folder."
        )
    read(folder, METRICS)
    return Run(folder, str(name) if str(name) in known else folder.name)


def _curves(run: Run) -> str:
    notebook.need_plotly()
    from internal_policy.look.sketch import sketch

    return sketch(run.plot.training())


def _some_steps(metrics: pd.DataFrame) -> pd.DataFrame:
    """The first step, the last, and some in between. Columns that every run has come first."""
    rows = np.unique(np.linspace(0, len(metrics) - 1, SHOWN).round().astype(int))
    first = ["step", "phase", "target", "reward"]
    return metrics[[*first, *metrics.columns.drop(first)]].iloc[rows].set_index("step")
