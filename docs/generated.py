"""Write the pages and parts of pages that come from the code: families, commands, notebooks. A Sphinx extension."""

from collections.abc import Iterable
from dataclasses import MISSING, Field, asdict, fields
from inspect import getdoc
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    app.connect("source-read", read)
    return {"parallel_read_safe": True}


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Lead the links of a page to the copies of the notebooks."""
    source[0] = beside(source[0])


def beside(text: str) -> str:
    """A page whose links to notebooks lead to their copies, which lie beside it."""
    return text.replace("](../notebooks/", "](notebooks/")


def write(folder: Path) -> None:
    """Write the generated parts to `_generated`, and copy the notebooks, below a folder; unchanged files stay."""
    for part in (families, commands, scan_figures, run_figures):
        put(folder / "_generated" / f"{part.__name__}.md", part())
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        put(folder / "notebooks" / path.name, path.read_text(encoding="utf-8"))


def put(path: Path, text: str) -> None:
    """Write a file unless it holds this text already, which would make Sphinx read it again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) + "\n"


def line(cells: Iterable[str]) -> str:
    """A line of a Markdown table: each cell on one line, its bars escaped."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    """A text as Markdown code."""
    return f"`{text}`"


def families() -> str:
    """The table of model families, and where each reads its sites."""
    from internal_policy.cli.families import differences
    from internal_policy.measure.sites import SITES
    from internal_policy.models.families import FAMILIES
    from internal_policy.models.proofs import PROOFS

    rows = (
        (code(row.model_type or name), str(len(row.sites)), row.norms, "; ".join(differences(asdict(row))))
        for name, row in FAMILIES.items()
    )
    places: dict[tuple[str, ...], list[str]] = {}  # what a site is read from -> the families that do so
    for name, row in FAMILIES.items():
        places.setdefault(tuple(place(*row.sites.get(site, ("", ""))) for site in SITES), []).append(code(name))
    found = ((", ".join(names), *cells) for cells, names in places.items())
    return "\n".join(
        [
            "## Families\n",
            table(("`model_type`", "sites", "norms", "what is different"), rows),
            "## Where each site is read\n",
            "The module inside a decoder layer, and whether its input or its output is read.\n",
            table(("family", *map(code, SITES)), found),
            "## What is proved\n",
            "`internal-policy families` builds a tiny random model of each family with the installed transformers, and",
            "checks in float64, to the last bit:\n",
            *(f"- {claim}" for claim in PROOFS),
        ]
    )


def place(module: str, side: str) -> str:
    """Where a site is read, in words."""
    if not side:
        return "none"
    return f"{side} of {code(module) if module else 'the layer'}"


def scan_figures() -> str:
    """The methods of `scan.plot`."""
    from internal_policy.look.catalogue import Choice
    from internal_policy.look.plots import ScanPlots

    return figures("scan", ScanPlots, Choice)


def run_figures() -> str:
    """The methods of `run.plot`."""
    from internal_policy.look.plots import RunPlots
    from internal_policy.look.run_catalogue import RunChoice

    return figures("run", RunPlots, RunChoice)


def figures(opened: str, plots: type, choice: type) -> str:
    """The methods that draw, and the keywords that they share."""
    drawn = ((code(f"{opened}.plot.{name}()"), getdoc(method) or "") for name, method in methods(plots))
    keywords = (
        (code(field.name), code(repr(field.default)), explained(choice, field.name)) for field in fields(choice)
    )
    return "\n".join(
        [
            table(("method", "figure"), drawn),
            "Each returns a plotly figure. Each takes these keywords, and uses those that apply to it:\n",
            table(("keyword", "default", "meaning"), keywords),
        ]
    )


def methods(plots: type) -> list[tuple[str, Any]]:
    """The public methods of a class, in the order of their definition."""
    return [(name, value) for name, value in vars(plots).items() if not name.startswith("_")]


def explained(kind: type, name: str) -> str:
    """The docstring below a field of a dataclass."""
    from tyro._docstrings import get_field_docstring

    return get_field_docstring(kind, name, ()) or ""


def commands() -> str:
    """Every command with its options."""
    from internal_policy.cli.main import COMMANDS

    return "\n".join(command(name, kind) for name, (kind, _) in COMMANDS.items())


def command(name: str, kind: type) -> str:
    """What a command does, and its options."""
    rows = (
        (code(f"--{field.name.replace('_', '-')}"), default(field), explained(kind, field.name))
        for field in fields(kind)
    )
    return f"## internal-policy {name}\n\n{getdoc(kind)}\n\n{table(('option', 'default', ''), rows)}"


def default(field: Field) -> str:
    """The default of an option, empty where it has none."""
    return code(str(field.default)) if field.default not in (MISSING, None, "", ()) else ""
