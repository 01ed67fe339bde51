"""`internal-policy compare`: how much two scans of the same tokens, or two readouts of one, differ by layer."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import inventory, outputs, progress
from internal_policy.cli.common import JsonOptions, OutputOptions, OutputPath, ScanName, Text, ViewOptions
from internal_policy.cli.console import document, paragraph, uncut
from internal_policy.cli.plot import views_of
from internal_policy.errors import InputError, counted, require
from internal_policy.scans.address import called

if TYPE_CHECKING:
    import pandas as pd

    from internal_policy.look.statistics import Average
    from internal_policy.look.view import View

SHOWN = ("attn_out", "mlp_out", "resid_post", "final")
"""Sites of the table; --json has all of them."""
OtherScan = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN")]


@dataclass(frozen=True, kw_only=True)
class Compare(JsonOptions, OutputOptions, ViewOptions):
    """Print how two scans or two readouts differ by layer.

    Scan A is subtracted from scan B over the rollouts that have the same tokens in both, such as those of a model and
    of the same model quantized or trained. Rollouts are compared in pairs. Layers that differ significantly are named,
    with 95% confidence for all layers at once, and marked with a star. STUDY@STEP names the scan of a step of a study.

    For example:
    $ internal-policy compare whole nf4
    $ internal-policy compare whole nf4 --measure change -o change.html
    $ internal-policy compare whole nf4 --readout norm --measure kl --json
    $ internal-policy compare demo-qwen3 --against-readout norm
    $ internal-policy compare studies/my-run-3fa9c1@100 studies/my-run-3fa9c1@500
    """

    group: ClassVar = "Comparison"
    a: ScanName
    """Scan to subtract."""
    b: OtherScan = None
    """Scan to subtract it from; leave it out to compare two readouts of one scan, or the first and last step of a
    study."""
    against_readout: Text = None
    """Readout of the same scan to subtract --readout from, such as norm."""
    measure: Annotated[str, tyro.conf.arg(metavar="MEASURE")] = "entropy"
    """Measure to compare: entropy, change (the entropy change of attention, FFN and layer), logprob, rank, top1, kl,
    norm, cosine or another that both scans have."""
    average: Literal["tokens", "rollouts"] = "tokens"
    """Weights in means: every token counts the same, or every rollout."""
    output: OutputPath = None
    """File for a figure of the differences: .html, .png, .svg or .pdf; by default none is drawn."""


def run(options: Compare) -> None:
    """Print the differences, and draw them if asked to."""
    from internal_policy.look import comparison, differences, headings, view

    if options.output is not None:
        require("app", "plotly")
        from internal_policy.look import export

        export.check(options.output)
        outputs.check_file(options.output, options.force)
    a, b = _sides(options)
    found = differences.by_layer(a, b, options.measure, options.average)
    shared = len(differences.partners(a, b))
    caveats = comparison.differences([view.check(a), view.check(b)], same_tokens=True)
    said = differences.in_words(found, options.measure)
    labels = headings.labels([a, b])
    if options.output is not None:
        from internal_policy.look import difference_figure, export

        about = [view.labelled(one, label) for one, label in zip((a, b), labels, strict=True)]
        export.write(difference_figure.difference(found, (about[0], about[1]), options.measure), options.output)
        progress.note(f"Wrote {options.output}.")
    if options.json:
        document(facts(a, b, options.measure, options.average))
        return
    uncut(_table(found, options, labels))
    paragraph(said)
    how = view.how(a.readout) if a.readout == b.readout else f"{view.how(a.readout)} and {view.how(b.readout)}"
    paragraph(f"{counted(shared, 'rollout')} with the same tokens, {how}. {' '.join(caveats)}".rstrip())


def facts(a: "View", b: "View", measure: str, average: "Average" = "tokens") -> dict[str, Any]:
    """What --json prints: the differences by layer and site. Raises InputError for scans without shared rollouts."""
    from internal_policy.look import comparison, differences, view

    found = differences.by_layer(a, b, measure, average)
    return {
        "a": called(a.source),
        "b": called(b.source),
        "readout": a.readout,
        "readout_b": b.readout,
        "measure": measure,
        "rollouts": len(differences.partners(a, b)),
        "caveats": comparison.differences([view.check(a), view.check(b)], same_tokens=True),
        "findings": differences.in_words(found, measure),
        "differences": _records(found),
    }


def _sides(options: Compare) -> "tuple[View, View]":
    """Views of the two scans, or of two readouts of one. Raises InputError."""
    item = inventory.study_named(options.a) if options.b is None and options.against_readout is None else None
    if item is not None:
        a, b = views_of(_ends(item), options)
        return a, b
    if (options.b is None) == (options.against_readout is None):
        raise InputError(
            "compare needs two scans, or one scan and --against-readout. For example: internal-policy compare "
            f"{options.a} --against-readout norm."
        )
    if options.b is not None:
        a, b = views_of((options.a, options.b), options)
        return a, b
    (a,) = views_of((options.a,), options)
    if a.readout == options.against_readout:
        raise InputError(f"--against-readout is {a.readout}, which is compared with itself. Choose another readout.")
    return a, replace(a, readout=str(options.against_readout))


def _ends(item: inventory.Item) -> tuple[str, str]:
    """What names the first and the last step of a study. Raises InputError if there is only one."""
    from internal_policy.look.study import open_study

    steps = open_study(item.folder).steps
    if len(steps) < 2:
        raise InputError(f"{item.name} has only step {steps[0]}, and compare needs two. Scan another checkpoint.")
    return f"{item.name}@{steps[0]}", f"{item.name}@{steps[-1]}"


def _records(found: "pd.DataFrame") -> list[dict[Hashable, Any]]:
    """A row for each layer and site, and whether it differs significantly."""
    from internal_policy.look import differences

    return found.assign(significant=differences.is_significant(found)).to_dict("records")


def _table(found: "pd.DataFrame", options: Compare, labels: Sequence[str]) -> Table:
    """The differences with their intervals, a row for each layer."""
    minus = f"{options.b} minus that of {options.a}" if options.b is not None else f"{labels[1]} minus {labels[0]}"
    title = f"{options.measure} of {minus}, with 95% intervals; * significant for all layers at once"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown = found[found["site"].isin(SHOWN)]
    sites = [site for site in SHOWN[:-1] if site in {*shown["site"]}]
    for name in ("layer", *sites):
        table.add_column(name, justify="right", no_wrap=True)
    digits = _digits(shown)
    for layer, rows in shown.groupby("layer"):
        cells = {row["site"]: _cell(row, digits) for row in _records(rows)}
        if "final" in cells:
            table.add_row("final", *[""] * (len(sites) - 1), cells["final"])
        else:
            table.add_row(str(layer), *(cells.get(site, "") for site in sites))
    return table


def _digits(shown: "pd.DataFrame") -> int:
    """Decimals to print: at least three, and enough to show two or three digits of the median interval's width."""
    import numpy as np

    widths = (shown["high"] - shown["low"]).to_numpy(dtype=float)
    widths = widths[np.isfinite(widths) & (widths > 0)]
    return 3 if not len(widths) else min(max(3, 2 - math.floor(math.log10(np.median(widths)))), 8)


def _cell(row: Mapping[Hashable, Any], digits: int) -> str:
    between = "" if math.isnan(row["low"]) else f" [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"
    return escape(f"{row['difference']:+.{digits}f}{'*' if row['significant'] else ' '}{between}")
