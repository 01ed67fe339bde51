"""How to make a figure again: its lines of Python, its address in the dashboard, and a name for its files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from internal_policy.errors import InputError
from internal_policy.look import alignment, catalogue, choices, pairs, run_catalogue, runs, studies, view
from internal_policy.look.alignment_catalogue import AlignmentChoice
from internal_policy.look.catalogue import Data
from internal_policy.look.pairs import Side
from internal_policy.look.run_catalogue import RunChoice
from internal_policy.look.runs import RunTables
from internal_policy.look.study import Study
from internal_policy.look.view import OF_TOKENS, View
from internal_policy.scans import store

HEAD = "import internal_policy as ip\n\n"
"""The lines of Python before the scan is opened."""
LONGEST = 60
"""Longest part of a file's name, in characters."""


@dataclass(frozen=True)
class Recipe:
    """How to make a figure again."""

    file: str
    """Name of its files without the ending: scan, figure and readout, in characters that every system takes."""
    python: str
    """Lines of Python; the last one is the figure."""
    address: tuple[tuple[str, str], ...]
    """Parameters that its page needs in the address, by name."""


def of_scan(name: str, data: Data) -> Recipe:
    """The recipe of a figure of one or more scans on disk."""
    uses, choice = catalogue.USES[name], data.choice
    chosen = {key: getattr(choice, key) for key in choices.changed(choice) if key in uses}
    figure = "-".join([name, *(f"{value}" for value in chosen.values())])
    first = data.views[0]
    readouts = dict.fromkeys(one.readout for one in data.views) if "readout" in uses else ()
    scans = dict.fromkeys(_scan(one) for one in data.views)
    file = "_".join(map(_safe, filter(None, [*scans, figure, *readouts, view.words(first)])))
    opened = [f"ip.open_scan({_name(_folder(one))!r}){_narrowed(one, uses)}" for one in data.views]
    address = [("scan", _name(_folder(first))), ("readout", first.readout)]
    others = dict.fromkeys(_name(_folder(one)) for one in data.views if one.source != first.source)
    address += [("compare", other) for other in others]
    return Recipe(file, _lines("scan", name, opened, _arguments(chosen)), tuple(address))


def of_response(one: View, rollout: int, site: str, measure: str | None = None) -> Recipe:
    """The recipe of the lens grid of one response, coloured by a measure."""
    opened = f"ip.open_scan({_name(_folder(one))!r}){_narrowed(one, ['readout'])}"
    python = f"{HEAD}scan = {opened}\nscan.tokens({rollout}{_cells(site, measure)})"
    address = ("scan", _name(_folder(one))), ("readout", one.readout), ("rollout", str(rollout))
    return Recipe(_file_of(one, f"rollout-{rollout}-{site}"), python, address)


def of_pair(a: Side, b: Side, site: str, measure: str | None = None) -> Recipe:
    """The recipe of two linked lens grids.

    There is no Python for responses that can't be subtracted, or if B's isn't the one that `compare_tokens` chooses.
    """
    names = [_name(_folder(side.view)) for side in (a, b)]
    opened = [
        f"{letter} = ip.open_scan({name!r}){_narrowed(side.view, ['readout'])}\n"
        for letter, name, side in zip("ab", names, (a, b), strict=True)
    ]
    same = pairs.best(a.view, b.view, a.rollout)[1] == b and not pairs.obstacle(a, b)
    python = f"{HEAD}{''.join(opened)}a.compare_tokens(b, {a.rollout}{_cells(site, measure)})" if same else ""
    address = [("scan", names[0]), ("readout", a.view.readout), ("rollout", str(a.rollout))]
    address += [] if a.view.source == b.view.source else [("compare", names[1])]
    address += [("against_readout", b.view.readout), ("against_rollout", str(b.rollout))]
    return Recipe(_file_of(a.view, f"differences-{site}"), python, tuple(address))


def _cells(site: str, measure: str | None) -> str:
    """The arguments of a lens grid after the rollout."""
    listed = {"site": site, **({"measure": measure} if measure in OF_TOKENS else {})}  # tables lack the others
    return f", {_arguments(listed)}"


def _file_of(one: View, what: str) -> str:
    """A name for a file of numbers of one scan: the scan, what they are, the readout and the filter."""
    return "_".join(map(_safe, filter(None, [_scan(one), what, one.readout, view.words(one)])))


def of_runs(name: str, chosen: Sequence[RunTables], choice: RunChoice) -> Recipe:
    """The recipe of a figure of one or more training runs, or of a study."""
    changed = {key: getattr(choice, key) for key in choices.changed(choice) if key in run_catalogue.USES[name]}
    said = [key if value is True else str(value) for key, value in changed.items()]
    file = "_".join(map(_safe, [*(run.name for run in chosen), "-".join([name, *said])]))
    names = list(map(_run, chosen))
    kind = "study" if isinstance(chosen[0], Study) else "run"
    address = [(kind, names[0]), *(("training_against", other) for other in names[1:])]
    opened = [f"ip.open_{kind}({each!r})" for each in names]
    return Recipe(file, _lines(kind, name, opened, _arguments(changed)), tuple(address))


def of_alignment(name: str, folder: Path, choice: AlignmentChoice) -> Recipe:
    """The recipe of a figure of an alignment on disk."""
    changed = {key: getattr(choice, key) for key in choices.changed(choice)}
    called = folder.name if folder in alignment.whole() else str(folder.absolute())
    file = "_".join(map(_safe, [folder.name, "-".join([name, *changed.values()])]))
    opened = [f"ip.open_alignment({called!r})"]
    return Recipe(file, _lines("found", name, opened, _arguments(changed)), (("alignment", folder.name),))


def _lines(shown: str, name: str, opened: Sequence[str], arguments: str) -> str:
    if len(opened) == 1:
        return f"{HEAD}{shown} = {opened[0]}\n{_call(shown, name, arguments)}"
    listed = "".join(f"    {each},\n" for each in opened)
    said = ", ".join(filter(None, ["*others", arguments]))
    return f"{HEAD}{shown}, *others = [\n{listed}]\n{_call(shown, name, said)}"


def _call(shown: str, name: str, arguments: str) -> str:
    return f"{shown}.plot.{name.replace('-', '_')}({arguments})"


def _arguments(chosen: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in chosen.items())


def _narrowed(one: View, uses: Sequence[str]) -> str:
    """The call that narrows an opened scan to a view; the readout is always named where the figure has one."""
    usual = {field.name: field.default for field in fields(View)}
    chosen = {
        key: getattr(one, key) for key in ("outcome", "first", "last", "where") if getattr(one, key) != usual[key]
    }
    if "readout" in uses:
        chosen = {"readout": one.readout, **chosen}
    return f".view({_arguments(chosen)})" if chosen else ""


def _scan(one: View) -> str:
    """The last part of the model's name and the start of the scan's digest."""
    record = store.record(one.source)
    model = re.split(r"[/\\]", record["model"].rstrip("/\\"))[-1]
    return f"{_safe(model)}_{_safe(record['digest'][:6])}"


def _folder(one: View) -> Path:
    if not isinstance(one.source, Path):
        raise InputError("This scan is only in memory. Scan with `internal-policy scan` to open it again.")
    return one.source


def _name(folder: Path) -> str:
    """What `open_scan` finds the scan by: its name if that is enough, or its path."""
    try:
        short = store.find(folder.name) == folder
    except InputError:
        short = False
    return folder.name if short else str(folder.absolute())


def _run(run: RunTables) -> str:
    known = {**runs.listed(), **studies.listed()}
    return run.name if known.get(run.name) == run.folder else str(run.folder.absolute())


def _safe(text: str) -> str:
    """Text in letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:LONGEST] or "x"
