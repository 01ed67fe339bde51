"""Which folders the dashboard opens: those in the cache, in the package, and in what the command line names."""

import sys
from pathlib import Path

import show

from internal_policy import bundle, files
from internal_policy.errors import InputError
from internal_policy.look import runs, studies
from internal_policy.scans import store, study

MODEL = ("config.json", "adapter_config.json")
"""A model's folder contains one of these files."""


def named(*marks: str) -> list[Path]:
    """Folders with one of the files `marks` that the command line names, or that are in a folder that it names."""
    given = [folder for folder in _given() if files.is_folder(folder)]
    inside = [path for folder in given for path in (folder, *sorted(folder.iterdir()))]
    return [path for path in inside if holds(path) and any((path / mark).is_file() for mark in marks)]


def holds(path: Path) -> bool:
    """Whether a path, with its links followed, is in a folder that may be opened. It needn't exist."""
    try:
        real = path.expanduser().resolve()
        return any(real.is_relative_to(place.resolve()) for place in (store.root(), bundle.DATA, *_given()))
    except (OSError, ValueError, RuntimeError):  # an impossible file name, or ~ of an unknown user
        return False


def allowed(path: Path) -> Path:
    """The path, if it may be opened. Raises InputError otherwise, without looking whether it exists."""
    if holds(path):
        return path
    raise InputError(
        f"{show.line(str(path)[:200])} is outside the cache. To open it, name it when you start the dashboard: "
        "internal-policy dashboard FOLDER"
    )


def of_runs() -> dict[str, Path]:
    """Training runs by name: those that the command line names, those of the cache, and the bundled ones."""
    mine = {str(folder): folder for folder in named(runs.METRICS)}
    return mine | {name: folder for name, folder in runs.listed().items() if holds(folder)}


def of_studies() -> dict[str, Path]:
    """What has layers at several steps, by name: studies and scanned training runs."""
    mine = {str(folder): folder for folder in named(study.RECORD)}
    cached = {name: folder for name, folder in studies.listed().items() if holds(folder)}
    return mine | cached | {name: folder for name, folder in of_runs().items() if studies.has_steps(folder)}


def of_models() -> dict[str, Path]:
    """Models by name: the bundled ones, and those that the command line names."""
    found = {path.parent.name: path.parent for path in (bundle.DATA / "models").glob("*/config.json")}
    bundled = dict(sorted(found.items(), reverse=True))  # the default of the other commands comes first
    return bundled | {str(folder): folder for folder in named(*MODEL)}


def _given() -> list[Path]:
    """The folders in the command line of this process: `streamlit run app/main.py -- FOLDER`."""
    return [Path(word).absolute() for word in sys.argv[1:] if word]
