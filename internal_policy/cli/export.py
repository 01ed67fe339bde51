"""`internal-policy export`: write a table of a scan as one file."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from internal_policy.cli import outputs, progress
from internal_policy.cli.common import OutputOptions, OutputPath, ScanName
from internal_policy.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Export(OutputOptions):
    """Write a table of a scan as one file.

    For example:
    $ internal-policy export 3fa9
    $ internal-policy export 3fa9 --table policies --format parquet -o p.parquet
    """

    group: ClassVar = "Table"
    scan: ScanName
    """Scan to export: its folder, or the first digits of its name in `internal-policy ls`."""
    format: Literal["csv", "json", "parquet"] = "csv"
    """Format of the file."""
    table: Literal["layers", "policies", "rollouts"] = "layers"
    """Table to write: layers has a row for each rollout x readout x layer x site, policies one for each token x readout
    x layer, and rollouts one for each response."""
    output: OutputPath = None
    """File to write; by default TABLE.FORMAT here."""


def run(options: Export) -> None:
    """Write a table of a scan as one file."""
    from internal_policy.scans import store
    from internal_policy.scans.export import export_table

    folder = store.find(options.scan)
    store.record(folder)
    path = options.output or Path(f"{options.table}.{options.format}")
    if path.suffix != f".{options.format}":
        raise InputError(f"--output is {path}, but --format is {options.format}. Use a name in .{options.format}.")
    outputs.check_file(path, options.force, f".{options.format}")
    rows = export_table(folder, options.table, options.format, path)
    progress.note(f"Wrote {rows:,} rows to {path}.")
