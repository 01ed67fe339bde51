"""A series of checkpoints as one object, with its tables and figures."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from internal_policy.errors import InputError, counted
from internal_policy.jupyter import notebook
from internal_policy.jupyter.notebook import printable
from internal_policy.look import runs, studies, view
from internal_policy.look.runs import RunTables, find
from internal_policy.look.scan import Scan, open_scan
from internal_policy.look.statistics import Average

if TYPE_CHECKING:
    from internal_policy.look.plots import Plots


@dataclass(frozen=True, repr=False)
class Study(RunTables):
    """The layers of a model at several steps of its training, over the same rollouts, with one readout.

    Layers count from 0. The layer one past the last holds `final`, the model's own policy.
    """

    readout: str = "raw"
    """How hidden states were unembedded."""

    def view(self, readout: str) -> "Study":
        """The same study with another readout. Raises InputError if it wasn't measured."""
        if readout not in (known := studies.readouts(self.folder)):
            raise InputError(f"{self.name} has no readout '{readout!s:.60}', only {', '.join(known)}.")
        return replace(self, readout=readout)

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """One row per step: step, name (of the checkpoint), and scan (its name in `internal-policy ls`, if any)."""
        return pd.DataFrame(studies.about(self.folder)["steps"], columns=["step", "name", "scan"])

    @property
    def steps(self) -> list[int]:
        """The steps that were scanned."""
        return [each["step"] for each in studies.about(self.folder)["steps"]]

    def dynamics(self) -> pd.DataFrame:
        """Means over all tokens, one row per step x layer x site, with entropy changes, as a training run keeps them.

        Columns: step, layer, site and the measures; `change` is the entropy change in nats.
        """
        return runs.with_changes(studies.by_step(self.layers()))

    def layers(self) -> pd.DataFrame:
        """Means over the tokens of each rollout, one row per step x rollout x layer x site, like `Scan.layers`.

        A training run only keeps means over all rollouts, which are rollout 0.
        """
        return studies.layers(self.folder, self.readout)

    def means(self, measure: str = "entropy", average: Average = "tokens") -> pd.DataFrame:
        """The mean of a measure at each step, layer and site, with its 95% interval.

        Columns: step, layer, site, and mean, low and high in the measure's unit, as from `Scan.means`. The measure
        `change` is the entropy change of attention (attn_out), FFN (mlp_out) and layer (resid_post). The interval is
        over rollouts, NaN for a training run. Raises InputError for a measure that wasn't measured.
        """
        return studies.means(self.layers(), measure, average)

    def since(self, measure: str = "entropy", average: Average = "tokens", start: int | None = None) -> pd.DataFrame:
        """How much a measure changed since a step, by default the first, at each later step, layer and site.

        Columns: step, layer, site, and mean, low and high (the 95% interval over rollouts, which are compared in pairs;
        NaN for a training run). Raises InputError for a step that wasn't scanned, and if there is only one.
        """
        return studies.changes_since(self.layers(), measure, average, start)

    def scan(self, step: int) -> Scan:
        """The whole scan of a step, with its tokens. Raises InputError if none was kept, or it was removed since."""
        found = {each["step"]: each["scan"] for each in studies.about(self.folder)["steps"]}
        if step not in found:
            raise InputError(f"{self.name} has no step {step}. Choose one of {', '.join(map(str, found))}.")
        if found[step] is None:
            raise InputError(f"{self.name} only kept the layers of step {step}, not a whole scan.")
        return open_scan(str(found[step]))

    @property
    def plot(self) -> "Plots":
        """Figures by name, such as `study.plot.steps()`. Raises InputError without plotly."""
        notebook.need_plotly()
        from internal_policy.look.plots import RunPlots

        return RunPlots(self)

    def __repr__(self) -> str:
        """Its name, steps and readout."""
        steps = self.steps
        said = f"{counted(len(steps), 'step')} from {steps[0]} to {steps[-1]}, {view.how(self.readout)}"
        return f"<Study {printable(self.name)}: {said}>"

    def _repr_html_(self) -> str:
        """The entropies of the last step as a small picture, and the checkpoints, for a notebook without network."""
        return notebook.page(lambda: _last(self), lambda: notebook.table(self.checkpoints.set_index("step")))


def open_study(name: str | Path) -> Study:
    """A study that `scan --checkpoints` or `ScanCallback` wrote, or a training run, by its folder or name.

        study = ip.open_study("studies/checkpoints-3fa9c1")
        study.means()                                # step, layer, site, mean, low, high
        study.since("entropy")                       # the change since the first step
        study.plot.steps(), study.plot.dynamics(measure="entropy", difference=True)

    docs/watch.md shows how to make one. Raises InputError for an unknown study, with the names of the known ones, and
    for a damaged one.
    """
    known = studies.listed()
    short = {each.rpartition("/")[2]: folder for each, folder in known.items()}
    folder = known.get(str(name)) or short.get(str(name)) or find(str(name))
    if not studies.has_steps(folder):
        names = f"Choose one of {', '.join(known)}, or give its folder." if known else "Give the folder of one."
        raise InputError(f"There is no study '{name!s:.80}'. {names}")
    return Study(folder, str(name) if folder != Path(name) else folder.name, studies.readouts(folder)[0])


def _last(study: Study) -> str:
    notebook.need_plotly()
    from internal_policy.look.sketch import sketch

    return sketch(study.plot.steps())
