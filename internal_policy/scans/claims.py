"""Keep a folder for one piece of work: a scan, an evaluation or a training run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.models import templates
from internal_policy.scans import records, store


class Occupied(InputError):
    """A folder holds other work of the same kind, which --force replaces."""


def begun(folder: Path, record: str, work: str) -> bool:
    """Whether `work`, such as a "scan", was started in a folder; the folder then has a file `record`.

    Raises InputError for a folder that holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file. Choose another --output.")
    if not folder.exists() or all(files.is_hidden(path.name) for path in folder.iterdir()):
        return False  # at most files that an interrupted run left
    if not (folder / record).is_file():
        raise InputError(f"{folder} isn't empty and contains no {work}. Choose another --output.")
    return True


def claim(folder: Path, record: str, work: str, question: Mapping[str, Any]) -> None:
    """Raise InputError if a folder contains anything but the work that answers `question`.

    It is Occupied if the folder contains other work of the same kind.
    """
    if not begun(folder, record, work):
        return
    try:
        before = records.read(folder / record)
        if type(before.get("digest")) is not str:
            raise ValueError("it contains no settings")
    except records.DAMAGE as error:
        raise InputError(f"{folder / record} is damaged ({error}). Choose another --output.") from error
    if before["digest"] == store.digest(question):
        return
    _check_day(folder, before, question)
    options = ", ".join(f"--{name.replace('_', '-')}" for name in changed(before.get("asked"), question))
    settings = f" with different settings ({options})" if options else ""
    raise Occupied(
        f"{folder} already contains another {work}{settings}. Choose another --output, or add --force to replace it."
    )


def changed(before: Any, question: Mapping[str, Any]) -> list[str]:
    """The options whose values differ, comparing files by their content; none if `before` is damaged."""
    if not isinstance(before, dict):
        return []
    old, new = (_resolved(json.loads(files.as_json(values))) for values in (before, question))
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def _resolved(question: dict[str, Any]) -> dict[str, Any]:
    content = question.pop("content", {})

    def held(value: Any) -> Any:
        if isinstance(value, list):
            return [held(item) for item in value]
        return content.get(value) or value if isinstance(value, str) else value

    names = {"identity": "model"} if "identity" in question else {}
    return {names.get(name, name): held(value) for name, value in question.items() if name not in names.values()}


def _check_day(folder: Path, before: Mapping[str, Any], question: Mapping[str, Any]) -> None:
    """Raise InputError if a question differs from that of `before` only in the date written by the chat template."""
    day = _arguments(before.get("asked")).get(templates.DATE)
    dated = json.dumps({**_arguments(question), templates.DATE: day}, sort_keys=True)
    if day is not None and before["digest"] == store.digest({**question, "chat_template_kwargs": dated}):
        remedy = f"--chat-template-kwargs '{json.dumps({templates.DATE: day})}'"
        raise Occupied(
            f"{folder} was started on another date, which the chat template writes ({templates.DATE}). Continue it "
            f"with {remedy}, choose another --output, or add --force to replace it."
        )


def _arguments(question: Any) -> Mapping[str, Any]:
    """The arguments of the chat template; none if the record is damaged."""
    try:
        arguments = json.loads(question["chat_template_kwargs"])
    except (ValueError, KeyError, TypeError):
        return {}
    return arguments if isinstance(arguments, dict) else {}
