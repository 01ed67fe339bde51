"""`internal-policy train`: train a model with BuPO or GRPO."""

import dataclasses
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import bundle, files
from internal_policy.cli import configuration, outputs, progress
from internal_policy.cli.console import document, out
from internal_policy.cli.question import held
from internal_policy.cli.train_options import Train
from internal_policy.errors import InputError, counted
from internal_policy.models import checkpoint, loading, offload, quantized, templates, tokenizers
from internal_policy.secrecy import redacted

if TYPE_CHECKING:
    import pandas as pd

    from internal_policy.models.hooks import HookPoint
    from internal_policy.tasks.problems import Problem
    from internal_policy.train.configuration import BuPOConfig
    from internal_policy.train.run import Setup

DAY = "date"
"""Key in run.json for the day on which the run started, present if the chat template writes the date."""
CHANGEABLE = {
    *("resume", "force", "json", "output", "report_to", "save_every", "config"),
    *("max_memory", "offload_folder"),
}
"""Options that may differ when a run is resumed. The contents of the configuration file are compared separately."""
PROMPT = (
    *("problem_column", "answer_column", "system_prompt", "prompt_suffix"),
    *("chat_template", "chat_template_kwargs"),
)
"""Options about problems and prompts that an evaluation shares with training."""
NO_BOX = (
    r"No prompt asks for an answer in \boxed{}, and only such answers are marked as correct. Unless the model boxes "
    r"answers anyway, add --prompt-suffix 'Put your final answer within \boxed{}.'"
)
COUNT = (1, 2**31 - 1, "from 1 to 2147483647")
ABOVE_0 = (math.nextafter(0, 1), sys.float_info.max, "above 0")
LIMITS = {
    **dict.fromkeys(("steps", "prompts", "samples", "updates", "micro_batch", "internal_steps"), COUNT),
    **dict.fromkeys(("save_every", "max_new_tokens"), COUNT),
    **dict.fromkeys(("learning_rate", "temperature"), ABOVE_0),
    "layer": (0, 2**31 - 1, "from 0, which is the first layer"),
    "seed": (0, 2**32 - 1, "from 0 to 4294967295"),
    "scan_every": (0, 2**31 - 1, "from 1 to 2147483647, or 0 to turn scans off"),
}
"""Option -> its smallest and largest value, and the range in words."""
FLAGS = {
    "samples": "num_generations",
    "micro_batch": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
    "temperature": "temperature",
    "max_new_tokens": "max_completion_length",
    "seed": "seed",
    "readout": "readout",
}
"""Option -> the field of BuPOConfig that it sets."""


def run(options: Train) -> None:
    """Start or resume a run, and print the result."""
    from internal_policy.train import fields, resume

    _check(options)
    progress.err.quiet = int(os.environ.get("RANK", 0)) > 0  # only one of several processes speaks
    given = fields.read(options.config)
    problems = _problems(options)
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
    guess = options.layer if "schedule" in given else options.layer or 0  # no size depends on which layer it is
    config = configured(options, given, folder, guess, day)
    progress.quiet()
    from internal_policy.train import card
    from internal_policy.train import run as training  # after what is quick to refuse

    tokenizer = tokenizers.load_tokenizer(options.checkpoint, options.chat_template)
    about = configuration.load(options.checkpoint)
    chat: Any = None if options.chat_template == "none" else config.chat_template_kwargs or {}
    training.check(about, tokenizer, problems, chat, config, _point(options))
    if not (bundle.model(options.model) or training.asks_for_boxes(tokenizer, problems, chat)):
        progress.note(NO_BOX)
    on_disk: Any = about.dtype  # loading replaces it by --dtype
    model = loading.load_model(options.checkpoint, about, **_placed(options).arguments)
    quantized.check_trainable(model)
    offload.check_trainable(model)
    named = {"name": folder.absolute().name, "model": options.model, "problems": options.problems or "bundled sums"}
    setup = training.Setup(folder, model, tokenizer, problems, chat, named, on_disk)
    if other:
        outputs.clear(folder, "run")
    with files.held(folder):  # nothing is written before everything is checked
        if not (folder / resume.RUN).exists():
            more = {"versions": card.versions()} | ({DAY: day} if day else {})
            files.write_json(folder / resume.RUN, question | more, once=True)
        layer = options.layer
        if layer is None and "schedule" not in given and (options.method == "bupo" or options.scan_every):
            layer = _suggested(options, setup, config)
            config = configured(options, given, folder, layer, day)
        _train(options, setup, config, layer, start)


def _check(options: Train) -> None:
    """Raise InputError for numbers out of range."""
    for name, (low, high, words) in LIMITS.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:  # NaN is in no range
            raise InputError(f"--{name.replace('_', '-')} is {value}. Use a number {words}.")
    if options.method == "grpo" and options.internal_steps is not None:
        raise InputError("--internal-steps only applies to --method bupo.")
    if options.force and options.resume:
        raise InputError("--resume continues the run in the folder, but --force removes it. Use one of them.")
    if options.force and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--force can't be used with several processes. Run `internal-policy rm FOLDER` first.")


def _problems(options: Train) -> "list[Problem]":
    from internal_policy.tasks.problems import read_problems

    source = options.problems or str(bundle.DATA / "problems" / "sums.jsonl")
    problems = read_problems(source, **options.reading)
    if not problems:
        raise InputError(f"{source} has no problems.")
    return problems


def _question(options: Train, given: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the run: its options, the contents of their files, and the model."""
    plain = {name: value for name, value in dataclasses.asdict(options).items() if name not in CHANGEABLE}
    content = {path: held(path) for path in (options.problems, options.chat_template) if path}
    question = {**plain, "file": dict(given), "content": content, "identity": checkpoint.identity(options.checkpoint)}
    return json.loads(json.dumps(redacted(question), default=str))


def _folder(options: Train, given: Mapping[str, Any], question: Mapping[str, Any]) -> Path:
    """The folder of the run: --output, or output_dir of the file, or one in the cache."""
    from internal_policy.scans import store

    if options.output or given.get("output_dir"):
        return options.output or Path(given["output_dir"]).expanduser()
    return store.root() / "runs" / f"{Path(options.model).name}-{options.method}-{store.digest(question)[:6]}"


def _day(options: Train, record: Path | None) -> str | None:
    """The day on which the run of a record started, if the chat template writes the date; today without a record."""
    if not tokenizers.inserts_date(options.checkpoint, options.chat_template):
        return None
    begun = json.loads(record.read_text()) if record and record.exists() else {}
    return begun.get(DAY) or templates.today()


def configured(
    options: Train, given: Mapping[str, Any], folder: Path, layer: int | None, day: str | None = None
) -> "BuPOConfig":
    """The configuration of the trainer. `given` has the fields of --config; BuPO trains `layer` first."""
    from internal_policy.train import defaults

    return defaults.configured(
        folder,
        given,
        _flags(options, given, day),
        defaults.BUNDLED if bundle.model(options.model) else defaults.PAPER,
        target=_target(options, given, layer),
        internal_steps=options.internal_steps,
        steps=options.steps,
        prompts=options.prompts,
        updates=options.updates,
        save_every=options.save_every,
        file=options.config,
    )


def _flags(options: Train, given: Mapping[str, Any], day: str | None) -> dict[str, Any]:
    """The fields of the configuration that options set."""
    flags = {field: value for name, field in FLAGS.items() if (value := getattr(options, name)) is not None}
    chat = given.get("chat_template_kwargs")
    if options.chat_template_kwargs != "{}":
        chat = options.template_arguments
    if day is not None:
        chat = {templates.DATE: day, **(chat or {})}
    if chat is not None:
        flags["chat_template_kwargs"] = chat
    if options.report_to is not None:
        flags["report_to"] = options.report_to.split(",")
    if options.method == "grpo":
        flags["schedule"] = []
    return flags


def _target(options: Train, given: Mapping[str, Any], layer: int | None) -> "HookPoint | None":
    """The hook point that BuPO trains first; None for GRPO, or if the file contains the schedule."""
    from internal_policy.models.hooks import HookPoint

    scheduled = "schedule" in given and options.layer is None and options.internal_steps is None
    if options.method == "grpo" or scheduled:
        return None
    if layer is None:
        raise InputError("--internal-steps needs a layer. Add --layer.")
    return HookPoint(layer, options.site)


def _point(options: Train) -> "HookPoint | None":
    """The hook point that --layer names."""
    from internal_policy.models.hooks import HookPoint

    return None if options.layer is None else HookPoint(options.layer, options.site)


def _placed(options: Train) -> Train:
    """The options with a device for this process, if there are several processes."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    if options.device == "auto" and rank and torch.cuda.is_available():
        return dataclasses.replace(options, device=f"cuda:{rank}")
    return options


def _suggested(options: Train, setup: "Setup", config: "BuPOConfig") -> int | None:
    """The target layer by a scan of a few responses. Raises InputError if BuPO needs one and there is none."""
    from internal_policy.look import targets
    from internal_policy.train import run as training

    stages = training.stages(setup, config, progress.bar)
    reason = f"{targets.in_words(stages)} (From a scan of {counted(stages['problems'], 'response')}.)"
    if stages["target"] is None and options.method == "bupo":
        raise InputError(f"{reason} Choose a layer with --layer.")
    if options.method == "bupo":
        progress.note(reason)
    return stages["target"]


def _train(options: Train, setup: "Setup", config: "BuPOConfig", layer: int | None, start: Path | None) -> None:
    from internal_policy.models.hooks import HookPoint
    from internal_policy.train import run as training
    from internal_policy.train.callbacks import ScanSchedule

    point = config.phases[0].point if config.phases else None if layer is None else HookPoint(layer, options.site)
    longest = config.max_completion_length or 0
    rollouts = training.watched(setup, longest, progress.bar) if options.scan_every else []
    readout: Any = config.readout
    scans = ScanSchedule(rollouts, point, options.scan_every, readout)
    total = config.max_steps // config.updates_per_step if config.max_steps > 0 else None
    begun = time.monotonic()
    with _progress(total) as report:
        metrics = training.train(setup, config, scans, start, report, progress.note, options.config)
    if metrics is not None:
        seconds = time.monotonic() - begun
        trained(setup.folder, metrics, seconds, evaluation(options, setup.folder), as_json=options.json)


@contextmanager
def _progress(total: int | None) -> Iterator[Any]:
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
    }
    if not row.get("skipped"):
        formats.pop("skipped")
    known = {name: form for name, form in formats.items() if not math.isnan(row.get(name, math.nan))}
    return f"{trained}: " + ", ".join(form.format(row[name]) for name, form in known.items())


def evaluation(options: Train, folder: Path) -> str:
    """The command that evaluates the model of a run, with prompts as in training, under the name of the run.

    The problems are those of training; for the bundled ones, others that were drawn alike.
    """
    problems = options.problems or str(bundle.DATA / "problems" / "sums-heldout.jsonl")
    words = ["--model", str(folder / "model"), "--label", folder.absolute().name, "--problems", problems]
    for name in PROMPT:
        value = getattr(options, name)
        words += [] if value in (None, "{}") else [f"--{name.replace('_', '-')}", value]
    return shlex.join(["internal-policy", "evaluate", *words])


def trained(folder: Path, metrics: "pd.DataFrame", seconds: float, evaluated_by: str, *, as_json: bool = False) -> None:
    """Print the reward over tenths of the run, and the command that evaluates the model."""
    tenth = max(1, len(metrics) // 10)
    rows = []
    for start in range(0, len(metrics), tenth):
        part = metrics.iloc[start : start + tenth]
        steps = [int(step) for step in part["step"]]
        means = part.reindex(columns=["reward", "entropy", "clip_fraction"]).mean().to_dict()
        means = {name: None if math.isnan(mean) else mean for name, mean in means.items()}
        rows.append({"steps": f"{steps[0]}-{steps[-1]}", "trained": ", ".join(dict.fromkeys(part["target"])), **means})
    if as_json:
        document({"run": str(folder), "model": str(folder / "model"), "seconds": seconds, "steps": rows})
        return
    table = Table(title="Means over steps", title_justify="left", box=box.SIMPLE_HEAD)
    measured = [name for name in ("reward", "entropy", "clip_fraction") if name in metrics]
    for name in ("steps", "trained", *measured):
        table.add_column(name.replace("_", " "), justify="left" if name == "trained" else "right")
    for row in rows:
        numbers = ["" if row[name] is None else f"{row[name]:.3f}" for name in measured]
        table.add_row(row["steps"], row["trained"], *numbers)
    out.print(table)
    out.print(f"{counted(len(metrics), 'step')} in {seconds:.0f} s. Model: {escape(str(folder / 'model'))}")
    out.print(f"To evaluate it:\n  {escape(evaluated_by)}")
