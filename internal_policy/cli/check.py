"""`internal-policy check`: judge whether the entropy pattern of a scan is real."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli.common import JsonOptions, ScanName, ViewOptions
from internal_policy.cli.console import commands, document, paragraph, uncut
from internal_policy.cli.plot import view_of
from internal_policy.scans.address import called

if TYPE_CHECKING:
    from internal_policy.look.check import Check as Checked
    from internal_policy.look.view import View


@dataclass(frozen=True, kw_only=True)
class Check(JsonOptions, ViewOptions):
    """Judge whether the entropy pattern of a scan is real.

    Four kinds of claims (the entropy flow, the entropy changes, the stages and the target layer) are tested under
    controls: without sinks and massive activations, by direction instead of length, against random hidden states, by
    other entropies and through other readouts. What the scan didn't measure is not tested; `scan --controls` measures
    all of it.

    For example:
    $ internal-policy check demo-qwen3
    $ internal-policy check 3fa9 --outcome correct --json
    """

    group: ClassVar = "Scan"
    scan: ScanName
    """Scan to check: its folder, the first digits of its name in `internal-policy ls`, or a bundled scan such as
    demo-qwen3."""


def run(options: Check) -> None:
    """Print the verdicts, and the outcome of every claim under every control."""
    from internal_policy.look import check, view

    one = view_of(options.scan, options)
    found = check.check(one)
    if options.json:
        document(facts(one, found))
        return
    about = view.about(one)
    for row in found.verdicts.to_dict("records"):
        paragraph(f"{row['title']}: {row['verdict']}. {row['reason']}")
    uncut(_table(found, f"{about.model}: what survives which control, {view.how(one.readout)}"))
    paragraph(check.LEGEND)
    for note in found.notes:
        paragraph(note)
    commands([found.command] if found.command else [])


def facts(one: "View", found: "Checked") -> dict[str, Any]:
    """What --json prints: every verdict, every outcome and every control."""
    frames = {name: getattr(found, name).to_dict("records") for name in ("verdicts", "results", "controls")}
    command = {"options": found.options, "command": found.command}
    return {"scan": called(one.source), "readout": one.readout, **frames, **command}


def _table(found: "Checked", title: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in found.matrix:
        table.add_column("" if name == "control" else str(name), justify="left", no_wrap=True)
    for row in found.matrix.to_numpy():
        table.add_row(*map(escape, row))
    return table
