"""Describe what is in the folder of a scan, ablation, alignment, training run, evaluation or unfinished sample."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.cli import removal
from internal_policy.cli.inventory import Item
from internal_policy.errors import InputError, counted
from internal_policy.models import naming

FINISHED, UNFINISHED, RUNNING, BROKEN = "finished", "unfinished", "running", "broken"
"""States of an item; running: a process is writing to it."""


def described(item: Item) -> dict[str, Any]:
    """Everything that `internal-policy ls --json` shows about an item.

    `state` is finished, unfinished, running or broken, `problem` what is missing or wrong and what to do about it, and
    `changed` when its files were last written. What can't be known is None.
    """
    of_kind = {
        "scan": _scan,
        "ablation": _ablation,
        "alignment": _alignment,
        "run": _run,
        "study": _study,
        "evaluation": _evaluation,
        "sample": _sample,
    }[item.kind]
    row: dict[str, Any] = dict.fromkeys(("model", "rollouts", "created", "problem"))
    try:
        row |= of_kind(item.folder)
    except InputError as error:
        text = str(error).replace(f"{item.folder}/", "").replace(str(item.folder), "this folder")
        row |= {"state": BROKEN, "problem": text}
        row["model"] = item.folder.parent.name if item.kind == "scan" and item.name == item.folder.name else None
    if remedy := row.pop("remedy", None):
        if found := files.writers(item.folder):
            writer = ", ".join(found)
            row["state"], remedy = RUNNING, f"{writer[0].upper()}{writer[1:]} is writing to it."
        row["problem"] = f"{row['problem']} {remedy}"
    changed = datetime.fromtimestamp(item.folder.stat().st_mtime, UTC)
    where = {"folder": str(item.folder), "bytes": removal.size_of(item), "changed": f"{changed:%Y-%m-%dT%H:%M:%SZ}"}
    return {"kind": item.kind, "name": item.name, "bundled": item.bundled, **row, **where}


def _scan(folder: Path) -> dict[str, Any]:
    from internal_policy.scans import store

    if not (folder / store.RECORD).exists():
        return _unfinished_scan(folder)
    record = store.record(folder)
    row = {name: record[name] for name in ("model", "rollouts", "tokens", "created", "selection")}
    row |= {"state": FINISHED, **_asked(record["asked"]), "readouts": row.pop("selection")["readouts"]}
    if short := store.cut_short(folder):
        row |= {"state": BROKEN, "problem": f"{short[0]} is missing or cut short. {store.repair(folder)}"}
    return row


def _unfinished_scan(folder: Path) -> dict[str, Any]:
    from internal_policy.scans import records, store

    asked = store.asked(folder).get("asked")
    asked = asked if isinstance(asked, dict) else {}
    numbers = [int(path.stem.removeprefix("part-")) for path in folder.glob("part-*.json")]
    notes = {number: records.of_part(folder, number) for number in numbers}
    names = {n: {store.part_path(folder, kind, n).name for kind in store.KINDS} for n in numbers}
    whole = [n for n, note in notes.items() if note and names[n] <= note["files"].keys()]
    rollouts = sum(_rows(store.part_path(folder, "rollouts", number)) for number in whole)
    each = asked.get("samples", 1), asked.get("limit")
    most = each[0] * each[1] if all(isinstance(number, int) for number in each) else None
    said = f"It has {counted(rollouts, 'rollout')}{f' of up to {most:,}' if most else ''}."
    described = {"model": _model(asked), **_asked(asked), "readouts": _readouts(asked)}
    return described | {
        "state": UNFINISHED,
        "rollouts": rollouts,
        "rollouts_at_most": most,
        "tokens": None,
        "problem": said,
        "remedy": "Run its scan command again to finish it.",
    }


def _ablation(folder: Path) -> dict[str, Any]:
    from internal_policy.scans import effects

    if not (folder / effects.RECORD).exists():
        asked = effects.asked(folder)["asked"]
        row = {"state": UNFINISHED, "problem": "Not all of it is measured.", "remedy": "Run its ablate command again."}
        return {"model": _model(asked), "source": asked.get("scan"), "modules": asked.get("modules"), **row}
    record = effects.record(folder)
    row = {name: record.get(name) for name in ("model", "rollouts", "tokens", "created")}
    row |= {"state": FINISHED, "source": record["scan"]["digest"], "modules": record["asked"].get("modules")}
    for name, known in record["files"].items():
        if files.fingerprint(folder / name) != known:
            row |= {"state": BROKEN, "problem": f"{name} is damaged or missing. Remove this, and ablate again."}
    return row


def _alignment(folder: Path) -> dict[str, Any]:
    from internal_policy.look import alignment

    record = alignment.record(folder)
    row = {"model": record["model"], "rollouts": record["responses"], "created": record["created"], "state": FINISHED}
    source = next((record["asked"][name] for name in ("rollouts", "problems") if record["asked"].get(name)), None)
    if not alignment.is_whole(folder):
        row |= {"state": BROKEN, "problem": f"{alignment.TABLE} is missing or damaged. Remove this, and align again."}
    return {**row, "source": source}


def _model(asked: Mapping[str, Any]) -> str | None:
    """What the model that was asked for is called."""
    return naming.title(str(asked["model"])) if asked.get("model") else None


def _asked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The reader of a scan, and where its responses or problems come from."""
    reader, texts = asked.get("reader", "hooks"), asked.get("text")
    source = next((asked[name] for name in ("rollouts", "problems") if asked.get(name)), None)
    return {
        "reader": f"{reader} on NDIF" if asked.get("remote") else reader,
        "source": counted(len(texts), "text") if isinstance(texts, list) and texts else source,
    }


def _readouts(asked: Mapping[str, Any]) -> list[str]:
    from internal_policy.scans import records

    readout = asked.get("readout", "raw")
    return [*(["raw", "norm"] if readout == "both" else [readout]), *records.lenses(asked)]


def _rows(path: Path) -> int:
    """How many rows a Parquet file has; 0 if it is missing or damaged."""
    import pyarrow.parquet as pq

    from internal_policy.scans import store

    return pq.read_metadata(path).num_rows if store.has_end(path) else 0


def _run(folder: Path) -> dict[str, Any]:
    from internal_policy.look import runs
    from internal_policy.scans import records, settings
    from internal_policy.train import checkpoints

    asked = {}
    if begun := (folder / runs.RECORD).exists():
        try:
            asked = records.read(folder / runs.RECORD)
            if wrong := settings.complaint(asked, "run"):
                raise ValueError(wrong)
        except records.DAMAGE as error:
            raise InputError(
                f"{folder / runs.RECORD} is damaged ({error}). Train again with another --output."
            ) from error
    steps, targets = 0, []
    if (folder / runs.METRICS).exists():
        metrics = runs.read(folder, runs.METRICS)
        steps = int(metrics["step"].max())
        targets = list(dict.fromkeys(metrics["target"][metrics["phase"] == "internal"].astype(str)))
    saved = checkpoints.found(folder)
    whole = checkpoints.is_whole(folder / "model")
    row = {
        "state": FINISHED if whole or not begun else UNFINISHED,
        "model": _model(asked),
        "method": asked.get("method") or ("bupo" if targets else "grpo"),
        "targets": targets,
        "steps": steps,
        "trained_model": str(folder / "model") if whole else None,
        "checkpoints": len(saved),
        "source": asked.get("problems"),
    }
    if row["state"] == UNFINISHED:
        at = f" and has saved {next(iter(saved.values())).name}" if saved else ""
        row["problem"] = f"It has done {counted(steps, 'step')}{at}."
        row["remedy"] = f"Run its train command again{', with --resume' if saved else ''}."
    return row


def _study(folder: Path) -> dict[str, Any]:
    from internal_policy.scans import study

    if not (steps := study.steps(folder)):
        problem = {"problem": "It has no step yet.", "remedy": "Run its scan command again to finish it."}
        return {"state": UNFINISHED, "steps": 0, **problem}
    record = study.record(folder)
    row = {name: record[name] for name in ("model", "rollouts", "tokens", "created", "source")}
    return {**row, "state": FINISHED, "steps": len(steps), "first": steps[0], "last": steps[-1]}


def _evaluation(folder: Path) -> dict[str, Any]:
    from internal_policy.cli import evaluate
    from internal_policy.scans import records, settings

    try:
        asked = records.read(folder / evaluate.ASKED).get("asked") or {}
        if wrong := settings.complaint(asked):
            raise ValueError(wrong)
    except records.DAMAGE as error:
        raise InputError(f"{folder / evaluate.ASKED} is damaged ({error}). Remove it and evaluate again.") from error
    rollouts = _rows(folder / evaluate.ROLLOUTS)
    row = {"model": _model(asked), "at": asked.get("at"), "samples": asked.get("samples"), "rollouts": rollouts}
    row |= {"state": FINISHED, "source": ", ".join(map(str, asked.get("names") or [])) or None}
    if not rollouts:
        row |= {"state": BROKEN, "problem": f"{evaluate.ROLLOUTS} is missing or damaged. Remove it and evaluate again."}
    return row


def _sample(folder: Path) -> dict[str, Any]:
    rollouts = sum(_rows(path) for path in folder.rglob("rollouts-*.parquet"))
    remedy = "Run its command again to finish it, or remove it."
    problem = f"It has {counted(rollouts, 'response')}."
    return {"state": UNFINISHED, "rollouts": rollouts, "problem": problem, "remedy": remedy}
