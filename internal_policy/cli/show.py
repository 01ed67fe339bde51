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
from internal_policy.cli.console import document, out
from internal_policy.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


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


BY_LAYER = {
    "resid_post": "layer",
    "attn_out": "attention",
    "mlp_out": "FFN",
    "change_layer": "Δ layer",
    "change_attn": "Δ attention",
    "change_mlp": "Δ FFN",
}
"""Column of `statistics.by_layer` -> what the table calls it."""


def scan(folder: Path, readout: str | None, *, as_json: bool = False, extra: Mapping[str, Any] | None = None) -> None:
    """A scan: what was measured, and the entropies by layer. Raises InputError for a readout that was not measured."""
    import pandas as pd

    from internal_policy.look import statistics, targets
    from internal_policy.scans import records, store

    record = store.record(folder)
    readouts = record["selection"]["readouts"]
    if readout not in (None, *readouts):
        raise InputError(f"{folder} was not measured under the readout '{readout}', only {', '.join(readouts)}.")
    chosen: str = readout or readouts[0]
    rollouts = store.read(folder, "rollouts", ["reward", "finished"])
    frame, suggested, layers = pd.DataFrame(), None, store.read(folder, "layers")
    if "entropy" in record["selection"]["measures"]:
        frame = statistics.by_layer(layers, chosen)
        suggested = _suggested(layers[layers["readout"] == chosen])
    if warning := statistics.not_finite(layers, record["dtype"]):
        progress.note(warning)
    if as_json:
        kept = {name: value for name, value in record.items() if name not in ("files", "asked", "chat_template")}
        rows = frame.reset_index().to_dict("records")
        found = {"readout": chosen, "suggested": suggested, "entropy": rows}
        document({"scan": str(folder), **(extra or {}), **kept, **found})
        return
    if len(frame):
        out.print(_entropies(frame, record, chosen))
    if suggested:
        out.print(targets.in_words(suggested))
    solved = outcome(rollouts["reward"])
    unfinished = float((~rollouts["finished"]).mean())
    sampled = records.sampled(record["asked"])
    cut = f", {unfinished:.0%} cut at the length limit" if unfinished and sampled else ""
    out.print(f"{record['rollouts']} rollouts{solved}{cut}; {record['tokens']:,} response tokens.")
    others = [other for other in readouts if other != chosen]
    if others:
        command = f"internal-policy show {folder} --readout {others[0]}"
        out.print(escape(f"Also measured: {', '.join(others)}; `{command}`"))
    out.print(f"Scan: {escape(str(folder))}")


def _suggested(layers: "pd.DataFrame") -> dict[str, Any] | None:
    """The target layer and runner-up; None if the FFN's entropy change wasn't measured."""
    from internal_policy.look import statistics, targets
    from internal_policy.measure.sites import CHANGES

    changes = statistics.changes(layers[layers["site"].isin(CHANGES["mlp"])])
    return targets.suggestion(changes) if len(changes) else None


def outcome(rewards: "pd.Series") -> str:
    """How responses were marked, as part of a sentence; empty if none were."""
    from internal_policy.tasks import pass_at_k

    found = pass_at_k.outcome(rewards)
    if found is None:
        return ""
    name, value = found
    return f", {value} of them correct" if name == "correct" else f", {name} {value}"


def _entropies(frame: "pd.DataFrame", record: Mapping[str, Any], readout: str) -> Table:
    from internal_policy.look import view

    title = f"{record['model']}: entropy in nats and its change, {view.how(readout)}"
    table = Table(
        title=escape(title),
        caption="layers from 0; final: the model's own policy",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", justify="right")
    shown = {name: label for name, label in BY_LAYER.items() if name in frame}
    for label in shown.values():
        table.add_column(label, justify="right")
    for layer, row in frame.iterrows():
        if layer == record["n_layers"]:
            table.add_section()
            table.add_row("final", f"{row['final']:.3f}", *[""] * (len(shown) - 1))
        else:
            cells = [f"{row[name]:{'+.3f' if name.startswith('change') else '.3f'}}" for name in shown]
            table.add_row(str(layer), *cells)
    return table
