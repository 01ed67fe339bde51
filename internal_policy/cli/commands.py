"""What each command does: it opens what the user named, calls the library, and shows the result."""

import dataclasses
import functools
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy.cli import drawing, evaluating, fitting, opening, options, progress, sampling, show, training
from internal_policy.errors import InputError
from internal_policy.models import loading
from internal_policy.scans import job, store

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from internal_policy.lenses.tuned import Maps
    from internal_policy.scans.selection import Selection
    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout

PRESENTATION = {"output", "json", "dry_run", "remeasure"}
"""Options that change nothing of what is measured."""
SAMPLING = {f.name for f in dataclasses.fields(options.SamplingOptions)} - {"batch_size"} | {"problems"}
"""Options that mean nothing where the responses are given."""
PACKAGES = ("internal-policy", "torch", "transformers", "tokenizers")

Config = Callable[[], "PreTrainedConfig"]
"""Gives the model's configuration, which is read once, and only if it is needed."""


def scan(asked: options.Scan) -> None:
    """Answer from the cache, or measure what is missing; then show the entropies by layer."""
    if asked.problems is not None and asked.rollouts is not None:
        raise InputError("Both --problems and --rollouts are given; give one of them.")
    opening.check(asked)
    start = time.monotonic()
    config: Config = functools.cache(lambda: loading.load_config(asked))
    question = _question(asked, config)
    folder = asked.output or store.folder_of(asked.model, question)
    job.claim(folder, question)
    cached = (folder / store.RECORD).exists()
    if cached and asked.remeasure:
        cached = not (job.broken(folder) if asked.dry_run else job.discard_damaged(folder))
    elif cached and (broken := store.cut_short(folder)):
        raise InputError(f"{folder / broken[0]} is missing or cut short; measure it again with --remeasure.")
    if asked.dry_run:
        show.forecast(_forecast(asked, question["identity"], config()), folder, cached, as_json=asked.json)
        return
    if not cached:
        opening.check_there(asked)
        _measure(asked, question, folder, config())
    show.scan(folder, None, as_json=asked.json, extra={"cached": cached})
    progress.note(f"{'From the cache' if cached else 'Measured'} in {time.monotonic() - start:.1f} s.")


def _question(asked: options.Scan | options.Generate, config: Config) -> dict[str, Any]:
    """The options that decide the numbers, resolved, with what their paths hold: the key of the cache."""
    selected = _selected(asked, config) if isinstance(asked, options.Scan) else {}
    given = asked.rollouts if isinstance(asked, options.Scan) else None
    unused = PRESENTATION | (SAMPLING if given is not None else set())
    if given is None:
        problems, limit = sampling.source(asked.problems, asked.limit)
        asked = dataclasses.replace(asked, problems=problems, limit=limit)
    question = sampling.question(asked, [given or asked.problems, asked.chat_template, asked.lens], unused)
    return {**question, **selected}


def _selected(asked: options.Scan, config: Config) -> dict[str, Any]:
    """Layers, sites and measures as they were resolved, `all` for all of them, however they were typed."""
    if asked.layers == asked.sites == asked.measures == "all":
        return {}  # without transformers, which takes seconds to import
    every = _selection(dataclasses.replace(asked, layers="all", sites="all", measures="all"), config())
    selection = _selection(asked, config())
    pairs = {name: (getattr(selection, name), getattr(every, name)) for name in ("layers", "sites", "measures")}
    return {name: "all" if some == whole else list(some) for name, (some, whole) in pairs.items()}


def _selection(asked: options.Scan, config: "PreTrainedConfig") -> "Selection":
    from internal_policy.measure.metrics import MEASURES
    from internal_policy.measure.sites import SITES
    from internal_policy.models.families import place, sites_of
    from internal_policy.scans.selection import Selection, parse_layers

    text = config.get_text_config()
    if asked.top_k > text.vocab_size:
        raise InputError(f"--top-k is {asked.top_k}, but the model has only {text.vocab_size} tokens.")
    selection = Selection(
        parse_layers(asked.layers, text.num_hidden_layers),
        sites_of(config) if asked.sites == "all" else tuple(asked.sites.split(",")),
        (*(("raw", "norm") if asked.readout == "both" else (asked.readout,)), *(["tuned"] if asked.lens else [])),
        MEASURES if asked.measures == "all" else tuple(asked.measures.split(",")),
        asked.top_k,
    )
    for site in selection.sites:
        place(config, site)
    return dataclasses.replace(  # however they were typed, so that one question has one order of columns
        selection,
        sites=tuple(site for site in SITES if site in selection.sites),
        measures=tuple(name for name in MEASURES if name in selection.measures),
    )


def _maps(asked: options.Scan, selection: "Selection", identity: str, config: "PreTrainedConfig") -> "Maps | None":
    """The maps of --lens, checked against what is unembedded."""
    from internal_policy.models.families import sites_of
    from internal_policy.scans.selection import plan

    planned = plan(selection, sites_of(config))
    return sampling.maps_of(asked, planned.points[1 : planned.unembedded], identity, config)  # the first is final


def _given(
    asked: options.Scan | options.Generate, tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig"
) -> "tuple[list[Rollout], list[Problem], list[int]]":
    """The rollouts that came with --rollouts, or else the problems and how many tokens each prompt has. All checked."""
    from internal_policy.tasks.generate import check_sampling
    from internal_policy.tasks.rollouts import read_rollouts

    check_sampling(asked.samples, asked.temperature, asked.top_p, asked.max_new_tokens, asked.batch_size, asked.seed)
    if isinstance(asked, options.Scan) and asked.rollouts is not None:
        chat = loading.chat_of(asked.chat_template, asked.chat_template_kwargs)
        return read_rollouts(asked.rollouts, tokenizer, chat, limit=asked.limit), [], []
    return [], *sampling.read(asked, asked.problems, tokenizer, config)


def _measure(asked: options.Scan, question: Mapping[str, Any], folder: Path, config: "PreTrainedConfig") -> None:
    from internal_policy.lenses import tuned
    from internal_policy.scans.scan import check

    progress.quiet()
    selection = _selection(asked, config)
    maps = _maps(asked, selection, question["identity"], config)
    tokenizer = loading.load_tokenizer(asked, asked.chat_template)
    rollouts, problems, _ = _given(asked, tokenizer, config)
    reader = opening.opened(asked, tokenizer, config)
    lenses = {tuned.NAME: tuned.of(maps, reader.model)} if maps else {}
    if rollouts:
        check(reader, selection, rollouts, lenses)
    if rollouts:
        _check_disk(folder, store.disk_bytes(selection, sum(len(rollout.response_ids) for rollout in rollouts)))
    else:  # how long responses get is not known
        _check_disk(folder, store.disk_bytes(selection, asked.batch_size * asked.max_new_tokens))
    smaller = progress.saying_once("Out of memory: measuring {} rollouts at a time.")
    size = asked.batch_size
    total = len(rollouts) or len(problems) * asked.samples

    def batch(part: int) -> "Sequence[Rollout]":
        first = part * size
        given = rollouts[first : first + size]
        return given or sampling.sampled(reader.model, tokenizer, problems, asked, first, smaller)

    progress.note(f"Writing the scan to {folder}.")
    with progress.bar("Scanning", total) as advance:
        job.run(
            folder,
            reader,
            tokenizer,
            selection,
            job.Source(total, size, batch),
            question,
            _facts(asked, reader.model, tokenizer),
            advance=advance,
            smaller=smaller,
            lenses=lenses,
        )


def _facts(asked: options.Scan, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What the record says of the model and of the program."""
    text = model.config.get_text_config()
    packages = (*PACKAGES, *([] if asked.reader == "hooks" else [asked.reader]))
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": asked.model,
        "family": model.config.model_type,
        "n_layers": text.num_hidden_layers,
        "d_model": text.hidden_size,
        "d_vocab": text.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "chat_template": tokenizer.chat_template if asked.chat_template != "none" else None,
        "versions": {name: metadata.version(name) for name in packages},
        "command": sys.argv,
        **opening.facts(asked),
    }


def _forecast(asked: options.Scan, identity: str, config: "PreTrainedConfig") -> dict[str, Any]:
    """What a scan would measure and need, without loading the weights."""
    from internal_policy.measure.metrics import FROM_LOGITS
    from internal_policy.models.families import sites_of
    from internal_policy.scans.scan import STATE_BYTES
    from internal_policy.scans.selection import plan

    progress.quiet()
    selection = _selection(asked, config)
    _maps(asked, selection, identity, config)
    text = config.get_text_config()
    rollouts, problems, prompts = _given(asked, loading.load_tokenizer(asked, asked.chat_template), config)
    planned = plan(selection, sites_of(config))
    products = 1 + len(selection.readouts) * (planned.unembedded - 1) if FROM_LOGITS & {*selection.measures} else 0
    number = len(rollouts) or len(problems) * asked.samples
    tokens = sum(len(rollout.response_ids) for rollout in rollouts) or number * asked.max_new_tokens
    return {
        "model": asked.model,
        "family": config.model_type,
        "layers": list(selection.layers),
        "sites": list(selection.sites),
        "readouts": list(selection.readouts),
        "measures": list(selection.measures),
        "rollouts": number,
        "response_tokens_at_most": tokens,
        "prompt_tokens": sum(len(rollout.prompt_ids) for rollout in rollouts) or sum(prompts) * asked.samples,
        "hidden_states_per_token": len(planned.points),
        "unembeddings_per_token": products,
        "gflop_per_token": products * 2 * text.hidden_size * text.vocab_size / 1e9,
        "weights_bytes": loading.weight_bytes(config, asked.dtype),
        "hidden_states_bytes_at_most": STATE_BYTES,
        "disk_bytes_at_most": store.disk_bytes(selection, tokens),
    }


def generate(asked: options.Generate) -> None:
    """Sample responses and write them to one file; an interrupted run goes on where it stopped."""
    from internal_policy.models.hooks import HookPoint

    if asked.output.exists():
        raise InputError(f"{asked.output} exists; remove it, or give --output another name.")
    if asked.output.suffix not in (".parquet", ".jsonl") or not asked.output.parent.is_dir():
        raise InputError(f"--output is {asked.output}; give a .parquet or .jsonl file in a folder that exists.")
    point = HookPoint.parse(asked.at)
    sampling.check_lens(asked)
    progress.quiet()
    tokenizer = loading.load_tokenizer(asked, asked.chat_template)
    config = loading.load_config(asked)
    question = {
        **_question(asked, lambda: config),
        "output": asked.output.absolute(),
    }  # two files at a time do not share their parts
    sampling.check_point(config, point)
    maps = sampling.maps_of(asked, [point], question["identity"], config)
    folder = store.root() / "rollouts" / store.digest(question)
    _, problems, _ = _given(asked, tokenizer, config)
    model = loading.load_model(asked, config)
    readout = sampling.readout_of(asked, maps, model)
    rollouts = sampling.all_of(asked, model, tokenizer, problems, point, readout, folder)
    from internal_policy.tasks.rollouts import write_rollouts

    write_rollouts(asked.output, rollouts)
    shutil.rmtree(folder)
    show.rollouts(asked.output, asked.at, rollouts, as_json=asked.json)


def ls(asked: options.Ls) -> None:
    """List the scans in the cache."""
    show.scans(store.scans(unfinished=True), as_json=asked.json)


def show_scan(asked: options.Show) -> None:
    """Print one scan."""
    show.scan(store.find(asked.scan), asked.readout, as_json=asked.json)


def export(asked: options.Export) -> None:
    """Write a table of a scan as one file."""
    folder = store.find(asked.scan)
    store.record(folder)
    path = asked.output or Path(f"{asked.table}.{asked.format}")
    if path.suffix != f".{asked.format}":
        raise InputError(f"--output is {path}, but --format is {asked.format}; let the name end in .{asked.format}.")
    if path.exists() or not path.parent.is_dir():
        why = "exists; remove it" if path.exists() else "is in no folder; make it"
        raise InputError(f"{path} {why}, or give --output another name.")
    rows = store.export(folder, asked.table, asked.format, path)
    progress.note(f"Wrote {rows:,} rows to {path}.")


def families(asked: options.Families) -> bool:
    """List the families, each proved now; True where a row is wrong."""
    from internal_policy.models.families import FAMILIES
    from internal_policy.models.proofs import prove

    progress.quiet()
    found = {name: prove(name) for name in progress.tracked("Proving", FAMILIES)}
    rows = {name: {**dataclasses.asdict(row), "contradictions": found[name]} for name, row in FAMILIES.items()}
    show.families(rows, metadata.version("transformers"), as_json=asked.json)
    return any(text for proofs in found.values() for text in proofs.values())


def _check_disk(folder: Path, need: int) -> None:
    there = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise InputError(
            f"{there} has {free / 1e9:.1f} GB free, but {need / 1e9:.1f} GB may be needed; give --output another disk, "
            "or measure less (--layers, --sites, --top-k 0)."
        )


RUN: dict[type, Callable[[Any], bool | None]] = {
    options.Scan: scan,
    options.Generate: generate,
    options.Evaluate: evaluating.run,
    options.FitLens: fitting.run,
    options.Train: training.train,
    options.Ls: ls,
    options.Show: show_scan,
    options.Export: export,
    options.Plot: drawing.plot,
    options.Report: drawing.report,
    options.Dashboard: drawing.dashboard,
    options.Families: families,
}
"""A command is True where it did its work and something is wrong."""
