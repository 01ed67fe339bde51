"""`internal-policy fit-lens --merge`: merge lenses that were fitted on different texts, without a model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from internal_policy.cli import outputs, prepared
from internal_policy.cli.common import ModelOptions
from internal_policy.cli.console import document, out
from internal_policy.errors import counted

KEPT = ("kind", "merge", "output", "force", "json")
"""Options that have an effect with --merge."""


def run(options: ModelOptions, paths: Sequence[str], output: Path, ending: str, *, force: bool, as_json: bool) -> None:
    """Merge the lenses in `paths`, write one file, and print what it was fitted on. Raises InputError."""
    from internal_policy.lenses import file, merge

    names = [field.name for field in dataclasses.fields(options) if field.name not in KEPT]
    prepared.check_effect(options, names, "--merge")
    outputs.check_file(output, force, ending, inputs=paths)
    merged = merge.merge(merge.read(paths))
    file.save(output, merged)
    about = {key: value for key, value in merged.about.items() if key != "digests"}
    if as_json:
        document({"lens": str(output), **about})
        return
    fitted = about["fitted_on"]
    out.print(
        f"Merged {len(paths)} lenses, fitted on {counted(fitted['sequences'], 'sequence')} "
        f"({counted(fitted['tokens'], 'token')}).\nWrote {escape(str(output))}. To scan with it:\n  "
        + escape(f"internal-policy scan --model {about['model']} --lens {output} --sites {about['sites']}")
    )
