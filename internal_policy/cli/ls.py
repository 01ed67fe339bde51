"""`internal-policy ls`: list the scans in the cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli.console import document, out
from internal_policy.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ls:
    """List the scans in the cache, newest first."""

    json: bool = False
    """Print the result as JSON."""


def run(options: Ls) -> None:
    """List the scans in the cache."""
    from internal_policy.scans import store

    scans(store.scans(unfinished=True), as_json=options.json)


def scans(folders: Sequence[Path], *, as_json: bool = False) -> None:
    """Print the scans in the cache."""
    from internal_policy.scans import store

    rows = []
    for folder in folders:
        try:
            record = store.record(folder)
            state, size = "whole", sum(file["bytes"] for file in record["files"].values())
        except InputError as error:
            record, state, size = {"model": folder.parent.name}, "unfinished", 0
            if (folder / store.RECORD).exists():
                state = str(error)
        rows.append(
            {"scan": folder.name, "model": record["model"], "state": state, "folder": str(folder), "bytes": size}
            | {name: record.get(name) for name in ("rollouts", "tokens", "created")}
        )
    if as_json:
        document(rows)
    elif not rows:
        out.print(f"No scans in {escape(str(store.root()))} yet; `internal-policy scan` makes one.")
    else:
        table, broken = Table(box=box.SIMPLE_HEAD), []
        for name in ("scan", "model", "rollouts", "tokens", "MB", "created", "state"):
            right = name in ("rollouts", "tokens", "MB")
            table.add_column(name, overflow="fold", no_wrap=name == "scan", justify="right" if right else "left")
        for row in rows:
            counts = [f"{row[name]:,}" if row[name] else "" for name in ("rollouts", "tokens")]
            size = f"{row['bytes'] / 1e6:,.1f}" if row["bytes"] else ""
            created = (row["created"] or "").replace("T", " ")[:16]
            state = row["state"] if row["state"] in ("whole", "unfinished") else "broken"
            broken += [row["state"]] if state == "broken" else []
            table.add_row(row["scan"], escape(row["model"]), *counts, size, created, state)
        out.print(table)
        for why in broken:
            out.print(escape(why))
        out.print(f"In {escape(str(store.root()))}")
