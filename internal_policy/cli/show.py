"""`internal-policy show`: print a scan."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import progress
from internal_policy.cli.common import JsonOptions, ScanName, Text
from internal_policy.cli.console import commands, document, out, paragraph, uncut
from internal_policy.errors import counted

if TYPE_CHECKING:
    from internal_policy.look.view import View


@dataclass(frozen=True, kw_only=True)
class Show(JsonOptions):
    """Print what a scan measured, and its entropies by layer.

    For example:
    $ internal-policy show 3fa9
    $ internal-policy show ./my-scan --readout norm
    """

    group: ClassVar = "Part of the scan"
    scan: ScanName
    """Scan to print: its folder, or the first digits of its name in `internal-policy ls`."""
    readout: Text = None
    """Readout to show: raw, norm or tuned; by default the first that was measured."""


def run(options: Show) -> None:
    """Print one scan."""
    from internal_policy.scans import store

    scan(store.find(options.scan), options.readout, as_json=options.json)


def scan(folder: Path, readout: str | None, *, as_json: bool = False, extra: Mapping[str, Any] | None = None) -> None:
    """A scan: what was measured, and the entropies by layer. Raises InputError for a readout that was not measured."""
    from internal_policy.look import findings, statistics, view
    from internal_policy.scans import store

    record = store.record(folder)
    shown = view.View(folder, readout or record["selection"]["readouts"][0])
    found = findings.findings(shown)
    if warning := statistics.not_finite(store.read(folder, "layers"), record["dtype"]):
        progress.note(warning)
    if as_json:
        kept = {name: value for name, value in record.items() if name not in ("files", "asked", "chat_template")}
        numbers = {"readout": shown.readout, **_numbers(shown), "findings": found.sentences}
        document({"scan": str(folder), **(extra or {}), **kept, **numbers})
        return
    if "entropy" in record["selection"]["measures"]:
        uncut(_entropies(shown, record))
    for sentence in found.sentences:
        paragraph(sentence)
    others = [other for other in record["selection"]["readouts"] if other != shown.readout]
    paragraph(_responses(folder, record) + (f" Also measured: {', '.join(others)}." if others else ""))
    out.print(f"Scan: {escape(str(folder))}", emoji=False)
    commands(found.commands)


def _numbers(shown: "View") -> dict[str, Any]:
    """What --json adds to the record of a scan: the suggested target layer, and a row of entropies for each layer."""
    from internal_policy.look import statistics, targets, view
    from internal_policy.measure.sites import CHANGES

    layers = view.layers(shown)
    if "entropy" not in layers:
        return {"suggested": None, "entropy": []}
    changes = statistics.changes(layers[layers["site"].isin(CHANGES["mlp"])])
    return {
        "suggested": targets.suggestion(changes) if len(changes) else None,
        "entropy": statistics.by_layer(layers, shown.readout).reset_index().to_dict("records"),
    }


def _entropies(shown: "View", record: Mapping[str, Any]) -> Table:
    from internal_policy.look import summary, view

    few = {*summary.BRIEF} & {*record["selection"]["sites"]}
    names, *rows = summary.cells(summary.by_layer(shown, sites=summary.BRIEF) if few else summary.by_layer(shown))
    title = f"{record['model']}: entropy in nats and its change, {view.how(shown.readout)}"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows, 1):
        table.add_row(*row, end_section=number == len(rows) - 1)
    return table


def _responses(folder: Path, record: Mapping[str, Any]) -> str:
    """How many responses a scan has, how they were marked, and how many were cut."""
    from internal_policy.scans import records, store
    from internal_policy.tasks import pass_at_k

    rows = store.read(folder, "rollouts", ["reward", "response", "finished"])
    marks = pass_at_k.outcome_in_words(rows["reward"], rows["response"])
    unfinished = float((~rows["finished"]).mean())
    sampled = records.sampled(record["asked"])
    cut = f", {unfinished:.0%} cut at the length limit" if unfinished and sampled else ""
    return f"{counted(len(rows), 'rollout')}, {marks}{cut}; {counted(record['tokens'], 'response token')}."
