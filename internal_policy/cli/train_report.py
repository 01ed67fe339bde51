"""What `internal-policy train` prints: each step while it trains, and the result."""

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import exam, progress
from internal_policy.cli.console import document, out, uncut
from internal_policy.errors import counted

if TYPE_CHECKING:
    import pandas as pd

ACTIVITIES = {
    "generation_seconds": "sampling",
    "rewards_seconds": "rewards",
    "scoring_seconds": "scoring",
    "training_seconds": "training",
    "scan_seconds": "scans",
}
"""Column of metrics -> what took the time."""
ANSWERED = "answered"
"""Key in run.json for whether a problem has an answer; earlier versions didn't write it."""
PROMPT = (
    *("problem_column", "answer_column", "system_prompt", "prompt_suffix"),
    *("chat_template", "chat_template_kwargs"),
)
"""Options about problems and prompts that an evaluation shares with training."""


@contextmanager
def reporting(total: int | None) -> Iterator[Any]:
    """Report each step: on a terminal in a progress bar, elsewhere in a line a minute."""
    from internal_policy.train.collapse import collapse

    cut = "All responses were cut at the length limit, so none can be correct. Raise --max-new-tokens."
    warn, collapsed = progress.saying_once(cut), progress.saying_once("{}")
    rows: list[Mapping[str, Any]] = []
    with progress.steps("Training", total) as reach:

        def report(row: Mapping[str, Any]) -> None:
            reach(row["step"], in_words(row))
            rows.append(row)
            if (change := collapse(rows)) is not None:
                collapsed(change)
            elif row.get("cut", 0) == 1 and rows[0].get("cut", 0) == 1:
                warn(row["step"])

        yield report


def in_words(row: Mapping[str, Any]) -> str:
    """A row of metrics in words. The loss is left out, because GRPO's is always about 0."""
    trained = "whole policy" if row["phase"] == "final" else row["target"]
    formats = {
        "reward": "reward {:.2f}",
        "entropy": "entropy {:.3f}",
        "internal_entropy": f"{row['target']} {{:.3f}}",
        "clip_fraction": "clipped {:.1%}",
        "groups_without_spread": "no spread {:.0%}",
        "cut": "cut {:.0%}",
        "skipped": "skipped {:.0%} of updates",
        "generation_tokens_per_second": "sampling {:,.0f} tokens/s",
        "training_tokens_per_second": "training {:,.0f} tokens/s",
        "mfu": "MFU {:.0%}",
    }
    if not row.get("skipped"):
        formats.pop("skipped")
    known = {name: form for name, form in formats.items() if not math.isnan(row.get(name, math.nan))}
    said = [form.format(row[name]) for name, form in known.items()]
    if not math.isnan(row.get("peak_memory", math.nan)):
        said.append(f"{row['peak_memory'] / 1e9:.1f} GB")
    if "exam" in row:
        said.append(f"exam {row['exam']:.1%} (step {row['exam_step']})")
    return f"{trained}: " + ", ".join(said)


def times(metrics: "pd.DataFrame", exams: "pd.DataFrame | None" = None) -> dict[str, float]:
    """Share of the time of steps, scans and exams that each activity took; empty if it wasn't measured."""
    if "training_seconds" not in metrics:
        return {}
    spent = {words: float(metrics[name].sum()) for name, words in ACTIVITIES.items() if name in metrics}
    if exams is not None and "seconds" in exams:
        spent["exams"] = float(exams.drop_duplicates("step")["seconds"].sum())
    total = float(metrics["seconds"].sum()) + spent.get("scans", 0.0) + spent.get("exams", 0.0)
    spent["other"] = total - sum(spent.values())
    return {words: seconds / total for words, seconds in spent.items()}


def evaluation(asked: Mapping[str, Any], folder: Path) -> str:
    """The command that evaluates the model of a run with these options, with prompts as in training.

    The problems are those of the exams, or else of training; for the bundled ones, others that were drawn alike.
    """
    problems = asked.get("eval_problems") or asked.get("problems") or (str(exam.BUNDLED),)
    words = ["--model", str(folder / "model"), "--problems", *problems]
    for name in PROMPT:
        value = asked.get(name)
        words += [] if value in (None, "{}") else [f"--{name.replace('_', '-')}", value]
    return shlex.join(["internal-policy", "evaluate", *words])


def best_model(folder: Path) -> Path | None:
    """The model of the best exam of a run; None if it isn't kept."""
    return folder / "best" if (folder / "best").is_dir() else None


def trained(
    folder: Path,
    metrics: "pd.DataFrame",
    seconds: float,
    evaluated_by: str | None,
    exams: "pd.DataFrame | None" = None,
    *,
    as_json: bool = False,
) -> None:
    """Print the reward over tenths of the run, the exams, and the command that evaluates the model, if there is one."""
    from internal_policy.look import runs  # which imports pandas

    names = ["reward", *runs.rewards(metrics), "entropy", "clip_fraction"]
    tenth = max(1, len(metrics) // 10)
    rows = []
    for start in range(0, len(metrics), tenth):
        part = metrics.iloc[start : start + tenth]
        steps = [int(step) for step in part["step"]]
        means = part.reindex(columns=names).mean().to_dict()
        means = {name: None if math.isnan(mean) else mean for name, mean in means.items()}
        numbers = "-".join(str(step) for step in dict.fromkeys((steps[0], steps[-1])))
        rows.append({"steps": numbers, "trained": ", ".join(dict.fromkeys(part["target"])), **means})
    best = best_model(folder)
    if as_json:
        document(
            {
                "run": str(folder),
                "model": str(folder / "model"),
                "best_model": None if best is None else str(best),
                "seconds": seconds,
                "time": times(metrics, exams),
                "steps": rows,
                "exams": [] if exams is None else exams.to_dict("records"),
            }
        )
        return
    table = Table(title="Means over steps", title_justify="left", box=box.SIMPLE_HEAD)
    measured = [name for name in names if name in metrics]
    for name in ("steps", "trained", *measured):
        header = name.removeprefix(runs.REWARD).replace("_", " ")
        table.add_column(header, justify="left" if name == "trained" else "right")
    for row in rows:
        numbers = ["" if row[name] is None else f"{row[name]:.3f}" for name in measured]
        table.add_row(row["steps"], row["trained"], *numbers)
    out.print(table)
    if exams is not None:
        uncut(exam.table(exams))
    out.print(f"{counted(len(metrics), 'step')} in {seconds:.0f} s. Model: {escape(str(folder / 'model'))}")
    if shares := times(metrics, exams):
        out.print("Time: " + ", ".join(f"{words} {share:.0%}" for words, share in shares.items() if share >= 0.005))
    if best is not None:
        out.print(f"Model of the best exam: {escape(str(best))}")
    if evaluated_by is not None:
        out.print(f"To evaluate it:\n  {escape(evaluated_by)}")
