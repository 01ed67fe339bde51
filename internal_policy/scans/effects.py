"""The folder of an ablation: its settings, its tables and its record."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from internal_policy import bundle, files
from internal_policy.errors import InputError, first_line, quoted
from internal_policy.scans import records, settings, store

ASKED, RECORD, AVERAGES = "question.json", "ablation.json", "averages.parquet"
"""Settings, written first; the record, written last; and what each layer and module adds, as a mean."""
EFFECTS, REWARDS = "effects", "rewards"
"""Tables in numbered parts; the second only with `--reward`."""
ZERO, MEAN = "zero", "mean"
REPLACEMENTS = (ZERO, MEAN)
"""What may replace what a layer or module adds to the stream."""
MEASURES = ("kl", "logprob_change", "entropy_change", "top_changed")
"""Measures of the table `effects`."""
INTACT = -1
"""The layer of the rows of `rewards` that belong to the model itself."""

FIELDS: dict[str, Any] = {
    **dict.fromkeys(("asked", "scan"), dict[str, Any]),
    "files": dict[str, dict[str, Any]],
    **dict.fromkeys(("n_layers", "rollouts", "tokens"), int),
    **dict.fromkeys(("model", "dtype"), str),
}
"""Field of the record -> its type."""
MORE = {"created": str, "command": list[str], "versions": dict[str, str], "digest": str}
"""Field that may be missing -> its type."""
NAME = re.compile(rf"{re.escape(AVERAGES)}|({EFFECTS}|{REWARDS})-\d{{5,9}}\.parquet")
"""Name of a file of an ablation."""


def rollouts_of(scan: Mapping[str, Any]) -> str:
    """What identifies the rollouts of a scan, from its record."""
    found = {name: known["sha256"] for name, known in scan["files"].items() if name.startswith("rollouts-")}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


def record(folder: Path) -> Mapping[str, Any]:
    """The record of an ablation. Raises InputError if the folder has no complete ablation, or a damaged one."""
    path = folder / RECORD
    if not path.exists():
        state = "an unfinished ablation. Run its command again to finish it." if (folder / ASKED).exists() else ""
        raise InputError(f"{folder} is {state or 'not an ablation.'}")
    try:
        found = records.read(path)
        if found.get("schema") != records.SCHEMA or not {*FIELDS} <= {*found}:
            raise ValueError("it isn't the record of an ablation")
        if wrong := _complaint(found):
            raise ValueError(wrong)
    except records.DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}). Remove the folder and run the command again.") from error
    return found


def _complaint(found: Mapping[str, Any]) -> str | None:
    """What is wrong with a record that has all fields, in words; None if it is valid."""
    if wrong := next((name for name, kind in FIELDS.items() if not settings.fits(found[name], kind)), None):
        return f"'{wrong}' holds {quoted(found[wrong])}"
    if not {"name", "digest", "rollouts"} <= {*found["scan"]}:
        return f"'scan' holds {quoted(found['scan'])}; expected name, digest and rollouts"
    if foreign := [name for name in found["files"] if not NAME.fullmatch(name)]:
        return f"'files' lists {quoted(foreign[0])}, which isn't a file of an ablation"
    return (
        settings.misfit(found, MORE)
        or settings.misfit(found["scan"], dict.fromkeys(("name", "digest", "rollouts"), str))
        or settings.complaint(found["asked"])
    )


def asked(folder: Path) -> dict[str, Any]:
    """The settings of an ablation, finished or not. Raises InputError if they are damaged."""
    path = folder / ASKED
    try:
        found = records.read(path)
        if type(found.get("asked")) is not dict or type(found.get("product")) is not str:
            raise ValueError("it contains no settings")
        if wrong := settings.complaint(found["asked"]):
            raise ValueError(wrong)
    except records.DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}). Remove the folder and run the command again.") from error
    return found


def read(folder: Path, kind: str) -> pd.DataFrame:
    """A table of a complete ablation, `effects` or `rewards`. Raises InputError if a part is damaged or missing."""
    known = record(folder)["files"]
    names = sorted(name for name in known if name.startswith(f"{kind}-"))
    for name in names:
        if files.fingerprint_once(folder / name) != known[name]:
            raise InputError(f"{folder / name} is damaged or missing. Remove the folder and run the command again.")
    try:
        tables = [pq.read_table(folder / name) for name in names]
        found = pa.concat_tables(tables).to_pandas() if tables else pd.DataFrame()
        if kind == EFFECTS and not all(
            name in found and pd.api.types.is_numeric_dtype(found[name]) for name in ("rollout", "layer", *MEASURES)
        ):
            raise ValueError("a column is missing or has no numbers")
        if kind == EFFECTS and found.duplicated(["rollout", "layer", "module", "replacement"]).any():
            raise ValueError("an effect is listed twice")
        return found
    except store.UNREADABLE as error:
        raise InputError(
            f"{folder} has damaged tables ({first_line(error)}). Remove the folder and run the command again."
        ) from error


def folders(*, unfinished: bool = False) -> list[Path]:
    """The folders of the complete ablations in the cache, newest first; with `unfinished`, of the others too."""
    names = (ASKED, RECORD) if unfinished else (RECORD,)
    found = {path.parent for name in names for path in store.root().glob(f"*/*/{name}")}
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def of_scan(scan: Path | store.Tables) -> list[Path]:
    """The complete ablations of a scan: in the cache, in a folder beside the scan, and in the package."""
    known = store.record(scan)
    if not {"digest", "files"} <= {*known}:  # measured in memory
        return []
    mine = known["digest"], rollouts_of(known)
    around = [scan.absolute().parent] if isinstance(scan, Path) else []
    beside = sorted(path.parent for folder in around for path in folder.glob(f"*/{RECORD}"))
    found = []
    for folder in dict.fromkeys(folder.resolve() for folder in (*folders(), *beside, *bundle.ablations())):
        try:
            of = record(folder)["scan"]
        except InputError:  # `internal-policy ls` names it
            continue
        if (of.get("digest"), of.get("rollouts")) == mine:
            found.append(folder)
    return found


def part_names(kind: str, count: int) -> Sequence[str]:
    """The names of the first parts of a table."""
    return [records.part_name(kind, number) for number in range(count)]
