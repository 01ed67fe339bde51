"""Print what was measured as Markdown tables."""

from collections.abc import Sequence
from typing import Any


def limit(costs: dict[str, dict[str, Any]]) -> float:
    """The least seconds possible: those of the fastest bare product, and of the forward pass in a scan."""
    bare = min(cost["seconds"] for name, cost in costs.items() if name.startswith("bare"))
    return bare + costs.get("forward pass", {"seconds": 0.0})["seconds"]


def report(case: dict[str, Any]) -> str:
    """The title of a case and its tables."""
    chosen = f"chosen: {case['chosen']}, " if "chosen" in case else ""
    title = f"{case['what']} ({chosen}load {case['load']:.1f})"
    shown = [growing(case)] if case["part"] == "growth" else [costs(case)]
    return "\n\n".join([f"\n{title}", *shown, *([errors(case["errors"])] if "errors" in case else [])])


def costs(case: dict[str, Any]) -> str:
    """A line for each candidate, and for the limit."""
    found, least = case["costs"], limit(case["costs"])
    slowest = next(cost["seconds"] for name, cost in found.items() if name.startswith("reference"))
    flop = case.get("flop")
    rows = []
    for name, cost in {**found, "**the limit**": {"seconds": least, "mb": 0.0}}.items():
        seconds = cost["seconds"]
        ours = name.startswith("ours")
        row = [
            f"**{name}**" if ours else name,
            f"{seconds:.4f}",
            f"{seconds / least:.2f}",
            f"{slowest / seconds:.2f}",
            f"{least / seconds:.0%}" if ours else "",
            f"{cost['mb']:.0f}",
        ]
        rows.append([*row, f"{flop / seconds / 1e12:.3f}"] if flop else row)
    header = ["", "seconds", "/ limit", "speed-up", "of the limit's", "MB"]
    return markdown([*header, "TFLOP/s"] if flop else header, rows)


def errors(found: dict[str, dict[str, float]]) -> str:
    """The largest error of each number."""
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    rows = [[who, *(f"{each[name]:.0e}" if name in each else "" for name in names)] for who, each in found.items()]
    return markdown(["largest error", *names], rows)


def growing(case: dict[str, Any]) -> str:
    """A line for each size."""
    names = list(next(iter(case["costs"].values())))
    rows = []
    for size, found in case["costs"].items():
        ours, theirs = (found[name]["seconds"] for name in names)
        cells = (f"{found[name][what]:{form}}" for name in names for what, form in (("seconds", ".2f"), ("mb", ".0f")))
        rows.append([f"{size:,}", *cells, f"{theirs / ours:.2f}"])
    header = [f"{name}, {unit}" for name in names for unit in ("s", "MB")]
    return markdown([case["size"], *header, "speed-up"], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, aligned so that it can also be read as text."""
    widths = [max(3, *(len(row[column]) for row in [header, *rows])) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(ruler), *map(line, rows)])
