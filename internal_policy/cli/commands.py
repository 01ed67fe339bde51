"""Every command: its group in the help, its options and what runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from internal_policy.cli import (
    ablate,
    align,
    check,
    compare,
    dashboard,
    evaluate,
    export,
    families,
    fit_lens,
    generate,
    lens,
    ls,
    mcp,
    plot,
    push,
    report,
    rm,
    scan,
    show,
    train,
    usage,
    verify,
)


@dataclass(frozen=True)
class Command:
    """A command of the command line."""

    group: str
    """Its heading in `internal-policy --help`."""
    options: type
    """Its options, a dataclass, whose docstring is the help."""
    run: Callable[[Any], bool | None]
    """What runs it: True if it did its work and something is wrong."""


COMMANDS: Mapping[str, Command] = {
    "lens": Command("Measure", lens.Lens, lens.run),
    "scan": Command("Measure", scan.Scan, scan.run),
    "ablate": Command("Measure", ablate.Ablate, ablate.run),
    "align": Command("Measure", align.Align, align.run),
    "generate": Command("Measure", generate.Generate, generate.run),
    "evaluate": Command("Measure", evaluate.Evaluate, evaluate.run),
    "fit-lens": Command("Measure", fit_lens.FitLens, fit_lens.run),
    "show": Command("Look", show.Show, show.run),
    "plot": Command("Look", plot.Plot, plot.run),
    "check": Command("Look", check.Check, check.run),
    "compare": Command("Look", compare.Compare, compare.run),
    "report": Command("Look", report.Report, report.run),
    "dashboard": Command("Look", dashboard.Dashboard, dashboard.run),
    "train": Command("Train", train.Train, train.run),
    "ls": Command("Manage", ls.Ls, ls.run),
    "verify": Command("Manage", verify.Verify, verify.run),
    "rm": Command("Manage", rm.Rm, rm.run),
    "mcp": Command("Manage", mcp.Mcp, mcp.run),
    "export": Command("Manage", export.Export, export.run),
    "push": Command("Manage", push.Push, push.run),
    "families": Command("Manage", families.Families, families.run),
}
"""The commands in the order of the help. To add one, add a row; the first sentence of its docstring must fit a line."""


def reference() -> dict[str, usage.Page]:
    """The help of every command as data: its summary, paragraphs, examples, and options by group.

    Pages of documentation are written from this. For example:

        for command, page in reference().items():
            for title, options in page.groups.items():
                for option in options:
                    print(command, title, option.typed, option.help, option.default)
    """
    return {name: usage.page(command.options) for name, command in COMMANDS.items()}
