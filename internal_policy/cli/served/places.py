"""Find what a server may open: in the cache, in the package, and in folders that its command line names."""

from collections.abc import Sequence
from pathlib import Path

from internal_policy import bundle, files
from internal_policy.cli import inventory
from internal_policy.cli.inventory import CALLED, Item, Kind
from internal_policy.errors import InputError
from internal_policy.scans import store


def holds(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a path, with its links followed, is in the cache, in the package or in one of the `folders`."""
    try:
        real = path.resolve()
        return any(real.is_relative_to(place.resolve()) for place in (store.root(), bundle.DATA, *folders))
    except (OSError, ValueError, RuntimeError):  # an impossible file name, or a circle of links
        return False


def items(folders: Sequence[Path], *kinds: Kind) -> list[Item]:
    """Everything that may be opened, of some kinds, if they are named; first what is in the `folders`."""
    inside = [path for folder in folders for path in (folder, *sorted(folder.iterdir())) if files.is_folder(path)]
    named: list[tuple[Path, Kind | None]] = [(path, inventory.kind_of(path)) for path in inside if holds(path, folders)]
    mine = [Item(kind, path, str(path)) for path, kind in named if kind and (not kinds or kind in kinds)]
    others = [item for item in inventory.items(*kinds) if holds(item.folder, folders)]
    return list({item.folder.resolve(): item for item in (*others, *mine)}.values())


def find(name: str, folders: Sequence[Path], *kinds: Kind) -> Item:
    """The one item of this name, of its last part, or of the beginning of one. No other path is looked at.

    Raises InputError.
    """
    known = items(folders, *kinds)
    exact = [item for item in known if name in (*inventory.names_of(item), str(item.folder))]
    found = exact or [
        item for item in known if name and any(each.startswith(name) for each in inventory.names_of(item))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"'{name:.80}' could be {len(found)} of them. Use a whole name from the tool list.")
    what = " or ".join(CALLED[kind] for kind in kinds)
    raise InputError(
        f"There is no {what} '{name:.80}' that this server may open. Use a name from the tool list. To open other "
        "folders, start the server with their names: internal-policy mcp FOLDER."
    )
