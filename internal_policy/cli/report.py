"""`internal-policy report`: write one HTML file about some scans."""

from dataclasses import dataclass
from pathlib import Path

from internal_policy import files
from internal_policy.cli import outputs, progress
from internal_policy.cli.common import JsonOptions, OutputFile, OutputOptions, ScanNames, ViewOptions
from internal_policy.cli.console import document
from internal_policy.cli.plot import views_of
from internal_policy.errors import InputError, require
from internal_policy.scans.address import called


@dataclass(frozen=True, kw_only=True)
class Report(JsonOptions, OutputOptions, ViewOptions):
    """Write every figure and table of scans as one HTML file.

    The file needs no network, and also shows how the scans were made.

    For example:
    $ internal-policy report demo-qwen3 demo-llama -o report.html
    $ internal-policy report 3fa9 --readout norm --outcome correct -o correct.html
    """

    scans: ScanNames
    """Scans to report: folders, first digits of names in `internal-policy ls`, bundled scans such as demo-qwen3, or
    addresses on the Hub such as hf://datasets/org/name."""
    output: OutputFile = Path("report.html")
    """File to write, .html."""


def run(options: Report) -> None:
    """Write the report."""
    require("app", "plotly", "jinja2")
    from internal_policy.look import report

    outputs.check_file(options.output, options.force, ".html")
    if not options.scans:
        raise InputError("No scan is named. Give one or more, such as demo-qwen3; `internal-policy ls` lists them.")
    views = views_of(options.scans, options)
    files.write_text(options.output, report.report(views))
    size = options.output.stat().st_size
    progress.note(f"Wrote {options.output}, {size / 1e6:.1f} MB.")
    if options.json:
        document({"output": str(options.output), "bytes": size, "scans": [called(view.source) for view in views]})
