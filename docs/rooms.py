"""Write docs/rooms.md, the list of the package's files: `python docs/rooms.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "internal_policy"
FOLDERS = (
    "jupyter",
    "measure",
    "models",
    "tasks",
    "scans",
    "readers",
    "engines",
    "look",
    "look/lens_grid",
    "lenses",
    "train",
    "cli",
)
"""Folders of the package, each importing from those before it, or part of the one before it."""


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, or the first line of a script."""
    if path.suffix == ".js":
        return path.read_text(encoding="utf-8").split("\n")[0].removeprefix("//").strip()
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")


def lines() -> Iterator[str]:
    """The page, line by line."""
    yield "# Files of the package\n"
    yield "Written by `python docs/rooms.py` from the first sentence of each file. Each folder imports only from those"
    yield "above it, and from the files at the top; `lint-imports` checks this.\n"
    for folder in (PACKAGE, *(PACKAGE / name for name in FOLDERS)):
        yield f"## {folder.relative_to(ROOT).as_posix()}\n"
        yield f"{sentence(folder / '__init__.py')}\n"
        yield "| file | what it is for |"
        yield "|---|---|"
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".py", ".js")):
            if path.stem != "__init__":
                yield f"| `{path.name}` | {sentence(path)} |"
        yield ""


def page() -> str:
    """The text of docs/rooms.md."""
    return "\n".join(lines()).rstrip() + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.md").write_text(page(), encoding="utf-8")
