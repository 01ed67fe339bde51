"""Find what internal-policy wrote, such as scans, training runs and evaluations, in the cache and in the package."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from internal_policy import bundle, files
from internal_policy.errors import InputError, is_count
from internal_policy.scans import address

Kind = Literal["scan", "ablation", "alignment", "run", "study", "evaluation", "sample", "lens"]
"""run: a training run; study: scans of several checkpoints; lens: a file, which is only found by its path; sample:
responses that an interrupted generate, evaluate or fit-lens had sampled."""
EVALUATIONS, SAMPLES, RUNS = "evaluations", "rollouts", "runs"
"""Folders of the cache that hold something other than the scans of a model."""
CALLED = {
    "scan": "scan",
    "ablation": "ablation",
    "alignment": "alignment",
    "run": "training run",
    "study": "study",
    "evaluation": "evaluation",
    "sample": "unfinished sample",
    "lens": "lens",
}
"""What each kind is called on screen."""
EVALUATION = "evaluation.json"
"""File with the settings of the evaluation in its folder."""
LISTED = 10
"""Names in an error message at most."""


@dataclass(frozen=True)
class Item:
    """Something that internal-policy wrote into a folder."""

    kind: Kind
    folder: Path
    name: str
    """What is typed to name it: the digest of a scan, runs/NAME for a training run; a folder's path elsewhere."""
    bundled: bool = False
    """Whether it comes with the package."""


def kind_of(folder: Path) -> Kind | None:
    """What a folder holds, by the files in it; None if internal-policy didn't write it."""
    from internal_policy.look import alignment, runs
    from internal_policy.scans import effects, records, store, study

    if any((folder / name).is_file() for name in (records.RECORD, records.ASKED)):
        return "scan"
    if any((folder / name).is_file() for name in (effects.RECORD, effects.ASKED)):
        return "ablation"
    if (folder / alignment.RECORD).is_file():
        return "alignment"
    if any((folder / name).is_file() for name in (runs.RECORD, runs.METRICS)):
        return "run"
    if (folder / study.RECORD).is_file():
        return "study"
    if (folder / EVALUATION).is_file():
        return "evaluation"
    return "sample" if folder.parent.absolute() == (store.root() / SAMPLES).absolute() else None


def items(*kinds: Kind) -> list[Item]:
    """Everything in the cache, newest first, and then what comes with the package; of some kinds, if they are named."""
    return [item for item in (*_cached(), *_bundled()) if not kinds or item.kind in kinds]


def _cached() -> list[Item]:
    from internal_policy.look import alignment, runs, studies
    from internal_policy.scans import effects, store

    root = store.root()
    started = {path.parent for path in root.glob(f"{RUNS}/*/{runs.RECORD}")} | {
        folder for folder in runs.listed().values() if folder.is_relative_to(root)
    }
    sampled = [path for path in root.glob(f"{SAMPLES}/*") if files.is_folder(path)]
    found = [
        *(Item("scan", folder, folder.name) for folder in store.scans(unfinished=True)),
        *(Item("ablation", folder, folder.name) for folder in effects.folders(unfinished=True)),
        *(Item("alignment", folder, folder.name) for folder in alignment.folders()),
        *(Item("run", folder, _below(root, folder)) for folder in started),
        *(Item("study", folder, name) for name, folder in studies.listed().items()),
        *(Item("evaluation", path.parent, _below(root, path.parent)) for path in root.glob(f"*/*/{EVALUATION}")),
        *(Item("sample", folder, _below(root, folder)) for folder in sampled),
    ]
    return sorted(found, key=lambda item: item.folder.stat().st_mtime, reverse=True)


def _below(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix()


def _bundled() -> list[Item]:
    scans = [Item("scan", folder, folder.name, bundled=True) for folder in bundle.scans()]
    ablations = [Item("ablation", folder, folder.name, bundled=True) for folder in bundle.ablations()]
    aligned = [Item("alignment", folder, folder.name, bundled=True) for folder in bundle.alignments()]
    runs = [Item("run", folder, f"{folder.parent.name}/{folder.name}", bundled=True) for folder in bundle.runs()]
    return scans + ablations + aligned + runs


def find_scan(name: str) -> Path:
    """The folder of a scan, as from `store.find`, or that of a step of a study, named STUDY@STEP.

    Raises InputError; for a training run or a study it says what to do with it.
    """
    from internal_policy.scans import store

    if address.is_address(name):
        return store.find(name)
    if (found := _of_study(name)) is not None:
        return found
    if called := run_named(name):
        raise InputError(
            f"{called} is a training run, and this needs a scan. Use `internal-policy show {shlex.quote(called)}`, or "
            f"draw it with `internal-policy plot {shlex.quote(called)} training`."
        )
    return store.find(name)


def _of_study(name: str) -> Path | None:
    """The folder of the scan of a step of a study, named STUDY@STEP; None if `name` names no study.

    Raises InputError for a study without a step, and for a step without a scan.
    """
    from internal_policy.look import study

    called, at, step = name.rpartition("@")
    item = study_named(called if at else name)
    if item is None:
        return None
    opened = study.open_study(item.folder)
    if not is_count(step) or not at:
        raise InputError(
            f"{item.name} is a study, and this needs a scan. Name one of its steps, such as "
            f"{shlex.quote(f'{item.name}@{opened.steps[-1]}')}, or use `internal-policy show {shlex.quote(item.name)}`."
        )
    return Path(str(opened.scan(int(step)).source))


def study_named(name: str) -> Item | None:
    """The study that `name` refers to; None if there is no such study."""
    known = [item for item in items("study") if name in names_of(item)]
    if known:
        return known[0]
    is_one = bool(name) and files.is_folder(Path(name)) and kind_of(Path(name)) == "study"
    return Item("study", Path(name), name) if is_one else None


def run_named(name: str) -> str | None:
    """The name of the training run that `name` refers to, or None if there is no such run."""
    known = [item for item in items("run") if name in names_of(item)]
    if known:
        return known[0].name
    return name if name and files.is_folder(Path(name)) and kind_of(Path(name)) == "run" else None


def find(name: str, *kinds: Kind, removable: bool = False) -> Item:
    """The one item of this name: a folder, a name in `internal-policy ls`, or the beginning of one.

    Of a name such as runs/NAME the part after the slash will do. Only items of `kinds` count, if any are named.
    Raises InputError if there is no such item or more than one; with `removable` it lists none of the package's, and
    refuses what is on the Hub.
    """
    if address.is_address(name):
        return _on_hub(name, kinds, removable=removable)
    folder = Path(name)
    if name and files.is_folder(folder) and (kind := kind_of(folder)) and kind in (kinds or CALLED):
        return at(folder, kind)
    if "@" in name and "scan" in kinds and (scan := _of_study(name)) is not None:
        return at(scan, "scan")
    known = items(*kinds)
    exact = [item for item in known if name in names_of(item)]
    found = exact or [item for item in known if name and any(each.startswith(name) for each in names_of(item))]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"'{name:.80}' could be {_either(found)}. Type more of the name.")
    what = _any([CALLED[kind] for kind in kinds]) or "scan, training run or evaluation"
    known = [item for item in known if not (removable and item.bundled)]
    none = "There is nothing to remove." if removable else "There are none yet."
    choices = f"Choose one of {_listed(known)}; `internal-policy ls` lists them." if known else none
    if name and files.is_folder(folder):
        raise InputError(f"There is no {what} in {folder}. {choices}")
    from internal_policy.scans import store

    raise InputError(f"There is no {what} '{name:.80}' in {store.root()}. {choices}")


def _any(words: Sequence[str]) -> str:
    """Words with commas and an `or`."""
    return " or ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def _on_hub(name: str, kinds: tuple[Kind, ...], *, removable: bool) -> Item:
    """A scan on the Hub, by its address at the commit that was downloaded. Raises InputError."""
    from internal_policy.scans import store

    found = address.scan(name)
    if removable:
        raise InputError(
            f"{found} is on the Hub, where internal-policy removes nothing. Remove it at {found.page}/settings, and "
            "the local copy with `hf cache rm`."
        )
    if kinds and "scan" not in kinds:
        raise InputError(f"{found} is a scan on the Hub, but {_a(kinds)} is needed.")
    folder = store.find(name)
    return Item("scan", folder, str(address.of_folder(folder) or found))


def _a(kinds: tuple[Kind, ...]) -> str:
    """Kinds of items in a sentence, such as `an ablation or a training run`."""
    words = [CALLED[kind] for kind in kinds]
    return " or ".join(f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in words)


def at(folder: Path, kind: Kind) -> Item:
    """The item in a folder, by its name if it is in the cache or comes with the package."""
    resolved = folder.resolve()
    same = next((item for item in items(kind) if item.folder.resolve() == resolved), None)
    return same or Item(kind, folder, str(folder))


def names_of(item: Item) -> tuple[str, ...]:
    """What names an item in full: its name, or the part of it after the slash."""
    return item.name, item.name.rpartition("/")[2]


def _listed(found: list[Item]) -> str:
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(item.name for item in found[:LISTED]) + more


def _either(found: list[Item]) -> str:
    return f"any of {len(found)}: {_listed(found)}" if len(found) > 2 else " or ".join(item.name for item in found)
