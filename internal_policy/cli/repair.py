"""Repair a scan: measure its damaged parts again, as the question that it recorded says."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy import files
from internal_policy.cli import lens_files, measuring, opening, outputs, progress, question, sampler, work
from internal_policy.cli.lens_files import LensFile
from internal_policy.cli.prepared import Prepared, answering
from internal_policy.cli.scan import Scan
from internal_policy.errors import InputError
from internal_policy.models import checkpoint

if TYPE_CHECKING:
    from internal_policy.scans.verify import Fault, Verdict
    from internal_policy.tasks.rollouts import Rollout

LISTS = ("layers", "sites", "measures")
"""Options that a question holds as lists."""


@dataclass(frozen=True)
class Repaired:
    """What a repair changed."""

    files: tuple[str, ...]
    """The files that were written again or removed."""
    differing: tuple[str, ...]
    """Those that aren't the same as before they were damaged, because another device or version wrote them."""


def repair(folder: Path, verdict: "Verdict") -> Repaired:
    """Repair a scan in which `verdict` found something wrong.

    Files of other scans that are named like parts stay, unless they are copies of parts. Raises InputError if the
    question can't be read, or if the model, a lens, the problems or the texts aren't there or have changed; nothing is
    changed then.
    """
    from internal_policy.scans import job, records, store

    outputs.check_writable(folder)
    job.check_files(folder)
    faults = {fault.file: fault for fault in verdict.faults}
    record = None if store.RECORD in faults else store.record(folder)
    tables = [name for name in faults if records.PART.fullmatch(name) and faults[name].problem != "extra"]
    reads = record is None or any(name.startswith("rollouts-") for name in tables)
    asked, before = _question(folder, record, reads=reads), _recorded(folder, record)
    if reads or tables or store.VOCABULARY in faults:
        inputs, options = _prepared(folder, asked, reads=reads)
        _restore(folder, record, faults, tables)
        if reads or tables:
            _measure(folder, inputs, options, reads=reads)
        if record is not None:
            if store.VOCABULARY in faults:
                progress.quiet()
                job.write_vocabulary(folder, inputs.tokenizer, record["d_vocab"])
            job.renew(folder, record)
    else:
        _restore(folder, record, faults, tables)
    removed = _without_copies(folder, verdict.faults)
    written = [name for name in faults if faults[name].problem != "extra"]
    return Repaired(
        (*written, *removed),
        tuple(name for name, known in before.items() if files.fingerprint_once(folder / name) != known),
    )


def _question(folder: Path, record: Mapping[str, Any] | None, *, reads: bool) -> dict[str, Any]:
    """The question of a scan, from its record or from asked.json, whole enough to read responses again if `reads`.

    Raises InputError if it can't be read, or if something in it is hidden.
    """
    from internal_policy.scans import records, store

    try:
        found = records.read(folder / store.ASKED) if record is None else record
        asked, digest = found["asked"], found["digest"]
        if not isinstance(asked, dict) or type(found["product"]) is not str:
            raise ValueError("it contains no settings")
    except (*records.DAMAGE, KeyError) as error:
        raise InputError(
            f"Can't repair {folder}, because the settings in it can't be read. Remove it, and scan again."
        ) from error
    is_older = record is not None and "footers" not in record  # its digest was computed in another way
    if reads and not is_older and store.digest(asked) != digest:
        raise InputError(
            f"Can't repair {folder}, because its settings hold a secret, which wasn't stored. Remove it and scan again."
        )
    return asked


def _recorded(folder: Path, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fingerprints of the files of a scan, as far as they are known."""
    from internal_policy.scans import records, verify

    if record is not None:
        return dict(record["files"])
    notes = [records.notes(path) for path in sorted(folder.glob(verify.NOTES)) if path.is_file()]
    return {name: known for about in notes if about for name, known in about["files"].items()}


def _options(asked: Mapping[str, Any]) -> Scan:
    """The options of the scan that a question was resolved from."""
    from internal_policy.scans import records

    names = {field.name for field in dataclasses.fields(Scan)}
    given = {name: value for name, value in asked.items() if name in names}
    for name in LISTS:
        given[name] = given[name] if isinstance(given[name], str) else ",".join(map(str, given[name]))
    lenses = tuple(f"{name}={file}" for name, file in records.lenses(asked).items())
    rollouts = question.all_of(given.get("rollouts"))
    return Scan(**{**given, "text": tuple(given.get("text", ())), "rollouts": rollouts, "lens": lenses})


def _prepared(folder: Path, asked: Mapping[str, Any], *, reads: bool) -> tuple[Prepared, Scan]:
    """What answers the question, after checking that its model and files are as they were.

    `reads` is whether responses are sampled or read again. Raises InputError.
    """
    options = _options(asked)
    try:
        found = checkpoint.identity(options.checkpoint)
        lenses = lens_files.resolve(options.lens)
    except InputError as error:
        raise InputError(f"Can't repair {folder}, because what it was measured with isn't there: {error}") from error
    if found != asked["identity"]:
        raise InputError(_changed(folder, f"the model {options.model}"))
    _check_files(folder, asked, options, lenses, reads=reads)
    if reads and options.engine == "server":
        raise InputError(f"Can't repair {folder}, because a server sampled its responses. Remove it, and scan again.")
    opening.Opener(options.reader, options.remote, options.engine).check()
    return answering(options, asked, lenses, options.text, options.rollouts), options


def _check_files(
    folder: Path, asked: Mapping[str, Any], options: Scan, lenses: Sequence[LensFile], *, reads: bool
) -> None:
    """Raise InputError if a file that the question names has changed."""
    content = asked["content"]
    for lens in lenses:
        if lens.content != content.get(lens.given):
            raise InputError(_changed(folder, f"the lens {lens.given}"))
    sources = options.rollouts or (None if options.text else options.problems,)
    read = [options.chat_template, *(sources if reads else ())]
    for path in filter(None, read):
        if (known := content.get(path)) is None:  # `none`, or not a file
            continue
        now = question.held(path)
        if now is None:
            raise InputError(
                f"Can't repair {folder}, because there is no file {path}, which it was measured with. Put it back, or "
                "repair where the scan was started."
            )
        if now != known:
            raise InputError(_changed(folder, path))


def _changed(folder: Path, what: str) -> str:
    return f"Can't repair {folder}, because {what} has changed since. Put back what was there, or scan again."


def _restore(
    folder: Path, record: Mapping[str, Any] | None, faults: "Mapping[str, Fault]", tables: Sequence[str]
) -> None:
    """Write the settings and the notes on parts again from the record, if it can be read.

    Measuring the damaged `tables` again needs notes on every part, which bundled scans don't have.
    """
    from internal_policy.scans import job, records, store

    if record is None:
        return
    if store.ASKED in faults:
        records.write(folder / store.ASKED, {name: record[name] for name in ("digest", "asked", "product")})
    for number in range(records.count(record)):
        path = records.about_part(folder, number)
        if path.name in faults or (tables and not path.exists()):
            by = {name: record[name] for name in job.BY}
            records.write(path, {"files": records.files_of(record, number), "by": [by]})


def _measure(folder: Path, inputs: Prepared, options: Scan, *, reads: bool) -> None:
    """Measure the parts that aren't whole, with the responses in the folder unless it `reads` them again."""
    from internal_policy.scans import store

    planned = work.planned(options, inputs, None if reads else _responses(folder))
    opener = opening.Opener(options.reader, options.remote, options.engine)
    with sampler.sampled(options, planned, folder, False) if reads else nullcontext(planned) as found:
        run = measuring.loaded(found, opener, folder, measuring.UNWATCHED, _command(options))
        if reads:  # while a record is there, responses that aren't the same as before are refused
            (folder / store.RECORD).unlink(missing_ok=True)
        with progress.bar("Measuring again", found.total) as advance:
            run(advance=advance)


def _responses(folder: Path) -> "list[Rollout]":
    """The responses of a scan, from its own files."""
    from internal_policy.scans import store
    from internal_policy.tasks.rollouts import from_table

    return [rollout for table in store.pieces(folder, "rollouts") for rollout in from_table(table)]


def _command(options: Scan) -> list[str]:
    """The words of the scan's command, for a record that has lost them."""
    words = ["internal-policy", "scan"]
    for field in dataclasses.fields(Scan):
        value, flag = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if value != field.default:
            given = value if isinstance(value, tuple) else (value,)
            words += [flag] if value is True else [word for each in given for word in (flag, str(each))]
    return words


def _without_copies(folder: Path, faults: "Sequence[Fault]") -> list[str]:
    """Remove files that are named like parts and are copies of parts, and notes on parts that don't exist."""
    extra = [fault for fault in faults if fault.problem == "extra"]
    removed = [fault.file for fault in extra if fault.copy_of or fault.file.endswith(".json")]
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    return removed
