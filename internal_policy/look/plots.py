"""One method for each figure of the catalogue, such as `scan.plot.flow()`."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from internal_policy.errors import InputError
from internal_policy.jupyter import notebook
from internal_policy.look import alignment_catalogue, catalogue, choices, run_catalogue
from internal_policy.look.alignment_catalogue import AlignmentChoice
from internal_policy.look.catalogue import Choice
from internal_policy.look.run_catalogue import RunChoice

EXAMPLES = {
    Choice: ("scans", "ip.open_scan('demo-llama')"),
    RunChoice: ("runs", "ip.open_run('experiments/grpo')"),
    AlignmentChoice: ("alignments", "ip.open_alignment('demo-llama-alignment')"),
}
"""Choice of a figure -> what it draws, and an example."""


class Plots:
    """The figures of a scan, an alignment or a training run."""

    def __init__(self, shown: Any) -> None:
        """The figures of a `Scan`, an `Alignment` or a `Run`."""
        self._shown = shown

    def __repr__(self) -> str:
        """The names of the figures."""
        return f"<Figures: {', '.join(f'{name}()' for name in self._names())}>"

    def _names(self) -> list[str]:
        return [name for name in dir(self) if not name.startswith("_")]

    def _repr_html_(self) -> str:
        """The figures with what they draw and the options that they take, for a notebook."""
        rows = []
        for name in self._names():
            method = getattr(self, name)
            drawn = (method.__doc__ or "").split("\n")[0]
            rows.append((f"{name}()", drawn, ", ".join(inspect.signature(method).parameters)))
        return notebook.page(lambda: notebook.rows(("figure", "what it draws", "options"), rows))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., go.Figure]:
            """The methods come from the catalogue."""
            ...


def _methods(
    figures: Mapping[str, catalogue.Entry | run_catalogue.Entry | alignment_catalogue.Entry],
    draw: Callable[..., go.Figure],
    choice: type[Choice | RunChoice | AlignmentChoice],
) -> dict[str, Callable[..., go.Figure]]:
    """A method for each figure, which takes the fields of `choice` that it uses; some take others to compare first."""
    keywords = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(choice)
    ]
    uses = {name: figure.uses for name, figure in figures.items()}

    def method(name: str) -> Callable[..., go.Figure]:
        def plot(self: Plots, *others: Any, **options: Any) -> go.Figure:
            if wrong := [other for other in others if not isinstance(other, type(self._shown))]:
                opened, example = EXAMPLES[choice]
                raise InputError(f"Can't draw {wrong[0]!r:.60}. Give opened {opened}, such as {example}.")
            chosen = choice(**options)
            choices.check(name, options, uses)
            return draw(name, [self._shown, *others], chosen)

        first, others, *_ = inspect.signature(plot).parameters.values()
        plot.__name__, plot.__doc__ = name.replace("-", "_"), figures[name].draw.__doc__
        taken = [first, *([others] if "against" in uses[name] else [])]
        taken += [keyword for keyword in keywords if keyword.name in (*uses[name], choices.ALWAYS)]
        plot.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
            taken, return_annotation=go.Figure
        )
        return plot

    return {name.replace("-", "_"): method(name) for name in figures}


ScanPlots = type("ScanPlots", (Plots,), _methods(catalogue.FIGURES, catalogue.draw, Choice))
"""Figures of a scan; `compare` takes the other scans first."""
RunPlots = type("RunPlots", (Plots,), _methods(run_catalogue.FIGURES, run_catalogue.draw, RunChoice))
"""Figures of a training run; `training`, `layer` and `seeds` take other runs first."""
AlignmentPlots = type(
    "AlignmentPlots",
    (Plots,),
    _methods(alignment_catalogue.FIGURES, alignment_catalogue.draw, AlignmentChoice),
)
"""Figures of an alignment."""
