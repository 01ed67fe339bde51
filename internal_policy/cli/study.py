"""Print a study: a series of checkpoints that were scanned over the same rollouts."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli.console import commands, document, out, paragraph, uncut
from internal_policy.cli.inventory import Item
from internal_policy.errors import counted
from internal_policy.models.series import Member, Series

if TYPE_CHECKING:
    import pandas as pd

    from internal_policy.look.study import Study

SHOWN = ("attn_out", "mlp_out", "resid_post", "final")
"""Sites of the table; --json has all of them."""


def planned(found: Series, members: Sequence[Member], *, as_json: bool = False) -> None:
    """Print which checkpoints would be scanned."""
    if as_json:
        document({"checkpoints": found.place, "skipped": [*found.skipped], "steps": [vars(one) for one in members]})
        return
    table = Table(title=escape(f"Checkpoints of {found.place}"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("step", justify="right")
    table.add_column("name")
    for one in members:
        table.add_row(f"{one.step:,}", escape(one.name))
    uncut(table)
    paragraph(f"{counted(len(members), 'checkpoint')} would be scanned. Nothing was measured.")


def printed(item: Item, readout: str | None, *, as_json: bool = False) -> None:
    """The checkpoints of a study, and the entropies by layer at its last step with the change since the first.

    Raises InputError for a readout that wasn't measured.
    """
    from internal_policy.look import differences, legend, studies, view
    from internal_policy.look.study import open_study

    study = open_study(item.folder)
    study = study.view(readout) if readout else study
    about, frame = studies.about(item.folder), study.layers()
    measure, steps = studies.measures(frame)[0], study.steps
    values = studies.means(frame, measure)
    since = studies.changes_since(frame, measure) if len(steps) > 1 else values[:0].assign(low_all=[], high_all=[])
    last = since[since["step"] == steps[-1]].rename(columns={"mean": "difference"})
    said = differences.in_words(last, measure, f"at step {steps[-1]:,} against step {steps[0]:,}")
    if as_json:
        kept = {name: value for name, value in about.items() if name not in ("files", "asked")}
        rows = {"means": values.to_dict("records"), "since_first": since.to_dict("records"), "findings": said}
        document({"study": str(item.folder), **kept, "readout": study.readout, "measure": measure, **rows})
        return
    checkpoints = f"{counted(len(steps), 'checkpoint')} of {about['model']}, steps {_span(steps)}"
    responses = f"{counted(about['rollouts'], 'rollout')}, {counted(about['tokens'], 'token')}"
    paragraph(f"{checkpoints}; {responses}: {about['responses']}.")
    title = f"{legend.MEASURES[measure][0]} at step {steps[-1]:,}, {view.how(study.readout)}"
    title += f", and change since step {steps[0]:,}; * significant for all layers at once" if len(last) else ""
    uncut(_layers(values[values["step"] == steps[-1]], last, title))
    if said:
        paragraph(said)
    others = [name for name in studies.readouts(item.folder) if name != study.readout]
    if others:
        paragraph(f"Also measured: {', '.join(others)}.")
    out.print(f"Study: {escape(str(item.folder))}", emoji=False)
    commands(_next(item, study))


def _span(steps: Sequence[int]) -> str:
    few = [f"{step:,}" for step in steps]
    return ", ".join(few) if len(few) <= 8 else f"{', '.join(few[:3])} ... {few[-1]}"


def _layers(values: "pd.DataFrame", since: "pd.DataFrame", title: str) -> Table:
    """A row for each layer: the mean of each site, and its change since the first step."""
    from internal_policy.look import differences, legend

    sites = [site for site in SHOWN[:-1] if site in {*values["site"]}]
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", justify="right", no_wrap=True)
    for site in sites:
        for name in (legend.SITES[site].name, "change") if len(since) else (legend.SITES[site].name,):
            table.add_column(name, justify="right", no_wrap=True)
    known = {(row["layer"], row["site"]): row for row in values.to_dict("records")}
    marked = since.assign(star=differences.is_significant(since).map({True: "*", False: " "})) if len(since) else since
    changed = {(row["layer"], row["site"]): row for row in marked.to_dict("records")}

    def cells(layer: int, site: str) -> list[str]:
        value, change = known.get((layer, site)), changed.get((layer, site))
        said = [f"{value['mean']:.3f}" if value else ""]
        return [*said, f"{change['difference']:+.3f}{change['star']}" if change else ""] if len(since) else said

    final = int(values["layer"].max()) if "final" in {*values["site"]} else None
    for layer in sorted({*values["layer"]} - {final}):
        table.add_row(str(layer), *(cell for site in sites for cell in cells(layer, site)))
    if final is not None and sites:
        width = 2 if len(since) else 1
        table.add_row("final", *[""] * (width * (len(sites) - 1)), *cells(final, "final"))
    return table


def _next(item: Item, study: "Study") -> list[str]:
    """The commands to run after showing a study."""
    name = shlex.quote(item.name)
    scans: Any = study.checkpoints["scan"]
    compared = [f"internal-policy compare {name}"] if scans.notna().all() and len(study.steps) > 1 else []
    drawn = [f"internal-policy plot {name} steps -o steps.html"] if len(study.steps) > 1 else []
    return [*drawn, *compared]
