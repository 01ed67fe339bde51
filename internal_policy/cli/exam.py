"""The exams of `internal-policy train` on held-out problems: reading the problems, and printing the results."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import bundle
from internal_policy.cli import progress
from internal_policy.cli.evaluate import check_answers, named
from internal_policy.cli.train_options import Train
from internal_policy.errors import InputError, counted

if TYPE_CHECKING:
    import pandas as pd

    from internal_policy.tasks.problems import Problem
    from internal_policy.train.exam import Exam

OPTIONS = ("eval_problems", "eval_every", "eval_samples", "keep_best", "stop_below")
"""Options about exams."""
BUNDLED, FIRST = bundle.DATA / "problems" / "sums-heldout.jsonl", 64
"""The exam of a run on the bundled problems: a file, and how many of its problems are used."""


def sets_of(options: Train) -> "dict[str, list[Problem]]":
    """The sets of held-out problems by name; none without exams.

    Raises InputError for problems that can't be marked, and for options that have no effect without an exam.
    """
    from internal_policy.tasks.problems import read_problems

    sources, limit = options.eval_problems, None
    if not sources and options.eval_every and not options.problems:
        sources, limit = (str(BUNDLED),), FIRST
    if unused := [name for name in OPTIONS if getattr(options, name) and not sources]:
        raise InputError(f"--{unused[0].replace('_', '-')} needs held-out problems. Add --eval-problems FILE.")
    sets = {
        name: read_problems(source, **{**options.reading, "limit": limit})
        for name, source in named(sources, "eval-problems").items()
    }
    for name, problems in sets.items():
        if not problems:
            raise InputError(f"{name} has no problems. Choose another file for --eval-problems.")
        check_answers(name, problems)
    return sets


def exam_of(options: Train, sets: "Mapping[str, list[Problem]]", problems: "Sequence[Problem]") -> "Exam":
    """The exam of a training on `problems`; a note names sets that share some with them."""
    from internal_policy.train.exam import Exam

    trained = {problem.text for problem in problems}
    for name, held_out in sets.items():
        if shared := sum(problem.text in trained for problem in held_out):
            progress.note(
                f"{shared:,} of {counted(len(held_out), 'problem')} of {name} {'is' if shared == 1 else 'are'} also in "
                "--problems, so this exam tests memory too."
            )
    given = {"every": options.eval_every, "samples": options.eval_samples, "stop_below": options.stop_below}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Exam(sets, keep_best=options.keep_best, **chosen)


def table(exams: "pd.DataFrame") -> Table:
    """The exams of a run in percent, a row for each exam and set of problems; of many exams, some.

    The last column is the mean reward in training since the exam before.
    """
    import pandas as pd

    from internal_policy.look import run_summary, runs

    rows, samples = run_summary.some_exams(exams), exams["samples"].iloc[0]
    drawn = Table(title="Exams in percent", title_justify="left", box=box.SIMPLE_HEAD)
    several = rows["problems"].nunique() > 1
    best = runs.best(exams)["step"]
    names = ["step", *(["problems"] if several else []), f"Avg@{samples}", "95%", f"Pass@{samples}", "change", "95%"]
    for name in (*names, "reward", ""):
        drawn.add_column(name, justify="left" if name in ("problems", "") else "right", no_wrap=True)
    for row in rows.to_dict("records"):
        changed = not pd.isna(row.get("change"))
        cells = [
            str(row["step"]),
            *([escape(row["problems"])] if several else []),
            f"{100 * row['avg_at_k']:.1f}",
            _between(row["avg_at_k_low"], row["avg_at_k_high"]),
            f"{100 * row['pass_at_k']:.1f}",
            f"{100 * row['change']:+.1f}" if changed else "",
            _between(row["change_low"], row["change_high"], "+") if changed else "",
            "" if pd.isna(row["reward"]) else f"{row['reward']:.3f}",
        ]
        drawn.add_row(*cells, "best" if row["step"] == best else "")
    return drawn


def _between(low: float, high: float, sign: str = "") -> str:
    """An interval in percent; nothing if it isn't known."""
    return "" if low != low else f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"
