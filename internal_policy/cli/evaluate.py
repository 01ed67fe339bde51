"""`internal-policy evaluate`: sample K responses to every problem, and report how many are correct."""

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import files
from internal_policy.cli import engine, outputs, paired, plan, prepared, progress, sampler, shards
from internal_policy.cli.common import (
    Fraction,
    JsonOptions,
    OutputFolder,
    OutputOptions,
    PolicyOptions,
    ResponseOptions,
    SamplerOptions,
    Sources,
    Text,
)
from internal_policy.cli.console import document, out, paragraph, uncut
from internal_policy.cli.inventory import EVALUATION
from internal_policy.errors import InputError, counted
from internal_policy.models import naming

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout


@dataclass(frozen=True, kw_only=True)
class ProblemSets:
    """Sets of problems to solve."""

    group: ClassVar = "Data"
    problems: Sources = ()
    """Problems to solve, with answers: .jsonl, .json, .csv or .parquet files, or data sets of the hub as
    NAME[:CONFIG]@SPLIT. By default the first 64 of the bundled held-out problems. --limit applies to each set."""


Evaluations = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="EVALUATION")]


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """Evaluations to compare or to plan by, instead of sampling."""

    group: ClassVar = "Comparison"
    evaluations: Evaluations = ()
    """Evaluations for --paired or --plan, each by its folder or its name in `internal-policy ls`."""
    paired: bool = False
    """Print how the second evaluation differs from the first, on the same problems; nothing is sampled."""
    plan: bool = False
    """Print the smallest difference that --samples responses to the problems can detect, and how many problems a
    difference needs; nothing is sampled. With one or two evaluations, it uses how much their responses vary."""
    detect: Fraction = None
    """Difference of Avg@K that --plan counts problems for, in percentage points; by default 10, 5, 2 and 1."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(
    JsonOptions, OutputOptions, ComparisonOptions, PolicyOptions, SamplerOptions, ResponseOptions, ProblemSets
):
    """Sample K responses per problem and report Avg@K and Pass@k.

    Or compare two evaluations (--paired), or plan one (--plan), without sampling.

    Intervals are 95% Wilson intervals over the problems. The folder has pass_at_k.parquet with the curves, and
    rollouts.parquet with the responses. An interrupted evaluation continues where it stopped, and a repeated one is
    read from the cache.

    For example:
    $ internal-policy evaluate --samples 16
    $ internal-policy evaluate --at 5.resid_post --limit 32 -o layer5
    $ internal-policy evaluate --problems amc.jsonl HuggingFaceH4/MATH-500@test
    $ internal-policy evaluate --samples 16 --plan
    $ internal-policy evaluate base trained --paired
    """

    group: ClassVar = "Output"
    samples: int = 8
    """Responses per problem (K)."""
    label: Text = None
    """Name of the curve; by default the model's name, with @5.resid_post for an internal policy."""
    output: OutputFolder = None
    """Folder for the two files; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE)."""
    force: bool = False
    """Replace another evaluation in the folder; only files that internal-policy wrote are removed."""


ASKED, ROLLOUTS, CURVES = EVALUATION, paired.ROLLOUTS, paired.CURVES
ALL = "all"
"""Name of several sets of problems together."""
COMPARISON = {field.name for field in dataclasses.fields(ComparisonOptions)}
PRESENTATION = {"output", "json", "label", *COMPARISON}
"""Options that don't change what is sampled."""


def run(options: Evaluate) -> None:
    """Evaluate, compare two evaluations or plan one, as the options ask. Raises InputError."""
    names = options.evaluations
    if options.paired and options.plan:
        raise InputError("--paired and --plan can't be used together. Choose one of them.")
    if options.paired:
        if len(names) != 2:
            raise InputError(f"--paired compares two evaluations, but {len(names)} are named. Name two.")
        given = {field.name: field.default for field in dataclasses.fields(options)}
        prepared.check_effect(options, given.keys() - {"evaluations", "paired", "json"}, "--paired")
        paired.run(names, as_json=options.json)
        return
    if options.plan:
        if len(names) > 2:
            raise InputError(f"--plan takes at most two evaluations, but {len(names)} are named.")
        number = None if names and not options.problems and options.limit is None else _number(options)
        plan.run(names, number, options.samples, options.detect, as_json=options.json)
        return
    if names:
        raise InputError(f"{names[0]} is only used with --paired or --plan. Add one of them, or leave it out.")
    if options.detect is not None:
        raise InputError("--detect has no effect without --plan. Add --plan.")
    evaluate(options)


def _number(options: Evaluate) -> int:
    """How many problems would be evaluated."""
    from internal_policy.tasks.problems import read_problems

    sources = [prepared.source(problems, options.limit) for problems in options.problems or (None,)]
    columns = {"problem_column": options.problem_column, "answer_column": options.answer_column}
    return sum(len(read_problems(source, limit=limit, **columns)) for source, limit in sources)


def evaluate(options: Evaluate) -> None:
    """Read the responses in the folder, or sample them; then write and print the curves."""
    import pyarrow as pa

    from internal_policy.scans import claims, digests, store

    start, worker = time.monotonic(), options.worker
    progress.hush(not worker.leads)
    engine.check_policy(options)
    sets = named(tuple(prepared.source(problems, None)[0] for problems in options.problems or (None,)))
    limit = options.limit if options.problems else prepared.source(None, options.limit)[1]
    inputs = prepared.prepare(
        dataclasses.replace(options, problems=tuple(sets.values()), limit=limit),
        PRESENTATION,
        list(sets.values()),
        lenses=[options.lens] if options.lens else [],
        of_another_model=options.lens_of_another_model,
    ).asking(names=list(sets))  # responses are stored under these names
    folder, question = options.output or store.root() / "evaluations" / store.digest(inputs.question), inputs.question
    _, other = outputs.claimed(
        folder,
        "evaluation",
        options.force,
        lambda: claims.claim(folder, ASKED, "evaluation", question),
        outputs.inputs_of(options),
    )
    shards.check_other(worker, folder, other)
    outputs.check_writable(folder)
    cached = not other and (folder / ROLLOUTS).exists()
    if not cached:
        outputs.check_cache()
        progress.quiet()
        _sample(options, inputs, sets, folder, other)
    if not worker.leads or not (folder / ROLLOUTS).exists():
        return
    written = responses(folder)
    tables = {name: written[written["problems"] == name] for name in sets}
    if len(tables) > 1:
        tables[ALL] = written
    label = options.label or label_of(options, inputs)
    curves = curves_of(tables, options.samples, label)
    store.write_table(folder / CURVES, pa.Table.from_pandas(curves, preserve_index=False))
    digests.record(folder, (ASKED, ROLLOUTS, CURVES), changed=(CURVES,) if cached else None)
    printed(folder, label, curves, options.samples, tables, as_json=options.json)
    progress.note(f"{'Read from the cache' if cached else 'Sampled'} in {time.monotonic() - start:.1f} s.")


def named(sources: tuple[str, ...], option: str = "problems") -> dict[str, str]:
    """Name -> source of each set of an `option`. A file has its own name, unless another has it. Raises InputError."""
    twice = [source for source, times in Counter(sources).items() if times > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice with --{option}. Give each set once.")
    stems = [Path(source).stem if Path(source).is_file() else source for source in sources]
    names = [
        source if stem == ALL or stems.count(stem) > 1 else stem for source, stem in zip(sources, stems, strict=True)
    ]
    return dict(zip(names, sources, strict=True))


def label_of(options: Evaluate, inputs: prepared.Prepared) -> str:
    """The model's name, with the hook point and the readout where they are not the model's own."""
    name = naming.title(options.model)
    name_of_readout = next((lens.name for lens in inputs.lenses), options.readout)
    readout = f", {name_of_readout}" if name_of_readout != "raw" else ""
    return name if options.at == "final" else f"{name}@{options.at}{readout}"


def responses(folder: Path) -> "pd.DataFrame":
    """The responses of an evaluation. Raises InputError if they are damaged."""
    from internal_policy.scans import store

    try:
        return store.read_part(folder / ROLLOUTS).to_pandas()
    except InputError as error:
        raise InputError(f"{folder / ROLLOUTS} is damaged. Remove the folder and evaluate again.") from error


def curves_of(sets: "Mapping[str, pd.DataFrame]", samples: int, label: str) -> "pd.DataFrame":
    """Pass@k of each set of problems: label, problems, k, mean, low, high. No two sets have the same label.

    A set has a row for each response; responses to the same problem are consecutive.
    """
    import pandas as pd

    from internal_policy.tasks import pass_at_k

    found = []
    for name, rows in sets.items():
        correct = pass_at_k.correct(rows["reward"]).to_numpy().reshape(-1, samples).sum(1).tolist()
        named = label if len(sets) == 1 else f"{label}, {name}"
        found.append(pass_at_k.curves(correct, samples).assign(label=named, problems=name))
    return pd.concat(found, ignore_index=True)[["label", "problems", "k", "mean", "low", "high"]]


def _sample(options: Evaluate, inputs: prepared.Prepared, sets: Mapping[str, str], folder: Path, other: bool) -> None:
    """Sample responses, and write them to a folder in place of the `other` evaluation that it may hold.

    Nothing is written while other processes that share the work still have parts; a note on stderr says so.
    """
    import pyarrow as pa

    from internal_policy.scans import store

    policy = inputs.policy(options.at, options.readout)
    read = {name: inputs.problems(source) for name, source in sets.items()}
    asked = {name: problems for name, (problems, _) in read.items()}
    lengths = [length for _, prompts in read.values() for length in prompts]
    for name, problems in asked.items():
        check_answers(name, problems)
    parts = store.root() / "rollouts" / store.digest({**inputs.question, "output": folder.absolute()})
    places = {name: parts / str(number) for number, name in enumerate(asked)}
    with sampler.sampler(options, inputs, policy, lengths) as sample:
        if not other and (folder / ROLLOUTS).exists():
            return  # other processes have finished while the model was loaded
        sampled = {name: sample(asked[name], places[name], f"Sampling {name}") for name in asked}
    tables = [_table(name, rollouts) for name, rollouts in sampled.items() if rollouts is not None]
    if len(tables) < len(sampled) and (folder / ROLLOUTS).exists():
        shards.remove(parts)
        return
    if len(tables) < len(sampled):
        left = [inputs.left(asked[name], places[name]) for name in asked]
        shards.note_left(inputs.worker, sum(some for some, _ in left), sum(total for _, total in left), parts)
        return
    if other:
        outputs.clear(folder, "evaluation")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / ASKED, {"digest": store.digest(inputs.question), "asked": inputs.question})
    store.write_table(folder / ROLLOUTS, pa.concat_tables(tables))
    shards.remove(parts)


def check_answers(name: str, problems: "list[Problem]") -> None:
    """Raise InputError if a problem of the set `name` has no answer to mark responses by."""
    from internal_policy.tasks.marking import is_prose

    without = [n for n, problem in enumerate(problems, start=1) if problem.answer is None or is_prose(problem.answer)]
    if without:
        has = "no answer" if problems[without[0] - 1].answer is None else "an answer in prose"
        raise InputError(
            f"{len(without)} of {counted(len(problems), 'problem')} of {name} can't be marked. Problem {without[0]} "
            f"has {has}. Name the column that holds short answers with --answer-column, or remove these problems."
        )


def _table(name: str, rollouts: "list[Rollout]") -> "pa.Table":
    from internal_policy.tasks.rollouts import to_table

    return to_table(rollouts).add_column(0, "problems", [[name] * len(rollouts)])


def printed(
    folder: Path,
    label: str,
    curves: "pd.DataFrame",
    samples: int,
    tables: "Mapping[str, pd.DataFrame]",
    *,
    as_json: bool = False,
) -> None:
    """Print a row for each set of problems. `tables` contains their responses."""
    from internal_policy.tasks import pass_at_k

    unmarked = _unmarked(tables)
    sets = {name: rows.set_index("k") for name, rows in curves.groupby("problems", sort=False)}
    found = [
        {
            "problems": name,
            "number": len(tables[str(name)]) // samples,
            "samples": samples,
            "marked": name not in unmarked,
            "avg": rows[["mean", "low", "high"]].to_dict("records")[0],  # Avg@K is Pass@1, the first row
            "pass_at_k": dict(zip(rows.index.tolist(), rows["mean"].tolist(), strict=True)),
            "cut": float((~tables[str(name)]["finished"]).mean()),
        }
        for name, rows in sets.items()
    ]
    if as_json:
        document({"output": str(folder), "label": label, "evaluated": found})
        return
    table = Table(title=escape(label), title_justify="left", box=box.SIMPLE_HEAD)
    ks = [k for k in found[0]["pass_at_k"] if k > 1]
    table.add_column("", no_wrap=True)
    for name in ("problems", f"Avg@{samples}", "95%", *(f"Pass@{k}" for k in ks), "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        mean, low, high = (f"{100 * share:.1f}" for share in row["avg"].values())
        between = "" if low == "nan" else f"{low} to {high}"
        passed = [f"{100 * row['pass_at_k'][k]:.1f}" for k in ks]
        if row["problems"] in unmarked:
            mean, between, passed = "not marked", "", [""] * len(ks)
        table.add_row(escape(row["problems"]), f"{row['number']:,}", mean, between, *passed, f"{100 * row['cut']:.1f}")
    uncut(table)
    out.print(
        f"Percentages over {counted(samples, 'response')} per problem, with 95% Wilson intervals over problems. "
        "Cut responses reached the length limit."
    )
    for name in [name for name in unmarked if name != ALL]:
        paragraph(pass_at_k.no_box(tables[name]["reward"], tables[name]["response"], name))
    out.print(f"Wrote {escape(str(folder))}.")


def _unmarked(tables: "Mapping[str, pd.DataFrame]") -> list[str]:
    """Sets of problems to which no response could be marked."""
    from internal_policy.tasks import pass_at_k

    outcomes = {name: pass_at_k.outcome(rows["reward"], rows["response"]) for name, rows in tables.items()}
    return [name for name, (_, value) in outcomes.items() if value == pass_at_k.NOT_MARKED]
