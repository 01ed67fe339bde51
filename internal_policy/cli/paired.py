"""`internal-policy evaluate A B --paired`: the difference between two evaluations of the same problems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import inventory
from internal_policy.cli.console import document, paragraph, uncut
from internal_policy.errors import InputError, counted

if TYPE_CHECKING:
    import pandas as pd

ROLLOUTS, CURVES = "rollouts.parquet", "pass_at_k.parquet"
"""Files of an evaluation: its responses, and its curves with their label."""
SAMPLING = ("temperature", "top_p", "max_new_tokens", "chat_template_kwargs")
"""Settings that may differ between compared evaluations, which is then noted."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation on disk."""

    name: str
    """What it was called on the command line."""
    folder: Path
    """Its folder."""
    label: str
    """The label of its curves."""
    asked: Mapping[str, Any]
    """Its settings."""
    rows: "pd.DataFrame"
    """Its responses."""
    samples: int
    """Responses per problem."""

    def right(self) -> "dict[str, pd.DataFrame]":
        """Name of a set of problems -> its problems: problem, answer, which (of equal ones), and correct (how many)."""
        from internal_policy.tasks import pass_at_k

        rows = self.rows.assign(correct=pass_at_k.correct(self.rows["reward"]).astype(int))
        rows["answer"] = rows["answer"].fillna("")
        rows["number"] = (rows["sample"] == 0).cumsum()
        first = {"problem": "first", "answer": "first", "correct": "sum"}
        found = {}
        for name, each in rows.groupby("problems", sort=False):
            problems = each.groupby("number").agg(first)
            found[str(name)] = problems.assign(which=problems.groupby(["problem", "answer"]).cumcount())
        return found


def read(name: str) -> Evaluation:
    """An evaluation by its folder or its name in `internal-policy ls`. Raises InputError, also for unmarked ones."""
    from internal_policy.scans import records, settings, store
    from internal_policy.tasks import pass_at_k

    folder = inventory.find(name, "evaluation").folder
    try:
        asked = records.read(folder / inventory.EVALUATION).get("asked") or {}
        if wrong := settings.complaint(asked):
            raise InputError(wrong)
        rows = store.read_part(folder / ROLLOUTS).to_pandas()
        if missing := {"problems", "problem", "answer", "sample", "reward", "response"} - {*rows.columns}:
            raise InputError(f"no column {min(missing)}")
        others = rows[["sample", "reward"]].select_dtypes(exclude="number")
        if "sample" in others or rows["sample"].isna().any() or others.notna().any(axis=None):
            raise InputError("no numbers")
        curves = store.read_part(folder / CURVES).to_pandas()
        if "label" not in curves or not len(curves):
            raise InputError("no label")
        label = str(curves["label"].iloc[0])
    except (InputError, *records.DAMAGE) as error:
        raise InputError(f"The evaluation in {folder} is damaged. Remove the folder and evaluate again.") from error
    if why := pass_at_k.no_box(rows["reward"], rows["response"]):
        raise InputError(f"{why.rstrip('.')} in {name}. Compare evaluations with marked responses.")
    if rows["reward"].isna().all():
        raise InputError(f"No response in {name} was marked. Compare evaluations with marked responses.")
    names = rows["problems"].unique()
    label = label.removesuffix(f", {names[0]}") if len(names) > 1 else label
    return Evaluation(name, folder, label, asked, rows, int(rows["sample"].max()) + 1)


def aligned(a: Evaluation, b: Evaluation) -> dict[str, tuple[list[int], list[int]]]:
    """Name of a set of problems in A -> how many of each problem's responses are correct in A and in B.

    Problems are the same if their texts and answers are, in whatever order, and whatever the set is called. Raises
    InputError for other problems or another number of responses per problem.
    """
    if a.samples != b.samples:
        raise InputError(
            f"{a.name} has {counted(a.samples, 'response')} per problem and {b.name} has {b.samples}. Evaluate both "
            "with the same --samples."
        )
    keys = ["problem", "answer", "which"]
    mine, others = a.right(), {name: found.set_index(keys)["correct"] for name, found in b.right().items()}
    pairs: dict[str, tuple[list[int], list[int]]] = {}
    for name, found in mine.items():
        one = found.set_index(keys)["correct"]
        same = next((other for other, each in others.items() if set(each.index) == set(one.index)), None)
        if same is None or len(mine) != len(others):
            raise InputError(_different(a, b))
        pairs[name] = (one.tolist(), others[same].reindex(one.index).tolist())
    if len(pairs) > 1:
        whole = [[count for pair in pairs.values() for count in pair[side]] for side in (0, 1)]
        pairs["all"] = (whole[0], whole[1])
    return pairs


def _different(a: Evaluation, b: Evaluation) -> str:
    sets = [[set(zip(f["problem"], f["answer"], f["which"], strict=True)) for f in e.right().values()] for e in (a, b)]
    first, second = (set().union(*each) for each in sets)
    return (
        f"{a.name} and {b.name} have different problems: {len(first):,} and {len(second):,}, with "
        f"{len(first & second):,} in common. Evaluate both with the same --problems and --limit."
    )


def caveats(a: Evaluation, b: Evaluation) -> list[str]:
    """What differs between two evaluations besides the policy, and how many responses weren't marked, as sentences."""
    found = []
    for name in SAMPLING:
        if (one := a.asked.get(name)) != (other := b.asked.get(name)):
            found.append(f"The evaluations differ in --{name.replace('_', '-')}: {one} and {other}.")
    for each in (a, b):
        if unmarked := int(each.rows["reward"].isna().sum()):
            were = "wasn't marked and counts" if unmarked == 1 else "weren't marked and count"
            found.append(f"{counted(unmarked, 'response')} of {each.name} {were} as incorrect.")
    return found


def run(names: Sequence[str], *, as_json: bool) -> None:
    """Compare two evaluations and print the differences. Raises InputError."""
    from internal_policy.tasks import paired

    a, b = read(names[0]), read(names[1])
    labels = (a.label, b.label) if a.label != b.label else (a.name, b.name)
    pairs = aligned(a, b)
    compared = []
    for name, (one, other) in pairs.items():
        tested = {
            "avg_p": paired.p_value([y - x for x, y in zip(one, other, strict=True)]),
            "pass_p": paired.p_value([(y > 0) - (x > 0) for x, y in zip(one, other, strict=True)]),
        }
        rows = paired.differences(one, other, a.samples).to_dict("records")
        compared.append({"problems": name, "number": len(one), "differences": rows, **tested})
        compared[-1]["solved"] = paired.solved(one, other)
    said = [in_words(row, labels, a.samples, many=len(compared) > 1) for row in compared]
    noted = caveats(a, b)
    if as_json:
        sides = {key: {"folder": str(e.folder), "label": e.label} for key, e in (("a", a), ("b", b))}
        document({**sides, "samples": a.samples, "compared": compared, "findings": said, "caveats": noted})
        return
    uncut(_table(compared, labels, a.samples))
    for sentence in said:
        paragraph(sentence)
    paragraph(
        f"{counted(a.samples, 'response')} per problem, and 95% intervals over problems. The p values are exact and "
        "two-sided: McNemar's test of "
        f"the problems with a correct response (Pass@{a.samples}){_of_avg(a.samples)}."
    )
    for sentence in noted:
        paragraph(sentence)


def _of_avg(samples: int) -> str:
    return "" if samples == 1 else f", and its generalisation to {samples} responses, random signs (Avg@{samples})"


def in_words(row: Mapping[str, Any], labels: Sequence[str], samples: int, *, many: bool) -> str:
    """Whether Avg@K of B is shown to differ from that of A on a set of problems, as sentences."""
    avg, solved = row["differences"][0], row["solved"]
    where = f"On {row['problems']}, " if many else ""
    points = f"{100 * avg['difference']:+.1f} points"
    if avg["low"] != avg["low"]:
        return f"{where}{labels[1]} differs from {labels[0]} by {points} of Avg@{samples} on a single problem."
    between = f"{points}, {100 * avg['low']:+.1f} to {100 * avg['high']:+.1f}"
    claim = "above" if avg["low"] > 0 else "below" if avg["high"] < 0 else "not shown to differ from"
    return (
        f"{where}{labels[1]} is {claim} {labels[0]} in Avg@{samples} ({between}). Only B solves "
        f"{counted(solved['only_b'], 'problem')}, only A {solved['only_a']}, both {solved['both']}, neither "
        f"{solved['neither']}."
    )


def _table(compared: Sequence[Mapping[str, Any]], labels: Sequence[str], samples: int) -> Table:
    """A row for each set of problems and k."""
    title = escape(f"{labels[1]} (B) minus {labels[0]} (A), in percent")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "problems", "measure", "A", "B", "B-A", "95%", "p"):
        table.add_column(name, justify="left" if name in ("", "measure") else "right", no_wrap=True)
    for row in compared:
        for number, each in enumerate(row["differences"]):
            named = (escape(row["problems"]), f"{row['number']:,}") if number == 0 else ("", "")
            measure = f"Avg@{samples}" if number == 0 else f"Pass@{each['k']}"
            p = row["avg_p"] if number == 0 else row["pass_p"] if each["k"] == samples else None
            between = "" if each["low"] != each["low"] else f"{100 * each['low']:+.1f} to {100 * each['high']:+.1f}"
            shares = f"{100 * each['a']:.1f}", f"{100 * each['b']:.1f}", f"{100 * each['difference']:+.1f}"
            table.add_row(*named, measure, *shares, between, "" if p is None else _p(p))
    return table


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
