"""`internal-policy ls`: list scans, training runs and all other results in the cache and in the package."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.markup import escape
from rich.text import Text

from internal_policy.cli import contents, inventory
from internal_policy.cli.common import JsonOptions
from internal_policy.cli.console import document, out, visible


@dataclass(frozen=True, kw_only=True)
class Ls(JsonOptions):
    """List scans, ablations, runs and evaluations, newest first.

    Those in the cache are listed and those that come with the package. Interrupted and broken ones are listed too, with
    what to do about them. To remove some, use `internal-policy rm`.
    """


def run(options: Ls) -> None:
    """List what is in the cache."""
    from internal_policy.scans import store

    rows = [contents.described(item) for item in inventory.items()]
    if options.json:
        document(rows)
        return
    rows.sort(key=lambda row: [*KINDS].index(row["kind"]))
    for kind, (title, columns) in KINDS.items():
        if found := [row for row in rows if row["kind"] == kind]:
            out.print(listed(title, columns, found, out.width if out.is_terminal else None))
            out.print()
    for row in rows:
        if row["problem"]:
            out.print(escape(f"{row['name']} ({row['state']}, written {age(row)} ago): {row['problem']}"))
    total = sum(row["bytes"] for row in rows if not row["bundled"])
    out.print(
        f"Cache: {escape(str(store.root()))}, {size(total)}. Folders elsewhere, written with --output, aren't listed."
    )
    if not total:
        out.print("To add a scan, run `internal-policy scan`: it measures the bundled demo-qwen3.")


GAP = 2
"""Spaces between two columns."""
FEWEST = 8
"""Characters of a column that is shortened; with fewer it is left out."""


class Column(NamedTuple):
    """A column of a list."""

    name: str
    cell: Callable[[Mapping[str, Any]], str]
    right: bool = False
    """Whether it is aligned to the right."""
    elastic: bool = False
    """Whether its cells may be shortened to fit the terminal."""


def short(name: object) -> str:
    """The last part of a model's or data set's name or path."""
    return PurePath(str(name)).name if name else ""


def size(number: int) -> str:
    """A number of bytes in kB, MB or GB."""
    unit, factor = next((u, f) for u, f in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if number >= f or u == "kB")
    return f"{number / factor:,.1f} {unit}"


def age(row: Mapping[str, Any]) -> str:
    """How long ago files were last written."""
    seconds = time.time() - datetime.strptime(row["changed"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    unit, factor = next(
        (u, f) for u, f in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)) if seconds >= f or u == "s"
    )
    return f"{max(seconds, 0) // factor:.0f} {unit}"


def _number(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:,}" if row.get(name) is not None else ""


def _steps(row: Mapping[str, Any]) -> str:
    """How many steps a study has, and from where to where."""
    span = f" ({row['first']:,} to {row['last']:,})" if row.get("steps") and "first" in row else ""
    return f"{_number(row, 'steps')}{span}"


NAME = Column("name", lambda row: row["name"])
MODEL = Column("model", lambda row: short(row["model"]), elastic=True)
SOURCE = Column("of", lambda row: short(row.get("source")), elastic=True)
ROLLOUTS = Column("rollouts", lambda row: _number(row, "rollouts"), right=True)
END = (
    Column("size", lambda row: size(row["bytes"]), right=True),
    Column(
        "age", lambda row: row["state"] if row["problem"] else "bundled" if row["bundled"] else age(row), right=True
    ),
)
KINDS: dict[inventory.Kind, tuple[str, tuple[Column, ...]]] = {
    "scan": (
        "Scans",
        (
            NAME,
            MODEL,
            Column("reader", lambda row: "" if row.get("reader") == "hooks" else row.get("reader", ""), elastic=True),
            Column("readouts", lambda row: ",".join(row.get("readouts", []))),
            ROLLOUTS,
            SOURCE,
            *END,
        ),
    ),
    "ablation": (
        "Ablations",
        (NAME, MODEL, Column("modules", lambda row: ",".join(row.get("modules") or [])), ROLLOUTS, SOURCE, *END),
    ),
    "alignment": ("Alignments", (NAME, MODEL, ROLLOUTS, SOURCE, *END)),
    "run": (
        "Training runs",
        (
            NAME,
            MODEL,
            Column("target", lambda row: ", ".join(row.get("targets", [])), elastic=True),
            Column("steps", lambda row: _number(row, "steps"), right=True),
            *END,
        ),
    ),
    "study": ("Studies", (NAME, MODEL, Column("steps", _steps), ROLLOUTS, SOURCE, *END)),
    "evaluation": (
        "Evaluations",
        (NAME, MODEL, Column("at", lambda row: str(row.get("at") or "")), ROLLOUTS, SOURCE, *END),
    ),
    "sample": ("Unfinished samples of generate, evaluate or fit-lens", (NAME, ROLLOUTS, *END)),
}
"""Kind -> the title and the columns of its list. A column that would be empty isn't printed."""


def listed(title: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], width: int | None) -> Text:
    """A list as wide as the terminal: columns are shortened or left out, never a name. Without `width` all is whole."""
    cells = {column: [visible(column.cell(row)) for row in rows] for column in columns}
    cells = {column: texts for column, texts in cells.items() if any(texts)}
    widths = {column: max(map(cell_len, [column.name, *texts])) for column, texts in cells.items()}
    while width and len(widths) > 1 and sum(widths.values()) + GAP * (len(widths) - 1) > width:
        _, *others = widths
        shortened = max((column for column in others if column.elastic), key=widths.__getitem__, default=others[0])
        widths[shortened] -= 1
        if not shortened.elastic or widths[shortened] < FEWEST:
            del widths[shortened]
    header, *lines = zip(
        *([_cell(text, column, wide) for text in (column.name, *cells[column])] for column, wide in widths.items()),
        strict=True,
    )
    text = Text.assemble((title, "italic"), "\n", ((" " * GAP).join(header).rstrip(), "bold"))
    return text.append("".join(f"\n{(' ' * GAP).join(line).rstrip()}" for line in lines))


def _cell(text: str, column: Column, width: int) -> str:
    """A text cut to `width` and filled up with spaces."""
    text = _cut(text, width)
    spaces = " " * (width - cell_len(text))
    return spaces + text if column.right else text + spaces


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…"
