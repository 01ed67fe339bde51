"""`internal-policy show`: print a scan, an ablation, an alignment, a training run, a study or a lens."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import ablate, align, contents, exam, inventory, lens_card, progress, study, train_report
from internal_policy.cli.common import JsonOptions, OutputOptions, OutputPath, Text
from internal_policy.cli.console import commands, document, out, paragraph, uncut
from internal_policy.errors import InputError, counted

if TYPE_CHECKING:
    import pandas as pd

    from internal_policy.look.view import View


@dataclass(frozen=True, kw_only=True)
class Show(JsonOptions, OutputOptions):
    """Print a scan, ablation, alignment, run, study or lens.

    For a scan: the entropies by layer, and what they show. For an ablation: how the model's policy changes without each
    layer, attention block and FFN. For an alignment: how well each layer's gradient agrees with GRPO's. For a training
    run: its schedule, its first and last steps, and its layers before and after. For a study of checkpoints: the
    entropies by layer at its last step, and their change since the first.

    For a lens: how it was fitted and how far it can be trusted. At each hook point, KL(final || readout) on held-out
    texts for raw, norm and the lens; how far apart the lenses of two halves of the texts are; and how far the map is
    from a multiple of the identity, which is the logit lens. Files from other tools contain no measurements, and their
    cards say so.

    For example:
    $ internal-policy show 3fa9
    $ internal-policy show ./my-scan --readout norm
    $ internal-policy show experiments/bupo
    $ internal-policy show lens.safetensors -o README.md
    """

    group: ClassVar = "Part of the scan"
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN|ABLATION|ALIGNMENT|RUN|STUDY|LENS")]
    """Scan, ablation, alignment, training run or study to print: its folder, its name in `internal-policy ls` or the
    beginning of it, or for a scan its address on the Hub. Or a lens: its file, also a published one, or
    hf://org/repo/file on the Hub."""
    readout: Text = None
    """Readout of the scan or study to show: raw, norm, tuned, jacobian or the name of a lens; by default the first
    that was measured."""
    output: OutputPath = None
    """File to write the card of a lens to as Markdown, .md, such as the README.md of the lens's repository on the hub;
    by default none is written."""


def run(options: Show) -> None:
    """Print one scan, ablation, alignment, training run, study or lens."""
    from internal_policy.lenses import source

    if source.is_lens(options.name):
        if options.readout is not None:
            raise InputError(f"--readout only applies to scans, but {options.name} is a lens. Leave it out.")
        lens_card.run(options.name, options.output, force=options.force, as_json=options.json)
        return
    item = inventory.find(options.name, "scan", "ablation", "alignment", "run", "study")
    called = "an " if item.kind in ("ablation", "alignment") else "a "
    called += inventory.CALLED[item.kind]
    if options.output is not None:
        raise InputError(f"--output only applies to lenses, but {item.name} is {called}. Leave it out.")
    if item.kind == "study":
        study.printed(item, options.readout, as_json=options.json)
        return
    if item.kind == "scan":
        scan(item.folder, options.readout, as_json=options.json)
        return
    if options.readout is not None:
        raise InputError(f"--readout only applies to scans, but {item.name} is {called}. Leave it out.")
    if item.kind == "ablation":
        ablate.printed(item.folder, ablate.scan_of(item.folder), as_json=options.json)
        return
    if item.kind == "alignment":
        align.printed(item.folder, as_json=options.json)
        return
    training_run(item, as_json=options.json)


def scan(folder: Path, readout: str | None, *, as_json: bool = False, extra: Mapping[str, Any] | None = None) -> None:
    """Print what a scan measured, and the entropies by layer. Raises InputError for a readout that was not measured."""
    from internal_policy.look import findings, mismatch, statistics, view
    from internal_policy.scans import address, store

    record = store.record(folder)
    if warning := statistics.not_finite(store.read(folder, "layers"), record["dtype"]):
        progress.note(warning)
    if as_json:
        document(facts(folder, readout, extra))
        return
    shown = view.View(folder, readout or record["selection"]["readouts"][0])
    found, engine = findings.findings(shown), mismatch.mismatch(folder)
    if "entropy" in record["selection"]["measures"]:
        uncut(_entropies(shown, record))
    for sentence in found.sentences:
        paragraph(sentence)
    if "quantization" in record:
        paragraph(f"Quantized weights: {record['quantization']['words']}.")
    if engine is not None:
        paragraph(f"{engine}")
    others = [other for other in record["selection"]["readouts"] if other != shown.readout]
    paragraph(_responses(folder, record) + (f" Also measured: {', '.join(others)}." if others else ""))
    out.print(f"Scan: {escape(address.called(folder))}", emoji=False)
    commands(found.commands)


def facts(folder: Path, readout: str | None, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `show --json` prints of a scan. Raises InputError for a readout that was not measured."""
    from internal_policy.look import findings, mismatch, view
    from internal_policy.scans import address, store

    record = store.record(folder)
    shown = view.View(folder, readout or record["selection"]["readouts"][0])
    found, engine = findings.findings(shown), mismatch.mismatch(folder)
    kept = {name: value for name, value in record.items() if name not in ("files", "footers", "asked", "chat_template")}
    numbers = {"readout": shown.readout, **_numbers(shown), "findings": found.sentences}
    numbers |= {} if engine is None else {"mismatch": vars(engine)}
    return {"scan": address.called(folder), **(extra or {}), **kept, **numbers}


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
    from internal_policy.scans import positions, records, store
    from internal_policy.tasks import pass_at_k

    rows = store.read(folder, "rollouts", ["reward", "response", "finished"])
    marks = pass_at_k.outcome_in_words(rows["reward"], rows["response"])
    unfinished = float((~rows["finished"]).mean())
    sampled = records.sampled(record["asked"])
    cut = f", {unfinished:.0%} cut at the length limit" if unfinished and sampled else ""
    why = pass_at_k.no_box(rows["reward"], rows["response"])
    measured = positions.of_record(record)
    token = "measured response token" if measured else "response token"
    said = f"{counted(len(rows), 'rollout')}, {marks}{cut}; {counted(record['tokens'], token)}."
    return " ".join(filter(None, [said, measured.note, why]))


def training_run(item: inventory.Item, *, as_json: bool = False) -> None:
    """A training run: its schedule, its first and last steps, and its layers before and after.

    Raises InputError for a run without a finished step, or with a damaged table.
    """
    from internal_policy.look import run_summary, runs

    if as_json:
        document(facts_of_run(item))
        return
    row = _described(item)
    run = runs.RunTables(item.folder, item.name)
    metrics, frame, evaluated = run.metrics(), run_summary.dynamics(run), run_summary.evaluations(run)
    exams, best = run_summary.exams(run), train_report.best_model(item.folder)
    said = run_summary.sentences(metrics, frame, exams)
    steps = run_summary.first_and_last(metrics)
    by_layer = None if frame is None else run_summary.layers(metrics, frame)
    trained = f" of {row['model']}" if row["model"] else ""
    paragraph(f"{item.name}: {counted(row['steps'], 'step')}{trained}")
    for sentence in said:
        paragraph(sentence)
    uncut(_progress(steps))
    if exams is not None:
        uncut(exam.table(exams))
    if frame is not None and by_layer is not None and len(by_layer.columns):
        uncut(_layers(by_layer, int(frame["layer"][frame["site"] == "final"].max())))
    if evaluated is not None:
        uncut(_evaluated(evaluated))
    if row["problem"]:
        paragraph(f"{row['state'].capitalize()}: {row['problem']}")
    out.print(f"Run: {escape(str(item.folder))}", emoji=False)
    if best is not None:
        out.print(f"Model of the best exam: {escape(str(best))}", emoji=False)
    commands(_next(item, row["trained_model"]))


def facts_of_run(item: inventory.Item) -> dict[str, Any]:
    """What `show --json` prints of a training run. Raises InputError for a run without a finished step."""
    from internal_policy.look import run_summary, runs

    row, run, best = _described(item), runs.RunTables(item.folder, item.name), train_report.best_model(item.folder)
    metrics, frame, exams = run.metrics(), run_summary.dynamics(run), run_summary.exams(run)
    tables = {
        "progress": run_summary.first_and_last(metrics),
        "layers": None if frame is None else _plain(run_summary.layers(metrics, frame)),
        "exams": exams,
        "evaluations": run_summary.evaluations(run),
    }
    rows = {name: [] if table is None else table.to_dict("records") for name, table in tables.items()}
    schedule = [phase._asdict() for phase in run_summary.schedule(metrics)]
    said = run_summary.sentences(metrics, frame, exams)
    return {**row, "best_model": best and str(best), "schedule": schedule, "findings": said, **rows}


def _described(item: inventory.Item) -> dict[str, Any]:
    """The row of a training run in `ls`. Raises InputError if it has no finished step."""
    row = contents.described(item)
    if not row.get("steps"):
        raise InputError(f"{item.name} has no finished step to show. {row['problem'] or ''}".rstrip())
    return row


def _next(item: inventory.Item, model: str | None) -> list[str]:
    """The commands to run after showing a training run: with a model, those that evaluate and scan it."""
    from internal_policy.look import runs
    from internal_policy.scans import records, store

    folder = item.folder
    if model is None:
        elsewhere = not (item.bundled or folder.is_relative_to(store.root()))
        return [f"internal-policy dashboard{f' {shlex.quote(str(folder))}' if elsewhere else ''}"]
    asked = records.read(folder / runs.RECORD) if (folder / runs.RECORD).exists() else {}
    answered = asked.get(train_report.ANSWERED, True)
    return [
        *([train_report.evaluation(asked, folder)] if answered else []),
        f"internal-policy scan --model {shlex.quote(model)}",
    ]


def _plain(by_layer: "pd.DataFrame") -> "pd.DataFrame":
    """The table of layers with a name for each column, such as `layer output, step 50`."""
    return by_layer.set_axis(by_layer.columns.map(", ".join), axis=1).reset_index()


def _progress(steps: "pd.DataFrame") -> Table:
    from internal_policy.look import run_summary

    table = Table(title="Means over the first and last tenth of the steps", title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    for name in ("", "steps", "first", "steps", "last"):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    for row in steps.to_dict("records"):
        cells, digits = [], 1 if row["measure"] in ("length", "resampled") else 3
        for end in ("first", "last"):
            start, stop = row[f"{end}_from"], row[f"{end}_to"]
            cells += [str(start) if start == stop else f"{start} to {stop}", f"{row[f'{end}_mean']:.{digits}f}"]
        table.add_row(
            run_summary.called(row["measure"]), *(cells if row["first_from"] < row["last_from"] else cells[:2])
        )
    return table


def _layers(by_layer: "pd.DataFrame", final: int) -> Table:
    """Entropies in nats; `final` is the number of the row of the model's own policy."""
    import pandas as pd

    names = [name for name, _ in by_layer.columns]
    title = "; ".join(["Layers in nats, at the first scan and the last", *{name for name in names if "KL" in name}])
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("layer", *(f"{name.partition(' from ')[0]}\n{step}" for name, step in by_layer.columns)):
        table.add_column(name, justify="right", no_wrap=True)
    signed = [name.startswith("Δ") for name in names]
    for layer, values in by_layer.iterrows():
        numbers = (f"{value:{'+' if sign else ''}.3f}" for value, sign in zip(values, signed, strict=True))
        cells = ["" if pd.isna(value) else text for value, text in zip(values, numbers, strict=True)]
        table.add_row("final" if layer == final else str(layer), *cells)
    return table


def _evaluated(curves: "pd.DataFrame") -> Table:
    import pandas as pd

    table = Table(title="Pass@k in percent", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "k", "mean", "95%"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in curves.to_dict("records"):
        between = "" if pd.isna(row["low"]) else f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        table.add_row(escape(row["label"]), str(row["k"]), f"{100 * row['mean']:.1f}", between)
    return table
