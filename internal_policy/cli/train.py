"""`internal-policy train`: train a model with BuPO or GRPO."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy import bundle, files
from internal_policy.cli import (
    configuration,
    exam,
    outputs,
    progress,
    train_configuration,
    train_engine,
    train_report,
)
from internal_policy.cli.question import held
from internal_policy.cli.train_options import Train
from internal_policy.errors import InputError, counted, require
from internal_policy.models import checkpoint, loading, naming, offload, quantized, templates, tokenizers
from internal_policy.scans import versions
from internal_policy.secrecy import redacted

if TYPE_CHECKING:
    from internal_policy.tasks.problems import Problem
    from internal_policy.train.configuration import BuPOConfig
    from internal_policy.train.run import Setup

DAY = "date"
"""Key in run.json for the day on which the run started, present if the chat template writes the date."""
CHANGEABLE = {
    *("resume", "force", "json", "output", "report_to", "save_every", "config"),
    *("max_memory", "offload_folder", "merge", "stop_below", "samples_every"),
}
"""Options that may differ when a run is resumed. The contents of the configuration file are compared separately."""
NO_BOX = (
    r"No prompt asks for an answer in \boxed{}, and only such answers are marked as correct. Unless the model boxes "
    r"answers anyway, add --prompt-suffix 'Put your final answer within \boxed{}.'"
)


def run(options: Train) -> None:
    """Start or resume a run, and print the result."""
    from internal_policy.train import fields, resume

    named = {name: bundle.recipe(getattr(options, name)) for name in ("config", "chat_template")}
    options = dataclasses.replace(options, **named)
    train_configuration.check(options)
    progress.err.quiet = int(os.environ.get("RANK", 0)) > 0  # only one of several processes speaks
    given = fields.read(options.config)
    options = train_configuration.resolved(options, given)
    problems, held_out = _problems(options), exam.sets_of(options)
    question = _question(options, given)
    folder = _folder(options, given, question)
    start, other = outputs.claimed(
        folder,
        "run",
        options.force,
        lambda: resume.claim(folder, question, options.resume, progress.note),
        outputs.inputs_of(options),
    )
    outputs.check_writable(folder)
    day = _day(options, None if other else folder / resume.RUN)
    scheduled = options.schedule is not None or "schedule" in given
    guess = options.layer if scheduled else options.layer or 0  # no size depends on which layer it is
    config = train_configuration.configured(options, given, folder, guess, day)
    progress.quiet()
    setup = _setup(options, config, folder, problems, held_out, scheduled=scheduled)
    if other:
        outputs.clear(folder, "run")
    from internal_policy.train import card  # after what is quick to refuse

    with resume.forgetting(folder), files.held(folder):  # nothing is written before everything is checked
        if not (folder / resume.RUN).exists():
            more = {"versions": versions.of(card.PACKAGES), train_report.ANSWERED: _answered(problems)}
            more |= {DAY: day} if day else {}
            files.write_json(folder / resume.RUN, question | more, once=True)
        layer = options.layer
        searches = train_configuration.internal(options) or options.scan_every
        if layer is None and not scheduled and searches:
            layer = _suggested(options, setup, config)
            config = train_configuration.configured(options, given, folder, layer, day)
        _train(options, setup, config, layer, start)


def _setup(
    options: Train,
    config: "BuPOConfig",
    folder: Path,
    problems: "Sequence[Problem]",
    held_out: "Mapping[str, list[Problem]]",
    *,
    scheduled: bool,
) -> "Setup":
    """What to train: everything is checked first, and then the model is loaded. Raises InputError."""
    from internal_policy.train import freezing, rewards
    from internal_policy.train import run as training  # after what is quick to refuse

    rewarding = rewards.functions(config.rewards, problems)
    tokenizer = tokenizers.load_tokenizer(options.checkpoint, options.chat_template)
    about = configuration.load(options.checkpoint)
    chat: Any = None if options.chat_template == "none" else config.chat_template_kwargs or {}
    exams = exam.exam_of(options, held_out, problems)
    if config.lora:
        require("peft", "peft")
    training.check(about, tokenizer, problems, chat, config, train_configuration.point(options), exams)
    unknown = train_configuration.internal(options) and options.layer is None and not scheduled
    freezing.check(about, config.frozen, None if unknown else config.phases, config.layer_lr_scale)
    train_engine.check(options, config, about)
    boxed = "box" in config.rewards and not bundle.model(options.model)
    if boxed and not training.asks_for_boxes(tokenizer, problems, chat):
        progress.note(NO_BOX)
    if options.merge and not (config.lora or checkpoint.folder.is_adapter(options.checkpoint.folder)):
        raise InputError("--merge needs an adapter. Add --lora, or leave out --merge.")

    on_disk: Any = about.dtype  # loading replaces it by --dtype
    model = loading.load_model(options.checkpoint, about, **_placed(options).arguments)
    quantized.check_trainable(model, adapted=config.lora, merge=options.merge)
    offload.check_trainable(model)
    trained = (folder, model, tokenizer, problems, chat, rewarding, _named(options, folder), on_disk)
    return training.Setup(*trained, options.merge, exams, options.samples_every)


def _named(options: Train, folder: Path) -> dict[str, str]:
    """What the card of the trained model calls the run, the model it starts from and its problems."""
    problems = ", ".join(options.problems) or "bundled sums"
    return {"name": folder.absolute().name, "model": options.model, "problems": problems}


def _problems(options: Train) -> "list[Problem]":
    from internal_policy.cli.evaluate import named
    from internal_policy.tasks.problems import mixed, read_problems

    sets = named(options.problems or (str(bundle.DATA / "problems" / "sums.jsonl"),))
    return mixed({name: read_problems(source, **options.reading) for name, source in sets.items()})


def _answered(problems: "Sequence[Problem]") -> bool:
    """Whether a problem has an answer, as an evaluation needs."""
    return any(problem.answer is not None for problem in problems)


def _question(options: Train, given: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the run: its options, the contents of their files, its rewards, and the model."""
    from internal_policy.train import rewards

    plain = {name: value for name, value in dataclasses.asdict(options).items() if name not in CHANGEABLE}
    named = options.reward or given.get("rewards", ())
    sources = (*options.problems, options.chat_template, *options.eval_problems)
    content = {path: held(path) for path in sources if path}
    content |= {place: held(str(path)) for place, path in rewards.sources(named).items()}
    plain["reward"] = [[one.place, one.function, one.weight] for one in map(rewards.parse, named)]
    plain |= {name: plain[name] or None for name in exam.OPTIONS if name in plain}  # as in runs of earlier versions
    plain["target"] = None if options.target == "stages" else options.target  # likewise
    question = {**plain, "file": dict(given), "content": content, "identity": checkpoint.identity(options.checkpoint)}
    return json.loads(json.dumps(redacted(question), default=str))


def _folder(options: Train, given: Mapping[str, Any], question: Mapping[str, Any]) -> Path:
    """The folder of the run: --output, or output_dir of the file, or one in the cache."""
    from internal_policy.scans import store

    if options.output or given.get("output_dir"):
        return options.output or Path(given["output_dir"]).expanduser()
    return (
        store.root()
        / "runs"
        / f"{Path(naming.title(options.model)).name}-{options.method}-{store.digest(question)[:6]}"
    )


def _day(options: Train, record: Path | None) -> str | None:
    """The day on which the run of a record started, if the chat template writes the date; today without a record."""
    if not tokenizers.inserts_date(options.checkpoint, options.chat_template):
        return None
    begun = json.loads(record.read_text()) if record and record.exists() else {}
    return begun.get(DAY) or templates.today()


def _placed(options: Train) -> Train:
    """The options with a device for this process, if there are several processes."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    if options.device == "auto" and rank and torch.cuda.is_available():
        return dataclasses.replace(options, device=f"cuda:{rank}")
    return options


def _suggested(options: Train, setup: "Setup", config: "BuPOConfig") -> int | None:
    """The target layer by a scan of a few responses. Raises InputError if BuPO needs one and there is none."""
    from internal_policy.look import findings, targets
    from internal_policy.train import run as training

    if options.target == "align":
        from internal_policy.train import target

        stages = target.aligned(setup, config, options.site, progress.bar)
        reason = stages["reason"]
    else:
        stages = training.stages(setup, config, progress.bar)
        scanned, none = stages["problems"], stages["target"] is None
        words = findings.too_few(scanned, None) if none and scanned < findings.ENOUGH else targets.in_words(stages)
        reason = f"{words} (From a scan of {counted(scanned, 'response')}.)"
    needed = train_configuration.internal(options)
    if stages["target"] is None and needed:
        raise InputError(f"{reason} Choose a layer with --layer.")
    if needed:
        progress.note(reason)
    return stages["target"]


def _train(options: Train, setup: "Setup", config: "BuPOConfig", layer: int | None, start: Path | None) -> None:
    from internal_policy.look import run_summary
    from internal_policy.look.runs import RunTables
    from internal_policy.models.hooks import HookPoint
    from internal_policy.train import run as training
    from internal_policy.train.callbacks import ScanSchedule
    from internal_policy.train.schedule import first_internal

    first = first_internal(config.phases)
    point = first.point if first else None if layer is None else HookPoint(layer, options.site)
    longest = config.max_completion_length or 0
    rollouts = training.watched(setup, longest, progress.bar) if options.scan_every else []
    readout: Any = (first and first.readout) or config.readout
    scans = ScanSchedule(rollouts, point, options.scan_every, readout)
    total = config.max_steps // config.updates_per_step if config.max_steps > 0 else None
    begun = time.monotonic()
    with train_report.reporting(total) as report:
        metrics = training.train(setup, config, scans, start, report, progress.note, options.config)
    if metrics is not None:
        seconds = time.monotonic() - begun
        asked = dataclasses.asdict(options)
        evaluated_by = train_report.evaluation(asked, setup.folder) if _answered(setup.problems) else None
        exams = run_summary.exams(RunTables(setup.folder, setup.folder.name))
        train_report.trained(setup.folder, metrics, seconds, evaluated_by, exams, as_json=options.json)
