"""`internal-policy rm`: remove scans, ablations, alignments, training runs and evaluations."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from rich.markup import escape

from internal_policy.cli import contents, inventory, outputs, progress, removal
from internal_policy.cli.common import JsonOptions, ScanNames
from internal_policy.cli.console import document
from internal_policy.cli.inventory import CALLED, Item
from internal_policy.cli.ls import age, short, size
from internal_policy.errors import InputError, counted


@dataclass(frozen=True, kw_only=True)
class Rm(JsonOptions):
    """Remove scans, ablations, runs and evaluations.

    It asks first. Only files that internal-policy wrote are removed, and none that a process is still writing. A
    training run holds its trained model, so its whole name is needed. What comes with the package can't be removed.

    For example:
    $ internal-policy rm 3fa9
    $ internal-policy rm --unfinished --yes
    """

    group: ClassVar = "What to remove"
    scans: ScanNames
    """What to remove: names in `internal-policy ls`, their first characters, or folders."""
    unfinished: bool = False
    """Also remove all unfinished scans, ablations and samples in the cache that no process is writing to. Unfinished
    training runs stay, because they can continue from a checkpoint."""
    yes: Annotated[bool, tyro.conf.arg(aliases=["-y"])] = False
    """Remove without asking."""


def run(options: Rm) -> bool:
    """Say what will be removed, ask, and remove it; True if the answer is no."""
    if not options.scans and not options.unfinished:
        raise InputError("No scan is named. Give one or more names; `internal-policy ls` lists them.")
    items = {item.folder.resolve(): item for item in _chosen(options)}
    found = {item: contents.described(item) for item in items.values()}
    if found and not options.yes:
        for row in found.values():
            progress.note(in_words(row))
        if not _agreed(list(found.values())):
            progress.note("Nothing was removed.")
            if options.json:
                document([])
            return True
    rows = [_removed(item, row) for item, row in found.items()]
    if options.json:
        document(rows)
    elif not rows:
        progress.note("There is nothing unfinished to remove.")
    return False


def _chosen(options: Rm) -> list[Item]:
    """The items to remove, all checked. Raises InputError."""
    named = [_named(name) for name in options.scans]
    left = inventory.items("scan", "ablation", "sample") if options.unfinished else []
    return named + [item for item in left if contents.described(item)["state"] == contents.UNFINISHED]


def _named(name: str) -> Item:
    """The item of a name, which may be removed. Raises InputError."""
    if os.path.islink(name):  # noqa: PTH114  # Path.is_symlink raises for a long name
        raise InputError(f"{name} is a link. Name {Path(name).resolve()} instead.")
    item = inventory.find(name, removable=True)
    removal.check(item)
    whole = name in inventory.names_of(item) or Path(name).is_dir()
    if item.kind == "run" and not whole:
        raise InputError(f"{item.name} is a training run and holds a model. Type its whole name to remove it.")
    return item


def in_words(row: dict[str, Any]) -> str:
    """An item as one line: what it is, of which model, how much of it there is, and its size and age."""
    model = f" of {short(row['model'])}" if row["model"] else ""
    facts = [
        *([counted(row["rollouts"], "rollout")] if row["rollouts"] is not None else []),
        *([counted(row["steps"], "step")] if row.get("steps") is not None else []),
        *([counted(row["checkpoints"], "checkpoint")] if row.get("checkpoints") else []),
        *(["the trained model"] if row.get("trained_model") else []),
        size(row["bytes"]),
        f"{age(row)} old",
        *([row["state"]] if row["problem"] and row["kind"] != "sample" else []),
    ]
    return f"{row['name']}: {CALLED[row['kind']]}{model}, {', '.join(facts)}"


def _agreed(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the person at the terminal says yes. Raises InputError if there is none."""
    what = "this" if len(rows) == 1 else f"these {len(rows)}, {size(sum(row['bytes'] for row in rows))}"
    return progress.agreed(f"Remove {what}?", "Nothing was removed", "Add --yes to remove it.")


def _removed(item: Item, row: dict[str, Any]) -> dict[str, Any]:
    """Remove an item and say so; its row, with the files and folders of others that stay."""
    kept = removal.remove(item)
    progress.err.print(escape(f"Removed {in_words(row)}."))
    outputs.note_kept(item.folder, kept)
    return {**row, "kept": [str(path) for path in kept]}
