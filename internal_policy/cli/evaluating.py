"""What the command that evaluates does: sample from a model or an internal policy, and say how much is right."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from internal_policy import files
from internal_policy.cli import options, progress, sampling, show
from internal_policy.errors import InputError
from internal_policy.models import loading
from internal_policy.scans import job, store
from internal_policy.tasks import pass_at_k

if TYPE_CHECKING:
    from internal_policy.models.hooks import HookPoint
    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout

ASKED, ROLLOUTS, CURVES = "evaluation.json", "rollouts.parquet", "pass_at_k.parquet"
ALL = "all"
"""What several sets of problems are called together."""
PRESENTATION = {"output", "json", "label"}
"""Options that change nothing of what is sampled."""


def run(asked: options.Evaluate) -> None:
    """Answer from the folder, or sample what is missing; then write and show the curves."""
    from internal_policy.models.hooks import HookPoint

    start, point = time.monotonic(), HookPoint.parse(asked.at)
    sampling.check_lens(asked)
    names = names_of(asked.problems or (None,))
    sources = [sampling.source(source, asked.limit)[0] for source in names.values()]
    question = sampling.question(asked, [*sources, asked.chat_template, asked.lens], PRESENTATION)
    limit = sampling.source(next(iter(names.values())), asked.limit)[1]
    question |= {"problems": sources, "limit": limit, "names": list(names)}  # responses are stored under these names
    folder = asked.output or store.root() / "evaluations" / store.digest(question)
    claim(folder, question)
    cached = (folder / ROLLOUTS).exists()
    if not cached:
        _sample(asked, point, names, question, folder)
    written = responses(folder)
    sets = {name: written[written["problems"] == name] for name in names}
    if len(sets) > 1:
        sets[ALL] = written
    label = asked.label or label_of(asked)
    curves = curves_of(sets, asked.samples, label)
    store.write_table(folder / CURVES, pa.Table.from_pandas(curves, preserve_index=False))
    cut = {name: float((~rows["finished"]).mean()) for name, rows in sets.items()}
    show.evaluation(folder, label, curves, asked.samples, {n: len(r) for n, r in sets.items()}, cut, as_json=asked.json)
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


def label_of(asked: options.Evaluate) -> str:
    """The model's name, with the hook point and the readout where they are not the model's own."""
    name = Path(asked.model).resolve().name if Path(asked.model).is_dir() else asked.model
    name_of_readout = asked.readout if asked.lens is None else "tuned"
    readout = f", {name_of_readout}" if name_of_readout != "raw" else ""
    return name if asked.at == "final" else f"{name}@{asked.at}{readout}"


def claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but this evaluation. Raises InputError."""
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
    if found != store.digest(asked):
        job.check_day(folder, before, asked)
        raise InputError(f"{folder} holds the evaluation of another question; give --output a new folder.")


def responses(folder: Path) -> pd.DataFrame:
    """The responses of an evaluation. Raises InputError if they are damaged."""
    try:
        return store.read_part(folder / ROLLOUTS).to_pandas()
    except InputError as error:
        raise InputError(f"{folder / ROLLOUTS} is damaged; remove the folder, and evaluate again.") from error


def curves_of(sets: Mapping[str, pd.DataFrame], samples: int, label: str) -> pd.DataFrame:
    """Pass@k of each set of problems: label, problems, k, mean, low, high. No two sets have the same label.

    A set is the rows of its responses, in which those to one problem stand together.
    """
    found = []
    for name, rows in sets.items():
        right = pass_at_k.correct(rows["reward"]).to_numpy().reshape(-1, samples).sum(1).tolist()
        named = label if len(sets) == 1 else f"{label}, {name}"
        found.append(pass_at_k.curves(right, samples).assign(label=named, problems=name))
    return pd.concat(found, ignore_index=True)[["label", "problems", "k", "mean", "low", "high"]]


def _sample(
    asked: options.Evaluate,
    point: "HookPoint",
    names: Mapping[str, str | None],
    question: Mapping[str, Any],
    folder: Path,
) -> None:
    from internal_policy.tasks.generate import check_sampling

    check_sampling(asked.samples, asked.temperature, asked.top_p, asked.max_new_tokens, asked.batch_size, asked.seed)
    progress.quiet()
    config = loading.load_config(asked)
    sampling.check_point(config, point)
    maps = sampling.maps_of(asked, [point], question["identity"], config)
    tokenizer = loading.load_tokenizer(asked, asked.chat_template)
    sets = {name: sampling.read(asked, source, tokenizer, config)[0] for name, source in names.items()}
    for name, problems in sets.items():
        _check_answers(name, problems)
    model = loading.load_model(asked, config)
    readout = sampling.readout_of(asked, maps, model)
    parts = store.root() / "rollouts" / store.digest({**question, "output": folder.absolute()})
    tables = []
    for number, (name, problems) in enumerate(sets.items()):
        what = f"Sampling {name}"
        rollouts = sampling.all_of(asked, model, tokenizer, problems, point, readout, parts / str(number), what)
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


def _table(name: str, rollouts: "list[Rollout]") -> pa.Table:
    from internal_policy.tasks.rollouts import to_table

    return to_table(rollouts).add_column(0, "problems", [[name] * len(rollouts)])
