"""`internal-policy evaluate`: sample K responses to every problem, and say how many are right."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import files
from internal_policy.cli import progress, sampling
from internal_policy.cli.common import File, ModelOptions, Output, ReadingOptions, SamplingOptions, Sources, Text
from internal_policy.cli.console import document, out
from internal_policy.errors import InputError
from internal_policy.models import loading

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from internal_policy.models.hooks import HookPoint
    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout


@dataclass(frozen=True, kw_only=True)
class Evaluate(SamplingOptions, ReadingOptions, ModelOptions):
    """Sample K responses to every problem, and say how many are right: Avg@K and Pass@k, with 95 % intervals.

    They are Wilson intervals over the problems. An interrupted evaluation continues where it stopped, and the same
    question asked again is answered at once. pass_at_k.parquet holds the curves, rollouts.parquet the responses.

    For example:
    $ internal-policy evaluate --samples 16
    $ internal-policy evaluate --at 5.resid_post --limit 32 --output layer5
    $ internal-policy evaluate --model Qwen/Qwen3-4B --problems amc.jsonl HuggingFaceH4/MATH-500@test
    """

    problems: Sources = ()
    """Files .jsonl, .json, .csv or .parquet, or data sets of the hub, NAME[:CONFIG]@SPLIT, that have answers; by
    default the bundled held-out problems, the first 64 of them. --limit is for each."""
    samples: int = 8
    """Responses per problem: K."""
    at: str = "final"
    """Hook point to sample from: final is the model itself, 5.resid_post what layer 5 alone would write."""
    readout: Literal["raw", "norm"] = "raw"
    """How hidden states of that hook point are unembedded."""
    lens: File = None
    """Unembed them through this lens instead, as `fit-lens` writes it."""
    label: Text = None
    """Name of the curve; by default the model's, with @5.resid_post for an internal policy."""
    output: Output = None
    """Folder for the two files; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE)."""
    json: bool = False
    """Print the result as JSON."""


ASKED, ROLLOUTS, CURVES = "evaluation.json", "rollouts.parquet", "pass_at_k.parquet"
ALL = "all"
"""What several sets of problems are called together."""
PRESENTATION = {"output", "json", "label"}
"""Options that change nothing of what is sampled."""


def run(options: Evaluate) -> None:
    """Answer from the folder, or sample what is missing; then write and show the curves."""
    import pyarrow as pa

    from internal_policy.models.hooks import HookPoint
    from internal_policy.scans import store

    start, point = time.monotonic(), HookPoint.parse(options.at)
    sampling.check_lens(options)
    names = names_of(options.problems or (None,))
    sources = [sampling.source(source, options.limit)[0] for source in names.values()]
    question = sampling.question(options, [*sources, options.chat_template, options.lens], PRESENTATION)
    limit = sampling.source(next(iter(names.values())), options.limit)[1]
    question |= {"problems": sources, "limit": limit, "names": list(names)}  # responses are stored under these names
    folder = options.output or store.root() / "evaluations" / store.digest(question)
    claim(folder, question)
    cached = (folder / ROLLOUTS).exists()
    if not cached:
        _sample(options, point, names, question, folder)
    written = responses(folder)
    sets = {name: written[written["problems"] == name] for name in names}
    if len(sets) > 1:
        sets[ALL] = written
    label = options.label or label_of(options)
    curves = curves_of(sets, options.samples, label)
    store.write_table(folder / CURVES, pa.Table.from_pandas(curves, preserve_index=False))
    cut = {name: float((~rows["finished"]).mean()) for name, rows in sets.items()}
    printed(folder, label, curves, options.samples, {n: len(r) for n, r in sets.items()}, cut, as_json=options.json)
    progress.note(f"{'From the cache' if cached else 'Sampled'} in {time.monotonic() - start:.1f} s.")


def names_of(sources: tuple[str | None, ...]) -> dict[str, str | None]:
    """What each source of problems is called: a file by its name, where that is no other's. Raises InputError."""
    twice = [source for source, times in Counter(sources).items() if times > 1]
    if twice:
        raise InputError(f"--problems names {twice[0]} more than once; name each set of problems once.")
    paths = [sampling.source(source, None)[0] for source in sources]
    stems = [Path(path).stem if Path(path).is_file() else path for path in paths]
    names = [path if stem == ALL or stems.count(stem) > 1 else stem for path, stem in zip(paths, stems, strict=True)]
    return dict(zip(names, sources, strict=True))


def label_of(options: Evaluate) -> str:
    """The model's name, with the hook point and the readout where they are not the model's own."""
    name = Path(options.model).resolve().name if Path(options.model).is_dir() else options.model
    name_of_readout = options.readout if options.lens is None else "tuned"
    readout = f", {name_of_readout}" if name_of_readout != "raw" else ""
    return name if options.at == "final" else f"{name}@{options.at}{readout}"


def claim(folder: Path, options: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but this evaluation. Raises InputError."""
    from internal_policy.scans import job, store

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --output a new folder.")
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return  # a name with a dot is what a killed run was about to write
    if not (folder / ASKED).is_file():
        raise InputError(f"{folder} is not empty and holds no evaluation; give --output a new folder.")
    try:
        before = json.loads((folder / ASKED).read_text())
        found = before["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / ASKED} is damaged ({error}); give --output a new folder.") from error
    if found != store.digest(options):
        job.check_day(folder, before, options)
        raise InputError(f"{folder} holds the evaluation of another question; give --output a new folder.")


def responses(folder: Path) -> "pd.DataFrame":
    """The responses of an evaluation. Raises InputError if they are damaged."""
    from internal_policy.scans import store

    try:
        return store.read_part(folder / ROLLOUTS).to_pandas()
    except InputError as error:
        raise InputError(f"{folder / ROLLOUTS} is damaged; remove the folder, and evaluate again.") from error


def curves_of(sets: "Mapping[str, pd.DataFrame]", samples: int, label: str) -> "pd.DataFrame":
    """Pass@k of each set of problems: label, problems, k, mean, low, high. No two sets have the same label.

    A set is the rows of its responses, in which those to one problem stand together.
    """
    import pandas as pd

    from internal_policy.tasks import pass_at_k

    found = []
    for name, rows in sets.items():
        right = pass_at_k.correct(rows["reward"]).to_numpy().reshape(-1, samples).sum(1).tolist()
        named = label if len(sets) == 1 else f"{label}, {name}"
        found.append(pass_at_k.curves(right, samples).assign(label=named, problems=name))
    return pd.concat(found, ignore_index=True)[["label", "problems", "k", "mean", "low", "high"]]


def _sample(
    options: Evaluate,
    point: "HookPoint",
    names: Mapping[str, str | None],
    question: Mapping[str, Any],
    folder: Path,
) -> None:
    import pyarrow as pa

    from internal_policy.scans import store
    from internal_policy.tasks.generate import check_sampling

    check_sampling(
        options.samples, options.temperature, options.top_p, options.max_new_tokens, options.batch_size, options.seed
    )
    progress.quiet()
    config = loading.load_config(options.checkpoint)
    sampling.check_point(config, point)
    translators = sampling.translators_of(options, [point], question["identity"], config)
    tokenizer = loading.load_tokenizer(options.checkpoint, options.chat_template)
    sets = {name: sampling.read(options, source, tokenizer, config)[0] for name, source in names.items()}
    for name, problems in sets.items():
        _check_answers(name, problems)
    model = loading.load_model(options.checkpoint, config, **options.arguments)
    readout = sampling.readout_of(options, translators, model)
    parts = store.root() / "rollouts" / store.digest({**question, "output": folder.absolute()})
    tables = []
    for number, (name, problems) in enumerate(sets.items()):
        what = f"Sampling {name}"
        rollouts = sampling.all_of(options, model, tokenizer, problems, point, readout, parts / str(number), what)
        tables.append(_table(name, rollouts))
    files.write_json(folder / ASKED, {"digest": store.digest(question), "asked": question})
    store.write_table(folder / ROLLOUTS, pa.concat_tables(tables))
    shutil.rmtree(parts)


def _check_answers(name: str, problems: "list[Problem]") -> None:
    without = [number for number, problem in enumerate(problems, start=1) if problem.answer is None]
    if without:
        raise InputError(
            f"{len(without)} of the {len(problems)} problems of {name} have no answer, the first is problem "
            f"{without[0]}; name the column that holds the answers with --answer-column, or remove the problems."
        )


def _table(name: str, rollouts: "list[Rollout]") -> "pa.Table":
    from internal_policy.tasks.rollouts import to_table

    return to_table(rollouts).add_column(0, "problems", [[name] * len(rollouts)])


def printed(
    folder: Path,
    label: str,
    curves: "pd.DataFrame",
    samples: int,
    responses: Mapping[str, int],
    cut: Mapping[str, float],
    *,
    as_json: bool = False,
) -> None:
    """What was evaluated: a row a set of problems. `cut` is the share of responses that the length limit cut."""
    sets = {name: rows.set_index("k") for name, rows in curves.groupby("problems", sort=False)}
    found = [
        {
            "problems": name,
            "number": responses[str(name)] // samples,
            "samples": samples,
            "avg": rows[["mean", "low", "high"]].to_dict("records")[0],  # Avg@K is Pass@1, the first row
            "pass_at_k": dict(zip(rows.index.tolist(), rows["mean"].tolist(), strict=True)),
            "cut": cut[str(name)],
        }
        for name, rows in sets.items()
    ]
    if as_json:
        document({"output": str(folder), "label": label, "evaluated": found})
        return
    table = Table(title=escape(label), title_justify="left", box=box.SIMPLE_HEAD)
    ks = [k for k in found[0]["pass_at_k"] if k > 1]
    table.add_column("", no_wrap=True)
    for name in ("problems", f"Avg@{samples}", "95 %", *(f"Pass@{k}" for k in ks), "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        mean, low, high = (f"{100 * share:.1f}" for share in row["avg"].values())
        between = "" if low == "nan" else f"{low} to {high}"
        passed = [f"{100 * row['pass_at_k'][k]:.1f}" for k in ks]
        table.add_row(escape(row["problems"]), f"{row['number']:,}", mean, between, *passed, f"{100 * row['cut']:.1f}")
    wanted = out.measure(table, options=out.options.update(width=1000)).maximum
    out.print(table, width=max(out.width, wanted))  # no number is left out on a narrow terminal
    out.print(
        f"Percentages over {samples} responses per problem, with 95 % Wilson intervals over problems; "
        "cut: stopped at the length limit."
    )
    out.print(f"Written to {escape(str(folder))}")
