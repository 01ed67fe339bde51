"""`internal-policy train`: train a model with BuPO or GRPO."""

import dataclasses
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import bundle, files
from internal_policy.cli import progress, sampling
from internal_policy.cli.common import File, Fraction, ModelOptions, Number, Output, PromptOptions, Readout, Text
from internal_policy.cli.console import document, out
from internal_policy.errors import InputError
from internal_policy.models import loading, templates
from internal_policy.scans import records
from internal_policy.secrecy import redacted
from internal_policy.train import checkpoints, defaults

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.prompts import Chat
    from internal_policy.tasks.rollouts import Rollout
    from internal_policy.train.bupo import BuPOTrainer
    from internal_policy.train.configuration import BuPOConfig

RUN, MODEL, ROLLOUTS = "run.json", "model", "rollouts.parquet"
"""In the folder of a run: what was asked, the trained model, the responses whose layers are scanned."""
DAY = "date"
"""Key in run.json of the day on which the run started, if its chat template writes the date."""
SCANNED, WATCHED = 32, 8
"""Problems whose responses are scanned: to suggest a layer, and again and again for the dynamics."""
CHANGEABLE = {"resume", "json", "output", "report_to", "save_every", "config"}
"""Options that may be others when a run is resumed; what stands in the configuration file is compared by itself."""


@dataclass(frozen=True, kw_only=True)
class Train(PromptOptions, ModelOptions):
    """Train a model with BuPO: on one internal policy first, then on the whole; or with plain GRPO.

    With no options the bundled demo-qwen3 model is trained on bundled problems, sums of three numbers. The run's folder
    gets metrics.parquet (a row a step), dynamics.parquet (what happens to every layer), checkpoints and, at the end,
    the model. Ctrl-C writes a checkpoint and prints the command that goes on.

    For example:
    $ internal-policy train
    $ internal-policy train --method grpo --steps 40 --output grpo
    $ internal-policy train --layer 3 --internal-steps 20 --report-to tensorboard
    $ accelerate launch --num-processes 2 -m internal_policy train --model ./my-qwen --problems problems.jsonl
    data/recipes/ has the paper's runs on 8 GPUs, each with its command.
    """

    problems: File = None
    """File .jsonl, .json, .csv or .parquet, or a data set of the hub, NAME[:CONFIG]@SPLIT; by default bundled ones."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "float32"
    """What the weights are loaded as, and trained in; bf16 (a key of --config) computes in bfloat16 beside that."""
    method: Literal["bupo", "grpo"] = "bupo"
    """grpo trains the whole policy from the start."""
    layer: Number = None
    """Layer that BuPO trains first, from 0; by default the last whose FFN raises entropy significantly in a scan of a
    few responses (its 95 % interval, widened for the number of layers, is above 0). With grpo: the layer that later
    ones are compared with in dynamics.parquet."""
    site: Literal["resid_post", "attn_out", "mlp_out"] = "resid_post"
    """What of that layer: its output, or that of its attention or FFN."""
    readout: Readout = None
    """How its hidden states are unembedded: raw (the paper, and the default) or norm (through the final norm)."""
    internal_steps: Number = None
    """Steps on the internal policy; by default a sixth of all."""
    steps: Number = None
    """Steps in all; a step is a batch of sampled responses, whatever the number of updates. By default 120."""
    prompts: Number = None
    """Prompts of a step; by default 16."""
    samples: Number = None
    """Responses to each prompt; by default 8."""
    updates: Number = None
    """Optimizer updates of a step; by default 1."""
    micro_batch: Number = None
    """Responses that one process computes at a time, for the memory; by default 16."""
    learning_rate: Fraction = None
    """Of AdamW; by default 1e-4 for a bundled model, 1e-6 (the paper's) for others."""
    temperature: Fraction = None
    """Of sampling; by default 1."""
    max_new_tokens: Number = None
    """Length limit of a response; by default 64 for a bundled model, 1024 for others."""
    seed: Number = None
    """Of sampling and of the order of problems; by default 0."""
    save_every: Number = None
    """Steps between two checkpoints, of which the last two are kept; by default 20."""
    scan_every: int = 5
    """Steps between two scans of the layers for dynamics.parquet; 0 for none."""
    report_to: Text = None
    """Where else to log, as in TRL: tensorboard, wandb, trackio, ...; by default nowhere."""
    config: File = None
    """YAML file whose keys are any fields of TRL's GRPOConfig and of BuPOConfig; options given here win over it."""
    output: Output = None
    """Folder of the run; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE), where the dashboard
    finds it."""
    resume: bool = False
    """Go on from the last checkpoint in the folder."""
    json: bool = False
    """Print the result as JSON."""


def run(asked: Train) -> None:
    """Train, or go on; then say what came of it."""
    from internal_policy.scans import store

    _check(asked)
    progress.err.quiet = int(os.environ.get("RANK", 0)) > 0  # of several processes one speaks
    given = defaults.read(asked.config)
    problems = _problems(asked)
    question = _question(asked, given)
    folder = asked.output or _named(given) or store.root() / "runs" / _name(asked, question)
    start = _claim(folder, question, asked.resume)
    guess = asked.layer if "schedule" in given else asked.layer or 0  # which layer it is changes no size
    day = _day(asked, folder)
    config = _on(day, defaults.configured(asked, given, folder, guess))
    progress.quiet()
    tokenizer = loading.load_tokenizer(asked.checkpoint, asked.chat_template)
    model = loading.load_model(asked.checkpoint, **_placed(asked).arguments)
    _check_problems(asked, problems, tokenizer, config, model)
    if not (folder / RUN).exists():  # nothing is written before everything is checked
        files.write_json(folder / RUN, question | ({DAY: day} if day else {}), once=True)
    layer = _layer(asked, given, config, model, tokenizer, problems, folder)
    config = _on(day, defaults.configured(asked, given, folder, layer))
    _run(asked, config, model, tokenizer, problems, folder, start, layer)


def _check(asked: Train) -> None:
    for name in (
        "steps", "prompts", "samples", "updates", "micro_batch", "internal_steps", "save_every", "max_new_tokens",
    ):  # fmt: skip
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be 1 or more.")
        if value is not None and value >= 2**31:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be {2**31 - 1} or less.")
    if asked.seed is not None and not 0 <= asked.seed < 2**32:
        raise InputError(f"--seed is {asked.seed}; it must be from 0 to {2**32 - 1}.")
    if asked.scan_every < 0:
        raise InputError(f"--scan-every is {asked.scan_every}; it must be 0 (never) or more.")
    if asked.method == "grpo" and asked.internal_steps is not None:
        raise InputError("--internal-steps is of bupo; grpo trains the whole policy from the start.")
    for name in ("learning_rate", "temperature"):
        value = getattr(asked, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be above 0.")


def _problems(asked: Train) -> "list[Problem]":
    from internal_policy.tasks.problems import read_problems

    source = asked.problems or str(bundle.DATA / "problems" / "sums.jsonl")
    problems = read_problems(
        source, problem_column=asked.problem_column, answer_column=asked.answer_column, limit=asked.limit
    )
    if not problems:
        raise InputError(f"{source} has no problems.")
    return problems


def _question(asked: Train, given: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the run; what its files hold, not where they lie."""
    plain = {name: value for name, value in dataclasses.asdict(asked).items() if name not in CHANGEABLE}
    content = {path: sampling.held(path) for path in (asked.problems, asked.chat_template) if path}
    found = {**plain, "file": dict(given), "content": content, "identity": loading.identity(asked.checkpoint)}
    return json.loads(json.dumps(redacted(found), default=str))


def _named(given: Mapping[str, Any]) -> Path | None:
    """The output_dir of the configuration file."""
    return Path(given["output_dir"]).expanduser() if given.get("output_dir") else None


def _name(asked: Train, question: Mapping[str, Any]) -> str:
    """Of the run's folder: model, method and a digest of the rest."""
    from internal_policy.scans import store

    return f"{Path(asked.model).name}-{asked.method}-{store.digest(question)[:6]}"


def _claim(folder: Path, question: Mapping[str, Any], resume: bool) -> str | None:
    """The checkpoint to go on from, None for the start. Raises InputError for a folder that holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --output a new folder.")
    there = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if there and not (folder / RUN).is_file():
        raise InputError(f"{folder} is not empty and holds no training run; give --output a new folder.")
    if there:
        before = _known(folder / RUN, content=dict)
        if (other := _difference(before, question)) is not None:
            raise InputError(f"{folder} holds a run with another {other}; give --output a new folder.")
        if checkpoints.is_whole(folder / MODEL):
            raise InputError(
                f"{folder} holds a finished run; its model is {folder / MODEL}. Give --output a new folder."
            )
    written = checkpoints.found(folder) if there else {}
    if written and not resume:
        raise InputError(f"{folder} holds a run with a checkpoint (update {max(written)}); continue it with --resume.")
    if resume and not there:
        raise InputError(f"There is no run in {folder} to go on with; leave out --resume, or name its --output.")
    start = next((path for path in written.values() if checkpoints.is_whole(path)), None)
    if written and start is None and not all((path / checkpoints.MANIFEST).exists() for path in written.values()):
        raise InputError(
            f"{folder} has no complete checkpoint: an older version wrote them, without {checkpoints.MANIFEST}. "
            "Give --output a new folder, or remove the checkpoints to start over."
        )
    if (folder / MODEL).is_dir():
        progress.note(f"{folder / MODEL} is incomplete and will be written again.")
    if written and start != (newest := written[max(written)]):
        progress.note(f"{newest.name} is incomplete. Training continues from {start.name if start else 'the start'}.")
    return str(start) if start else None


def _known(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """The contents of a JSON file of a run. Raises InputError if it is damaged or a value has the wrong type."""
    try:
        found = records.read(path)
        if wrong := [name for name, kind in kinds.items() if not isinstance(found.get(name, ...), kind)]:
            raise ValueError(f"it has no {wrong[0]}")
    except records.DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}); give --output a new folder.") from error
    return found


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first option that changed, however it was typed."""
    from internal_policy.scans import store

    for name in now:
        if name in ("model", "revision"):  # compared by `identity`
            continue
        contents = (store.digest({name: of.get(name), "content": of["content"]}) for of in (before, now))
        if len({*contents}) > 1:
            return {"file": "configuration file", "identity": "--model"}.get(name, f"--{name.replace('_', '-')}")
    return None


def _day(asked: Train, folder: Path) -> str | None:
    """The date that the chat template writes, which is the day on which the run started; None if it writes none."""
    if not loading.inserts_date(asked.checkpoint, asked.chat_template):
        return None
    begun = json.loads((folder / RUN).read_text()) if (folder / RUN).exists() else {}
    return begun.get(DAY) or templates.today()


def _on(day: str | None, config: "BuPOConfig") -> "BuPOConfig":
    """The configuration with that date as an argument of the chat template."""
    if day is not None:
        config.chat_template_kwargs = {templates.DATE: day, **cast("dict[str, Any]", config.chat_template_kwargs or {})}
    return config


def _chat(asked: Train, config: "BuPOConfig") -> "Chat":
    """Arguments for the chat template, None for no template."""
    return None if asked.chat_template == "none" else cast("dict[str, Any]", config.chat_template_kwargs or {})


def _placed(asked: Train) -> Train:
    """Each of several processes loads onto its own device."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    if asked.device == "auto" and rank and torch.cuda.is_available():
        return dataclasses.replace(asked, device=f"cuda:{rank}")
    return asked


def _layer(
    asked: Train,
    given: Mapping[str, Any],
    config: "BuPOConfig",
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "list[Problem]",
    folder: Path,
) -> int | None:
    """The layer that is trained first, or watched. Raises InputError if none was given and none stands out."""
    from internal_policy.look import targets

    unused = asked.method == "grpo" and not asked.scan_every
    if asked.layer is not None or "schedule" in given or unused:
        return asked.layer
    known = folder / "stages.json"
    if not known.exists():  # it is decided once a run
        rollouts = _responses(asked, config, model, tokenizer, problems[:SCANNED])
        found = suggested(model, tokenizer, rollouts, config.readout)
        files.write_json(known, {**found, "problems": len(rollouts)}, once=True)
    stages = _known(known, target=(int, type(None)), problems=int)
    said = f"{targets.in_words(stages)} (From a scan of {stages['problems']} responses.)"
    if stages["target"] is None and asked.method == "bupo":
        raise InputError(f"{said} Choose a layer with --layer.")
    if asked.method == "bupo":
        progress.note(said)
    return stages["target"]


def suggested(
    model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", rollouts: "list[Rollout]", readout: str = "raw"
) -> dict[str, Any]:
    """BuPO's target layer and runner-up by a scan of `rollouts`: `targets.suggestion`."""
    from internal_policy.look import statistics, targets
    from internal_policy.scans.scan import scan

    readouts: Any = (readout,)
    scanned = scan(
        model, tokenizer, rollouts, sites=("mlp_in", "mlp_out"), readouts=readouts, measures=("entropy",), top_k=0
    )
    return targets.suggestion(statistics.changes(scanned.layers))


def _responses(
    asked: Train,
    config: "BuPOConfig",
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "list[Problem]",
) -> "list[Rollout]":
    from internal_policy.tasks.generate import generate

    chat, longest = _chat(asked, config), config.max_completion_length or 0
    with progress.bar("Sampling", len(problems)) as advance:
        found = []
        for batch in generate(model, tokenizer, problems, max_new_tokens=longest, chat=chat):
            found += batch
            advance(len(batch), sum(len(rollout.response_ids) for rollout in batch))
    return found


def _check_problems(
    asked: Train,
    problems: "list[Problem]",
    tokenizer: "PreTrainedTokenizerBase",
    config: "BuPOConfig",
    model: "nn.Module",
) -> None:
    """Refuse before any work what training would stumble over. Raises InputError."""
    from internal_policy.models.families import inside
    from internal_policy.models.hooks import locate
    from internal_policy.models.passes import positions
    from internal_policy.tasks.generate import check_prompts
    from internal_policy.tasks.prompts import encode_problem
    from internal_policy.train.dataset import dataset_of

    for phase in config.phases:
        locate(model, phase.point)
    chat = _chat(asked, config)
    dataset_of(problems, chat)
    prompts = {number: encode_problem(tokenizer, problem, chat) for number, problem in enumerate(problems)}
    text = inside(model).config.get_text_config()
    longest = min(positions(text), config.vllm_max_model_length or sys.maxsize)
    check_prompts(prompts, config.max_completion_length or 0, longest, text.vocab_size)
    group = config.num_generations or 1
    needed = (config.generation_batch_size or group) // group
    if len(problems) < needed:
        raise InputError(
            f"There are {len(problems)} problems, but a step takes {needed}; lower --prompts, or give more."
        )


def _run(
    asked: Train,
    config: "BuPOConfig",
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "list[Problem]",
    folder: Path,
    start: str | None,
    layer: int | None,
) -> None:
    from transformers import PrinterCallback

    from internal_policy.models.hooks import HookPoint
    from internal_policy.train.bupo import BuPOTrainer
    from internal_policy.train.callbacks import Interrupt, RunLogger, ScanSchedule
    from internal_policy.train.dataset import dataset_of, right

    chat = _chat(asked, config)
    point = config.phases[0].point if config.phases else None if layer is None else HookPoint(layer, asked.site)
    rollouts = _watched(asked, config, model, tokenizer, problems, folder)
    scans = ScanSchedule(rollouts, point, asked.scan_every, cast(Any, config.readout))
    interrupt, begun = Interrupt(), time.monotonic()
    total = config.max_steps // config.updates_per_step if config.max_steps > 0 else None
    with _progress(total) as tell, interrupt.listening(progress.note), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL's use of names that transformers has renamed
        logger = RunLogger(folder, config.updates_per_step, config.phases, scans, tell)
        with _explained(asked.config, lambda: len(logger.metrics) > 0):
            trainer = BuPOTrainer(
                model,
                right,
                config,
                train_dataset=dataset_of(problems, chat),
                processing_class=tokenizer,
                callbacks=[logger, interrupt],
            )
            trainer.remove_callback(PrinterCallback)
            if asked.scan_every and trainer.is_fsdp_enabled:
                raise InputError("Layers cannot be scanned while FSDP holds them in pieces; give --scan-every 0.")
            trainer.train(resume_from_checkpoint=start)
    if interrupt.pressed:
        raise KeyboardInterrupt
    _save(trainer, folder)
    trainer.accelerator.end_training()  # several processes that do not part may abort
    if trainer.is_world_process_zero():
        trained(folder, logger.metrics, time.monotonic() - begun, as_json=asked.json)


@contextmanager
def _explained(file: str | None, begun: Callable[[], bool]) -> Iterator[None]:
    """Turn an exception that a configuration file causes before the first step is done into one sentence."""
    try:
        yield
    except OSError:  # a full disk
        raise
    except Exception as error:
        if file is None or begun() or isinstance(error, InputError) or "out of memory" in str(error):
            raise
        said = " ".join(str(error).split())[:500] or type(error).__name__
        raise InputError(f"{file} made training fail before its first step: {said}") from error


def _save(trainer: "BuPOTrainer", folder: Path) -> None:
    """Write the model, whole or not at all."""
    partial = folder / checkpoints.PARTIAL
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial / MODEL))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        checkpoints.put(partial / MODEL, folder / MODEL)
        partial.rmdir()


def _watched(
    asked: Train,
    config: "BuPOConfig",
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "list[Problem]",
    folder: Path,
) -> "list[Rollout]":
    """The responses of the untrained model whose layers are scanned: the same after a resume."""
    from internal_policy.tasks.rollouts import read_rollouts, write_rollouts

    if not asked.scan_every:
        return []
    path = folder / ROLLOUTS
    if not path.exists():
        write_rollouts(path, _responses(asked, config, model, tokenizer, problems[:WATCHED]))
    return read_rollouts(path, tokenizer, None)


@contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """Tells each step: a bar with rate and time left on a terminal, else a line now and then."""
    import rich.progress as rich

    bar = rich.Progress(
        progress.text_column(lambda task: task.description),
        rich.BarColumn(bar_width=20),
        rich.MofNCompleteColumn(),
        rich.TextColumn("steps"),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("left"),
        console=progress.err,
        disable=not progress.err.is_terminal,
    )
    with bar:
        task = bar.add_task("Training", total=total)
        warned = False

        def tell(row: Mapping[str, Any]) -> None:
            nonlocal warned
            words = in_words(row)
            bar.update(task, completed=row["step"], description=words)
            if not progress.err.is_terminal and (row["step"] == 1 or row["step"] % 5 == 0):
                progress.note(f"step {row['step']}{f' of {total}' if total else ''}: {words}")
            if row.get("cut", 0) == 1 and not warned:
                warned = True
                progress.note(
                    "All responses were cut at the length limit, so none can be right; raise --max-new-tokens."
                )

        yield tell


def in_words(row: Mapping[str, Any]) -> str:
    """A row of metrics in words, without missing numbers and without the loss, which is always about 0."""
    trained = "whole policy" if row["phase"] == "final" else row["target"]
    formats = {
        "reward": "reward {:.2f}",
        "entropy": "entropy {:.3f}",
        "internal_entropy": f"{row['target']} {{:.3f}}",
        "clip_fraction": "clipped {:.1%}",
        "groups_without_spread": "no spread {:.0%}",
        "cut": "cut {:.0%}",
    }
    return f"{trained}: " + ", ".join(form.format(row[name]) for name, form in formats.items() if name in row)


def trained(folder: Path, metrics: "pd.DataFrame", seconds: float, *, as_json: bool = False) -> None:
    """A training run: the reward in tenths of it, and what to do with the model."""
    tenth = max(1, len(metrics) // 10)
    told = []
    for start in range(0, len(metrics), tenth):
        part = metrics.iloc[start : start + tenth]
        steps = [int(step) for step in part["step"]]
        means = part.reindex(columns=["reward", "entropy", "clip_fraction"]).mean().to_dict()
        told.append({"steps": f"{steps[0]}-{steps[-1]}", "trained": ", ".join(dict.fromkeys(part["target"])), **means})
    if as_json:
        document({"run": str(folder), "model": str(folder / "model"), "seconds": seconds, "steps": told})
        return
    table = Table(title="Means over steps", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("steps", "trained", "reward", "entropy", "clip_fraction"):
        table.add_column(name.replace("_", " "), justify="left" if name == "trained" else "right")
    for row in told:
        numbers = [f"{row[name]:.3f}" for name in ("reward", "entropy", "clip_fraction")]
        table.add_row(row["steps"], row["trained"], *numbers)
    out.print(table)
    out.print(f"{len(metrics)} steps in {seconds:.0f} s. Model: {escape(str(folder / 'model'))}")
    out.print(f"Measure it: internal-policy evaluate --model {escape(str(folder / 'model'))}")
