"""Scan a series of checkpoints over the same responses into one study, for `internal-policy scan --checkpoints`."""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from internal_policy import files
from internal_policy.cli import engine, generate, inventory, opening, outputs, progress
from internal_policy.cli.common import PromptOptions, ResponseOptions, SamplerOptions, SamplingOptions
from internal_policy.cli.pace import lasting
from internal_policy.cli.prepared import Prepared
from internal_policy.errors import InputError, counted, is_count, joined
from internal_policy.models import checkpoint, series
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.series import Member, Series

if TYPE_CHECKING:
    from internal_policy.cli.scan import Scan

Prepare = Callable[["Scan"], Prepared]
"""Resolves the options of a scan."""
Measure = Callable[["Scan", Prepared, opening.Opener], tuple[Path, bool]]
"""Scans, and returns the folder and whether it was in the cache."""
ONLY = ("steps", "every_step", "sampled_from")
"""Options that only apply to a series of checkpoints."""
SAMPLING = {field.name for field in dataclasses.fields(SamplingOptions)} - {"batch_size"} | {
    "problems",
    "problem_column",
    "answer_column",
    "system_prompt",
    "prompt_suffix",
    "engine",
    "tensor_parallel",
    "url",
    "served_model",
}
"""Options that only apply to sampling, which is over when the checkpoints are scanned."""


def check(options: "Scan") -> bool:
    """Whether the options name a series of checkpoints. Raises InputError for options that would have no effect."""
    changed = [name for name in ONLY if getattr(options, name) != _default(options, name)]
    if options.checkpoints is None:
        if changed:
            raise InputError(f"{_flag(changed[0])} only applies to --checkpoints. Leave it out.")
        return False
    for name in ("model", "revision", "gguf_file", "remote"):
        if getattr(options, name) != _default(options, name):
            remedy = " To choose the model that answers, use --sampled-from." if name == "model" else ""
            raise InputError(f"{_flag(name)} has no effect with --checkpoints. Leave it out.{remedy}")
    if not options.worker.is_alone:
        raise InputError(
            "--checkpoints takes a single process. To share the work, give each process other --steps and its own "
            "--output, then run the command once more over all steps: the scans come from the cache."
        )
    if options.sampled_from is not None and (options.rollouts or options.text):
        raise InputError("--sampled-from has no effect with --rollouts or --text. Leave it out.")
    return True


def run(options: "Scan", prepare: Prepare, measure: Measure) -> None:
    """Scan the checkpoints that the study lacks, one after another, then print it."""
    from internal_policy.cli import study as printing
    from internal_policy.scans import claims, study

    found = series.find(str(options.checkpoints))
    for said in found.skipped:
        progress.note(said)
    members = series.chosen(found.members, options.steps, options.every_step)
    if options.dry_run:
        printing.planned(found, members, as_json=options.json)
        return
    first = _of(options, members[0], [])
    inputs = prepare(first)
    question = _question(options, inputs, found)
    folder = options.output or study.folder_of(found.name, question)
    _, other = outputs.claimed(
        folder,
        "study",
        options.force,
        lambda: claims.claim(folder, study.RECORD, "study", question),
        [found.place, *outputs.inputs_of(options)],
    )
    outputs.check_writable(folder)
    if writers := files.writers(folder):
        raise InputError(f"{folder} is being written by {joined(writers)}. Wait for that, or choose another --output.")
    if other:
        outputs.clear(folder, "study")
    sampler = None if options.rollouts or options.text else _sampler(options, found)
    with files.held(folder):
        study.begin(folder, question, found.place, _responses(options, sampler))
        if sampler and not (folder / study.ROLLOUTS).exists():
            _sample(options, sampler, folder / study.ROLLOUTS)
        _measure_all(options, found, members, folder, (prepare, measure))
    printing.printed(inventory.at(folder, "study"), None, as_json=options.json)


def _measure_all(
    options: "Scan", found: Series, members: Sequence[Member], folder: Path, do: tuple[Prepare, Measure]
) -> None:
    """Scan each checkpoint that the study in `folder` lacks, and add it."""
    from internal_policy.scans import store, study

    prepare, measure = do
    done = {*study.steps(folder)}
    left = [one for one in members if one.step not in done]
    if done and left:
        progress.note(f"{counted(len(members) - len(left), 'checkpoint')} of {len(members)} are in {folder} already.")
    opener, start = opening.Opener(options.reader, options.remote, options.engine), time.monotonic()
    for number, one in enumerate(left, 1):
        spent = time.monotonic() - start
        rest = f", {lasting(spent / (number - 1) * (len(left) - number + 1))} left" if number > 1 else ""
        progress.note(f"Checkpoint {number} of {len(left)}: {one.name}{rest}.")
        each = _of(options, one, _sampled(options, folder))
        scan, cached = measure(each, prepare(each), opener)
        if cached:
            progress.note("Read from the cache.")
        facts = {**store.record(scan), "model": found.name}
        study.add(folder, one.step, one.name, facts, pa.concat_tables(store.pieces(scan, "layers")), scan.name)
        gc.collect()  # frees the model, whose modules refer to each other, before the next one is loaded


def _of(options: "Scan", one: Member, rollouts: Sequence[str]) -> "Scan":
    """The options that scan one checkpoint, over the responses that were sampled if there are any."""
    names = {*ONLY, "checkpoints", "output", "force", *(SAMPLING if rollouts else ()), *(["limit"] if rollouts else [])}
    changes = {name: _default(options, name) for name in names}
    if rollouts and not engine.samples(options):
        changes["engine"] = options.engine
    changes |= {"rollouts": tuple(rollouts)} if rollouts else {}
    return dataclasses.replace(options, **changes, model=one.place, revision=one.revision)


def _question(options: "Scan", inputs: Prepared, found: Series) -> dict[str, Any]:
    """What decides the numbers of a study: the series, its responses and what is measured, but not which steps."""
    apart = ("identity", "model", "revision")
    kept = {name: value for name, value in inputs.question.items() if name not in apart}
    if options.sampled_from is not None:
        sampler = _sampler(options, found)
        kept["sampled_from"] = checkpoint.identity(
            Checkpoint(sampler.place, sampler.revision, options.trust_remote_code)
        )
    return {**kept, "checkpoints": found.place}


def _responses(options: "Scan", sampler: Member | None) -> str:
    """Where the responses come from, in words."""
    if sampler is not None:
        return f"sampled from {sampler.name}"
    return counted(len(options.text), "text") if options.text else joined(options.rollouts)


def _sample(options: "Scan", sampler: Member, path: Path) -> None:
    """Sample the responses that all checkpoints are read over, and write them."""
    progress.note(f"Sampling responses from {sampler.name}, once for all checkpoints.")
    kinds = (PromptOptions, ResponseOptions, SamplerOptions)
    taken = {field.name: getattr(options, field.name) for kind in kinds for field in dataclasses.fields(kind)}
    taken |= {"model": sampler.place, "revision": sampler.revision}
    taken |= {} if engine.samples(options) else {"engine": "local"}
    generate.written(generate.Generate(**taken, output=path, force=True))


def _sampler(options: "Scan", found: Series) -> Member:
    """The model that answers. Raises InputError for the step of no checkpoint."""
    named = options.sampled_from
    if named is None:
        return found.members[0]
    if not is_count(named):
        return Member(0, named, named)
    one = next((each for each in found.members if each.step == int(named)), None)
    if one is None:
        raise InputError(f"--sampled-from is {named}, but no checkpoint has that step. Choose another.")
    return one


def _sampled(options: "Scan", folder: Path) -> list[str]:
    """The file of responses that were sampled for a study; none if they are given."""
    from internal_policy.scans import study

    return [] if options.rollouts or options.text else [str(folder / study.ROLLOUTS)]


def _default(options: "Scan", name: str) -> Any:
    return next(field.default for field in dataclasses.fields(options) if field.name == name)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
