"""`internal-policy export`: write a table of a scan as one file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from internal_policy.cli import inventory, outputs, progress, removal
from internal_policy.cli.common import JsonOptions, OutputOptions, OutputPath, ScanName
from internal_policy.cli.console import document
from internal_policy.cli.inventory import Item
from internal_policy.errors import InputError, counted
from internal_policy.scans.address import called

Table = Literal["layers", "policies", "tokens", "rollouts", "vocabulary"]


@dataclass(frozen=True, kw_only=True)
class Export(JsonOptions, OutputOptions):
    """Write a table of a scan as one file.

    The tables are:

      layers      a row for each rollout x readout x layer x site
      policies    a row for each token x readout x layer
      tokens      a row for each token x readout: from which layer on the token is
                  the top token (first_known)
      rollouts    a row for each response
      vocabulary  a row for each token id

    docs/columns.md explains every column.

    For example:
    $ internal-policy export 3fa9
    $ internal-policy export 3fa9 --table tokens -o tokens.parquet
    """

    group: ClassVar = "Table"
    scan: ScanName
    """Scan to export: its folder, the first digits of its name in `internal-policy ls`, or its address on the Hub."""
    table: Annotated[Table, tyro.conf.arg(metavar="TABLE")] = "layers"
    """Table to write, from the list above."""
    format: Annotated[Literal["csv", "json", "parquet"] | None, tyro.conf.arg(metavar="{csv,json,parquet}")] = None
    """File format; by default the ending of --output, or csv."""
    output: OutputPath = None
    """File to write; by default TABLE.FORMAT here."""


def run(options: Export) -> None:
    """Write a table of a scan as one file."""
    from internal_policy.scans import store
    from internal_policy.scans.export import export_table, write

    folder = inventory.find_scan(options.scan)
    store.record(folder)
    form = options.format or _format(options.output)
    path = options.output or Path(f"{options.table}.{form}")
    if path.suffix != f".{form}":
        raise InputError(f"--output is {path}, but --format is {form}. Use a name that ends in .{form}.")
    outputs.check_file(path, options.force, inputs=removal.contents_of(Item("scan", folder, options.scan))[0])
    if options.table == "tokens":
        from internal_policy.look import known

        rows = write(known.tokens(folder), form, path, quoted=True)
    else:
        rows = export_table(folder, options.table, form, path)
    progress.note(f"Wrote {counted(rows, 'row')} to {path}.")
    if options.json:
        written = {"output": str(path), "bytes": path.stat().st_size, "format": form}
        document({**written, "scan": called(folder), "table": options.table, "rows": rows})


def _format(output: Path | None) -> str:
    """The format that a file's name asks for. Raises InputError if it asks for none."""
    ending = ".csv" if output is None else output.suffix
    if ending not in (".csv", ".json", ".parquet"):
        raise InputError(f"Can't write {output}. Use a name that ends in .csv, .json or .parquet.")
    return ending.removeprefix(".")
