"""`internal-policy families`: list the supported model families, and prove each of them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import progress
from internal_policy.cli.common import JsonOptions
from internal_policy.cli.console import document, out


@dataclass(frozen=True, kw_only=True)
class Families(JsonOptions):
    """List the supported model families, and prove each of them.

    Every family is checked on a tiny random model with the installed version of transformers: what is read must equal
    what the model adds to its residual stream, bit for bit. The exit code is 1 if a family fails. It also says how to
    add a family.
    """


def run(options: Families) -> bool:
    """List the families, and prove each of them; True if a proof fails."""
    from internal_policy.models.proofs import prove
    from internal_policy.models.rows import FAMILIES

    progress.quiet()
    found = {name: prove(name) for name in progress.tracked("Proving", FAMILIES)}
    rows = {name: {**dataclasses.asdict(row), "contradictions": found[name]} for name, row in FAMILIES.items()}
    printed(rows, metadata.version("transformers"), as_json=options.json)
    return any(text for proofs in found.values() for text in proofs.values())


def printed(found: Mapping[str, Mapping[str, Any]], version: str, *, as_json: bool = False) -> None:
    """Print the families, the proofs that fail, and how to add a family."""
    if as_json:
        document({name: {**row, "proved": not any(row["contradictions"].values())} for name, row in found.items()})
        return
    claims = list(next(iter(found.values()))["contradictions"])
    numbers = "".join(str(number) for number, _ in enumerate(claims, 1))
    table = Table("family", numbers, "sites", "norms", box=box.SIMPLE_HEAD)
    table.add_column("what is different", overflow="fold")
    for name, row in found.items():
        marks = "".join("[red]✗[/]" if text else "[green]✓[/]" for text in row["contradictions"].values())
        table.add_row(name, marks, str(len(row["sites"])), row["norms"], escape("; ".join(differences(row))))
    out.print(table)
    for name, row in found.items():
        for number, text in enumerate(row["contradictions"].values(), 1):
            if text:
                out.print(f"[red]{name}, {number}:[/] {escape(text)}")
    out.print(f"Proved just now on tiny random models in float64 with transformers {version}. ✓ means exactly equal:")
    for number, claim in enumerate(claims, 1):
        out.print(f"  {number}  {claim}")
    out.print(
        "Norms: before a module's input, after its output, or both.\n\n"
        "The `model_type` in a model's config.json is its family. To add a family, add a row\n"
        "with its layers, final norm, sites and the settings of a tiny model to a file of\n"
        "internal_policy/models/rows. This command then proves it."
    )


def differences(row: Mapping[str, Any]) -> list[str]:
    """How a family differs from others, besides the places of its modules, in words."""
    return [
        *(f"where {name} is {' or '.join(map(str, values))}" for name, values in row["needs"].items()),
        *([row["note"]] if row["note"] else []),
        *(f"no {site}: {why}" for site, why in row["absent"].items()),
        *([f"attn_out and mlp_out multiplied by {row['multiplier']}"] if row["multiplier"] else []),
        *([f"logits multiplied by {row['factor']}"] if row["factor"] else []),
        *([f"logits divided by {row['divisor']}"] if row["divisor"] else []),
        *([f"logits capped at {row['cap']}"] if row["cap"] else []),
    ]
