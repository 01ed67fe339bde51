"""A study on disk: the layers of a model at several steps of its training, measured over the same rollouts."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from internal_policy import files
from internal_policy.errors import DamageError, InputError, counted
from internal_policy.scans import cache, records, schema, settings, store

RECORD, ROLLOUTS = "study.json", "rollouts.parquet"
"""Files of a study: its record, and the rollouts, unless they are given by the user's own file."""
FOLDER = "studies"
"""Folder of the cache that holds studies."""
TABLE = re.compile(r"step-(\d{8,15})\.parquet")
"""Name of the file with the table `layers` of one step."""
FIELDS: dict[str, type] = {
    **dict.fromkeys(("digest", "created", "model", "dtype", "source", "responses"), str),
    **dict.fromkeys(("n_layers", "d_vocab", "rollouts", "tokens"), int),
    **dict.fromkeys(("selection", "asked", "files"), dict),
    "steps": list,
}
"""Field that every record has -> its type."""
SAME = {"n_layers": "layer", "d_vocab": "vocabulary entry", "rollouts": "rollout", "tokens": "response token"}
"""Facts that all steps must share -> what they count."""


def table_name(step: int) -> str:
    """The name of the file with the table of one step."""
    return f"step-{step:08d}.parquet"


def folder_of(name: str, question: Mapping[str, Any]) -> Path:
    """The folder of a study in the cache: studies/NAME-DIGEST, after the series and the question that it answers."""
    called = re.sub(r"[^A-Za-z0-9._-]+", "--", name).lstrip(".") or "study"
    return cache.root() / FOLDER / f"{called}-{store.digest(question)[:6]}"


def begin(folder: Path, question: Mapping[str, Any], source: str, responses: str) -> None:
    """Write the record of a study without steps, unless there is one.

    `source` says where the checkpoints are, and `responses` where the rollouts come from, in words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RECORD).exists():
        return
    known = {"schema": records.SCHEMA, "digest": store.digest(question), "asked": dict(question)}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    records.write(folder / RECORD, {**known, "created": now, "source": source, "responses": responses, "steps": []})


def steps(folder: Path) -> list[int]:
    """The steps that a study has, begun or whole. Raises InputError if its record is damaged."""
    return [each["step"] for each in _begun(folder)["steps"]]


def add(folder: Path, step: int, name: str, facts: Mapping[str, Any], layers: pa.Table, scan: str | None) -> None:
    """Add a step, or replace it: its table `layers`, and facts about its model as a scan records them.

    `name` is what its checkpoint is called, and `scan` names the scan in the cache. Raises InputError for a model or
    rollouts unlike those of the other steps.
    """
    record = _begun(folder)
    if record["steps"]:
        check(record, facts, name)
    path = folder / table_name(step)
    store.write_table(path, layers, group="rollout")
    others = [each for each in record["steps"] if each["step"] != step]
    described = {"step": step, "name": name, "scan": scan}
    shared = {key: facts[key] for key in (*SAME, "model", "dtype", "selection", "lacking") if key in facts}
    written = {**record.get("files", {}), path.name: files.fingerprint(path)}
    ordered = sorted([*others, described], key=lambda each: each["step"])
    first = record if record["steps"] else {**record, **shared}
    records.write(folder / RECORD, {**first, "steps": ordered, "files": written})


def check(record: Mapping[str, Any], facts: Mapping[str, Any], name: str) -> None:
    """Raise InputError if the model or rollouts of a step aren't like those of the other steps."""
    for key, noun in SAME.items():
        if record[key] != facts[key]:
            raise InputError(
                f"{name} has {counted(facts[key], noun)}, but the steps before have {record[key]:,}. A study needs "
                "checkpoints of one model, read over the same rollouts."
            )


def forget(folder: Path, after: int) -> None:
    """Remove the steps after a step, to which training went back."""
    record = _begun(folder)
    kept = [each for each in record["steps"] if each["step"] <= after]
    named = {table_name(each["step"]) for each in kept}
    written = {name: known for name, known in record.get("files", {}).items() if name in named}
    records.write(folder / RECORD, {**record, "steps": kept, "files": written})
    for each in record["steps"]:
        if each not in kept:
            (folder / table_name(each["step"])).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove the files of a study, so that another can begin in its folder."""
    forget(folder, -1)
    for name in (RECORD, ROLLOUTS):
        (folder / name).unlink(missing_ok=True)


def check_question(folder: Path, question: Mapping[str, Any]) -> None:
    """Raise InputError if a study answers another question."""
    if _begun(folder).get("digest") != store.digest(question):
        raise InputError(
            f"{folder} holds a study with different settings. Use those settings, or choose another folder."
        )


def record(folder: Path) -> dict[str, Any]:
    """The record of a study with at least one step. Raises InputError if it is missing, damaged or has none yet."""
    found = _begun(folder)
    if not found["steps"]:
        raise InputError(f"{folder} has no finished step yet. Run its command again to go on.")
    if wrong := _complaint(found):
        raise _damaged(folder, wrong)
    return found


def _begun(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise InputError(f"{folder!s:.200} has no {RECORD}. Give the folder of a study.")
    try:
        found = records.read(path)
    except records.DAMAGE as error:
        raise _damaged(folder, str(error)) from error
    if found.get("schema") != records.SCHEMA:
        raise InputError(
            f"{path} has schema version {str(found.get('schema'))[:60]}, but this version of internal-policy reads "
            f"{records.SCHEMA}. Update internal-policy, or scan again."
        )
    listed = found.get("steps")
    if type(listed) is not list or not all(map(_is_step, listed)):
        raise _damaged(folder, "its steps aren't a list of steps")
    return found


def _damaged(folder: Path, why: str) -> DamageError:
    return DamageError(f"{folder / RECORD} is damaged ({why}). Remove the folder and scan the checkpoints again.")


def _is_step(each: Any) -> bool:
    return (
        type(each) is dict
        and type(each.get("step")) is int
        and 0 <= each["step"] < 10**15
        and type(each.get("name")) is str
        and type(each.get("scan")) in (str, type(None))
    )


def _complaint(found: Mapping[str, Any]) -> str | None:
    """What is wrong with the record of a study, in words; None if it is valid."""
    if wrong := next((name for name, kind in FIELDS.items() if type(found.get(name)) is not kind), None):
        return f"'{wrong}' is missing or of another type"
    numbers = [each["step"] for each in found["steps"]]
    if numbers != sorted(set(numbers)):
        return "its steps aren't in order"
    if lost := next((step for step in numbers if table_name(step) not in found["files"]), None):
        return f"it has no file for step {lost}"
    if odd := next((name for name in found["files"] if not TABLE.fullmatch(name)), None):
        return f"'files' lists {odd:.60}, which isn't a table of a study"
    return (
        next((f"'{name}' is {found[name]}" for name in SAME if not 0 < found[name] < 2**53), None)
        or records.selection_complaint(found["selection"], found["n_layers"])
        or settings.complaint(found["asked"])
    )


def layers(folder: Path, readout: str | None = None) -> pd.DataFrame:
    """The tables `layers` of all steps: step, rollout, readout, layer, site, tokens, and means over the tokens.

    With a `readout` only its rows. Raises InputError for a damaged study.
    """
    found = record(folder)
    tables = [read(folder, each["step"], found["files"]).assign(step=each["step"]) for each in found["steps"]]
    whole = pd.concat(tables, ignore_index=True)
    whole = whole if readout is None else whole[whole["readout"] == readout].reset_index(drop=True)
    return whole[["step", *whole.columns.drop("step")]]


def read(folder: Path, step: int, known: Mapping[str, Any]) -> pd.DataFrame:
    """The table `layers` of one step. Raises InputError if it isn't as it was written."""
    path = folder / table_name(step)
    if files.fingerprint_once(path) != known.get(path.name):
        why = "it was changed after it was written" if path.exists() else "it is missing"
        raise DamageError(f"{path} is damaged ({why}). Remove the folder and scan the checkpoints again.")
    table = store.read_part(path)
    if wrong := schema.complaint("layers", table.schema):
        raise DamageError(f"{path} is damaged ({wrong}). Remove the folder and scan the checkpoints again.")
    return schema.whole("layers", table.to_pandas(), path)
