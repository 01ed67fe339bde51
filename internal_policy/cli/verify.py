"""`internal-policy verify`: check every file of scans and ablations, and repair damaged scans."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import files
from internal_policy.cli import inventory, ls, progress
from internal_policy.cli.common import JsonOptions
from internal_policy.cli.console import document, paragraph, uncut
from internal_policy.cli.inventory import Item
from internal_policy.errors import InputError, counted, joined
from internal_policy.scans.address import of_folder

if TYPE_CHECKING:
    from internal_policy.scans.verify import Verdict

KINDS: tuple[inventory.Kind, ...] = ("scan", "ablation")
"""What can be verified: each file of these has a recorded digest."""
Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCAN|ABLATION")]


@dataclass(frozen=True, kw_only=True)
class Verify(JsonOptions):
    """Check every file of scans and ablations, and repair scans.

    Each file is read from end to end and compared with the SHA-256 that was recorded when it was written. Files that
    are missing, cut short or altered are named, and files of other scans among them; the exit code is then 1. With
    --repair only the damaged parts of a scan are measured again. That needs the model, and if responses were damaged
    also the problems or texts, as they were.

    For example:
    $ internal-policy verify 3fa9
    $ internal-policy verify ./my-scan --repair
    $ internal-policy verify --all --json
    """

    group: ClassVar = "What to check"
    names: Names = ()
    """Scans and ablations to check: names in `internal-policy ls`, their first characters, or folders."""
    all: bool = False
    """Check all scans and ablations in the cache, and those that come with the package."""
    repair: bool = False
    """Measure the damaged parts of scans again."""


def run(options: Verify) -> bool:
    """Check, repair and print what was found; True if something is damaged in the end."""
    items = _chosen(options)
    rows = []
    for item in items:
        row = _verified(item, repairs=options.repair)
        rows.append(row)
        if not options.json:
            _printed(row)
    if options.json:
        document(rows)
    return any(row["damaged"] for row in rows)


def _chosen(options: Verify) -> list[Item]:
    """The items to check. Raises InputError for names that don't exist, and for what a process is writing."""
    if not options.names and not options.all:
        raise InputError("No scan is named. Give one or more, or --all; `internal-policy ls` lists them.")
    named = [inventory.find(name, *KINDS) for name in options.names]
    found = {item.folder.resolve(): item for item in (*named, *(inventory.items(*KINDS) if options.all else ()))}
    for item in named:
        if writers := files.writers(item.folder):
            raise InputError(f"{item.name} is being written by {joined(writers)}. Wait until it has finished.")
    return [item for item in found.values() if item in named or not files.writers(item.folder)]


def _verified(item: Item, *, repairs: bool) -> dict[str, Any]:
    """What is found in an item, and what is left to repair after a repair. Raises InputError."""
    from internal_policy.cli import repair

    verdict, repaired = _check(item), None
    if verdict.faults and repairs:
        progress.note(f"{item.name}: {_said(verdict)}. Repairing it.")
        _check_repairable(item)
        repaired = repair.repair(item.folder, verdict)
        verdict = _check(item)
    return {
        "kind": item.kind,
        "name": item.name,
        "folder": str(item.folder),
        "files": verdict.files,
        "bytes": verdict.bytes,
        "rollouts": verdict.rollouts,
        "damaged": [vars(fault) for fault in verdict.faults],
        "remedy": _remedy(item, verdict) if verdict.faults else None,
        "repaired": None if repaired is None else vars(repaired),
    }


def _check(item: Item) -> "Verdict":
    from internal_policy.scans import verify

    with progress.counting(f"Checking {item.name}", "files") as advance:
        return (verify.scan if item.kind == "scan" else verify.ablation)(item.folder, advance)


def _said(verdict: "Verdict") -> str:
    names = [fault.file for fault in verdict.faults]
    return f"{counted(len(names), 'file')} {'is' if len(names) == 1 else 'are'} damaged"


def _check_repairable(item: Item) -> None:
    from internal_policy.scans import store

    if item.kind == "ablation":
        raise InputError(f"{item.name} is an ablation, which --repair can't measure again. {REMOVE}")
    if copied := of_folder(item.folder):
        raise InputError(f"{copied} is on the Hub, which --repair can't write to. {store.repair(item.folder)}")
    if item.bundled:
        raise InputError(f"{item.name} comes with the package, so it isn't measured again. Install the package again.")


REMOVE = "Remove it with `internal-policy rm`, and run `internal-policy ablate` again."


def _remedy(item: Item, verdict: "Verdict") -> str:
    """What to do about a damaged item, in a sentence."""
    from internal_policy.scans import store

    if item.bundled:
        return "It comes with the package; install that again."
    if item.kind == "ablation":
        return REMOVE
    if all(fault.problem == "extra" and fault.copy_of is None for fault in verdict.faults):
        return f"Move or remove {joined([fault.file for fault in verdict.faults])}."
    return store.repair(item.folder)


def _printed(row: Mapping[str, Any]) -> None:
    if row["repaired"] is not None:
        _print_repaired(row["name"], row["repaired"])
    if not row["damaged"]:
        found = [counted(row["files"], "file"), ls.size(row["bytes"]), counted(row["rollouts"], "rollout")]
        paragraph(f"{row['name']}: {', '.join(found)}, all as they were written.")
        return
    table = Table(title=escape(f"{row['name']}: damaged files"), title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    for name in ("file", "problem", ""):
        table.add_column(name, no_wrap=bool(name), overflow="fold")
    for fault in row["damaged"]:
        table.add_row(*(escape(fault[name]) for name in ("file", "problem", "detail")))
    uncut(table)
    paragraph(row["remedy"])


def _print_repaired(name: str, repaired: "Mapping[str, Any]") -> None:
    paragraph(f"{name}: repaired {joined(repaired['files'])}." if repaired["files"] else f"{name}: nothing to repair.")
    if differing := repaired["differing"]:
        paragraph(
            f"Not the same as before, because another device or version wrote them: {joined(differing)}. scan.json "
            "records both."
        )
