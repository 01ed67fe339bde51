"""Continue an interrupted run: its folder must hold the same run and a complete checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.models.naming import MODEL, RUN
from internal_policy.scans import records
from internal_policy.scans.claims import Occupied, begun, changed
from internal_policy.train import checkpoints

CONFIG = "config.yaml"
"""File with the fields of the configuration."""
SETTINGS = (RUN, CONFIG)
"""Files that are written before training starts."""


def claim(folder: Path, question: Mapping[str, Any], resume: bool, note: Callable[[str], None]) -> Path | None:
    """The checkpoint to continue from; None to start anew. Raises InputError if the folder contains anything else.

    It is Occupied if that is a run, which --force replaces. A run that failed before its first result, so that only its
    settings are in the folder, is forgotten.

    `note` is called with what is incomplete and will be repeated.
    """
    if not begun(folder, RUN, "training run"):
        if resume:
            raise InputError(f"There is no run in {folder}. Remove --resume, or name the --output of the run.")
        return None
    before = known(folder / RUN, content=dict)
    if (name := difference(before, question)) is not None:
        if _is_bare(folder):
            _forget(folder)
            return None
        raise Occupied(
            f"{folder} contains a run with a different {name}. Choose another --output, or add --force to replace it."
        )
    if checkpoints.is_whole(folder / MODEL):
        raise Occupied(
            f"{folder} contains a finished run; its model is {folder / MODEL}. Choose another --output, or add --force "
            "to replace it."
        )
    start = _newest_whole(folder, resume, note)
    if (folder / MODEL).is_dir():
        note(f"{folder / MODEL} is incomplete and will be written again.")
    return start


@contextmanager
def forgetting(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that is refused while this is open, if nothing but its settings is in it."""
    try:
        yield
    except InputError:
        with suppress(OSError):  # another process of the run was faster
            if _is_bare(folder):
                _forget(folder)
                folder.rmdir()
        raise


def _forget(folder: Path) -> None:
    for name in SETTINGS:
        (folder / name).unlink(missing_ok=True)


def _is_bare(folder: Path) -> bool:
    """Whether a folder has nothing but the settings of a run that has ended."""
    names = [path.name for path in folder.iterdir()]
    return not files.writers(folder) and all(name in SETTINGS or files.is_hidden(name) for name in names)


def _newest_whole(folder: Path, resume: bool, note: Callable[[str], None]) -> Path | None:
    written = checkpoints.found(folder)
    if not written:
        return None
    if not resume:
        raise Occupied(
            f"{folder} contains a run with a checkpoint (update {max(written)}). Continue it with --resume, or add "
            "--force to begin anew."
        )
    start = next((path for path in written.values() if checkpoints.is_whole(path)), None)
    if start is None and not all((path / checkpoints.MANIFEST).exists() for path in written.values()):
        raise Occupied(
            f"{folder} has no complete checkpoint: an older version wrote them without {checkpoints.MANIFEST}. "
            "Choose another --output, or add --force to begin anew."
        )
    if start != (newest := written[max(written)]):
        note(f"{newest.name} is incomplete. Training continues from {start.name if start else 'the start'}.")
    return start


def known(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """The contents of a JSON file of a run. Raises InputError if it is damaged or a value has the wrong type."""
    try:
        values = records.read(path)
        if wrong := [name for name, kind in kinds.items() if not isinstance(values.get(name, ...), kind)]:
            raise ValueError(f"it has no {wrong[0]}")
    except records.DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}). Choose another --output.") from error
    return values


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first option that changed, however it was typed; None if the questions are the same."""
    options = changed({name: before.get(name) for name in now}, now)
    name = next((name for name in options if name != "revision"), None)  # the model's identity is compared
    return "configuration file" if name == "file" else name and f"--{name.replace('_', '-')}"
