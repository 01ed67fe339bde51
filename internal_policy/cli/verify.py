"""`internal-policy verify`: check the files of scans and other results, and repair damaged scans."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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

KINDS: tuple[inventory.Kind, ...] = ("scan", "ablation", "alignment", "evaluation", "run")
"""What can be verified, apart from lenses: each file of these has a recorded digest."""
COMMAND = {"ablation": "ablate", "alignment": "align", "evaluation": "evaluate", "run": "train"}
"""Kind -> the command that writes it."""
LENS = ".safetensors"
"""Ending of the file of a lens."""
Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCAN|RUN|LENS|...")]


@dataclass(frozen=True, kw_only=True)
class Verify(JsonOptions):
    """Check the files of scans and other results; repair scans.

    Each file is read from end to end and compared with the SHA-256 that was recorded when it was written. Files that
    are missing, cut short or altered are named, and files of other scans among them; the exit code is then 1. With
    --repair only the damaged parts of a scan are measured again. That needs the model, and if responses were damaged
    also the problems or texts, as they were.

    For example:
    $ internal-policy verify 3fa9
    $ internal-policy verify ./my-scan --repair
    $ internal-policy verify ./my-run lens.safetensors
    $ internal-policy verify --all --json
    """

    group: ClassVar = "What to check"
    names: Names = ()
    """Scans, ablations, alignments, evaluations and training runs to check: names in `internal-policy ls`, their first
    characters, or folders; and the .safetensors files of lenses."""
    all: bool = False
    """Check all of these in the cache and in the package. Lenses aren't kept there."""
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
    named = [_found(name) for name in options.names]
    recorded = [item for item in (inventory.items(*KINDS) if options.all else ()) if _has_digests(item)]
    found = {item.folder.resolve(): item for item in (*named, *recorded)}
    for item in named:
        if writers := files.writers(item.folder):
            raise InputError(f"{item.name} is being written by {joined(writers)}. Wait until it has finished.")
    return [item for item in found.values() if item in named or not files.writers(item.folder)]


def _found(name: str) -> Item:
    """The item of this name, or the lens in a file."""
    path = Path(name)
    return Item("lens", path, name) if path.suffix == LENS and path.is_file() else inventory.find(name, *KINDS)


def _has_digests(item: Item) -> bool:
    """Whether there is something to compare an item with; a note says so if there isn't."""
    from internal_policy.scans import digests, verify

    has = item.kind in ("scan", "ablation") or (item.folder / digests.DIGESTS).exists()
    if not has:
        progress.note(f"{item.name} isn't checked: {verify.UNRECORDED}")
    return has


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

    if item.kind == "lens":
        return _check_lens(item.folder)
    checked = {"scan": verify.scan, "ablation": verify.ablation}.get(item.kind, verify.recorded)
    with progress.counting(f"Checking {item.name}", "files") as advance:
        return checked(item.folder, advance)


def _check_lens(path: Path) -> "Verdict":
    from internal_policy.lenses import digest
    from internal_policy.scans.verify import Fault, Verdict

    faults = () if digest.is_as_written(path) else (Fault(path.name, "altered", "its SHA-256 differs"),)
    return Verdict(1, path.stat().st_size, None, faults)


def _said(verdict: "Verdict") -> str:
    names = [fault.file for fault in verdict.faults]
    return f"{counted(len(names), 'file')} {'is' if len(names) == 1 else 'are'} damaged"


def _check_repairable(item: Item) -> None:
    from internal_policy.scans import store

    if item.kind != "scan" and not item.bundled:
        raise InputError(f"--repair only works for scans. {_again(item)}")
    if copied := of_folder(item.folder):
        raise InputError(f"{copied} is on the Hub, which --repair can't write to. {store.repair(item.folder)}")
    if item.bundled:
        raise InputError(f"{item.name} comes with the package, so it isn't measured again. Install the package again.")


def _again(item: Item) -> str:
    """How to make something again that can't be repaired."""
    if item.kind == "lens":
        return "Get a complete copy of it, or fit it again with `internal-policy fit-lens`."
    return f"Remove it with `internal-policy rm`, and run `internal-policy {COMMAND[item.kind]}` again."


def _remedy(item: Item, verdict: "Verdict") -> str:
    """What to do about a damaged item, in a sentence."""
    from internal_policy.scans import store

    if item.bundled:
        return "It comes with the package; install that again."
    if item.kind != "scan":
        return _again(item)
    if all(fault.problem == "extra" and fault.copy_of is None for fault in verdict.faults):
        return f"Move or remove {joined([fault.file for fault in verdict.faults])}."
    return store.repair(item.folder)


def _printed(row: Mapping[str, Any]) -> None:
    if row["repaired"] is not None:
        _print_repaired(row["name"], row["repaired"])
    if not row["damaged"]:
        found = [counted(row["files"], "file"), ls.size(row["bytes"])]
        found += [counted(row["rollouts"], "rollout")] if row["rollouts"] is not None else []
        paragraph(
            f"{row['name']}: {', '.join(found)}, {'all as they were' if row['files'] > 1 else 'as it was'} written."
        )
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
