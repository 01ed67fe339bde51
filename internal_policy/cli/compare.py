"""`internal-policy compare`: how much two scans of the same tokens differ, by layer."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import outputs, progress
from internal_policy.cli.common import JsonOptions, OutputOptions, OutputPath, ScanName, ViewOptions
from internal_policy.cli.console import document, paragraph, uncut
from internal_policy.cli.plot import views_of
from internal_policy.errors import counted, require

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("attn_out", "mlp_out", "resid_post", "final")
"""Sites of the table; --json has all of them."""
Measure = Literal["entropy", "logprob", "rank", "top1", "kl", "norm", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Compare(JsonOptions, OutputOptions, ViewOptions):
    """Print how two scans of the same tokens differ, by layer.

    Scan A is subtracted from scan B over the rollouts that have the same tokens in both, such as those of a model and
    of the same model quantized. The 95% intervals are over rollouts, which are compared in pairs.

    For example:
    $ internal-policy compare whole nf4
    $ internal-policy compare whole nf4 --readout norm --measure kl --json
    $ internal-policy compare whole nf4 -o error.html
    """

    group: ClassVar = "Comparison"
    a: ScanName
    """Scan to subtract."""
    b: ScanName
    """Scan to subtract it from."""
    measure: Annotated[Measure, tyro.conf.arg(metavar="MEASURE")] = "entropy"
    """Measure to compare: entropy, logprob, rank, top1, kl, norm or cosine."""
    average: Literal["tokens", "rollouts"] = "tokens"
    """Weights in means: every token counts the same, or every rollout."""
    output: OutputPath = None
    """File for a figure of the differences: .html, .png, .svg or .pdf; by default none is drawn."""


def run(options: Compare) -> None:
    """Print the differences, and draw them if asked to."""
    from internal_policy.look import comparison, differences, view

    if options.output is not None:
        require("app", "plotly")
        from internal_policy.look import export

        export.check(options.output)
        outputs.check_file(options.output, options.force)
    a, b = views_of((options.a, options.b), options)
    found = differences.by_layer(a, b, options.measure, options.average)
    shared = len(differences.partners(a, b))
    caveats = comparison.differences([view.check(a), view.check(b)], same_tokens=True)
    if options.json:
        scans = {"a": str(a.source), "b": str(b.source), "readout": a.readout, "measure": options.measure}
        document({**scans, "rollouts": shared, "caveats": caveats, "differences": found.to_dict("records")})
    else:
        uncut(_table(found, options))
        paragraph(
            f"{counted(shared, 'rollout')} with the same tokens, {view.how(a.readout)}. {' '.join(caveats)}".rstrip()
        )
    if options.output is not None:
        from internal_policy.look import difference_figure, export, headings

        labels = headings.labels([a, b])
        about = [view.labelled(one, label) for one, label in zip((a, b), labels, strict=True)]
        export.write(difference_figure.difference(found, (about[0], about[1]), options.measure), options.output)
        progress.note(f"Wrote {options.output}.")


def _table(found: "pd.DataFrame", options: Compare) -> Table:
    """The differences with their intervals, a row for each layer."""
    title = f"{options.measure} of {options.b} minus that of {options.a}, with 95% intervals"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    sites = [site for site in SHOWN[:-1] if site in {*found["site"]}]
    for name in ("layer", *sites):
        table.add_column(name, justify="right", no_wrap=True)
    for layer, rows in found[found["site"].isin(SHOWN)].groupby("layer"):
        cells = {row["site"]: _cell(row) for row in rows.to_dict("records")}
        if "final" in cells:
            table.add_row("final", *[""] * (len(sites) - 1), cells["final"])
        else:
            table.add_row(str(layer), *(cells.get(site, "") for site in sites))
    return table


def _cell(row: Mapping[Hashable, Any]) -> str:
    between = "" if math.isnan(row["low"]) else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return escape(f"{row['difference']:+.3f}{between}")
