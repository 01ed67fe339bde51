"""Run a training in a folder: choose the target layer, train, log the layers, and save the model."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PrinterCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from internal_policy import files
from internal_policy.errors import InputError, counted, is_out_of_memory
from internal_policy.look import statistics, targets
from internal_policy.measure.sites import CHANGES
from internal_policy.models import hooks
from internal_policy.models.adapters import inside
from internal_policy.models.families import layer_sites
from internal_policy.models.hooks import HookPoint
from internal_policy.models.passes import check_padding, positions
from internal_policy.scans import digests
from internal_policy.scans.scan import scan
from internal_policy.tasks.generate import check_prompts, generate
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat, encode_problem
from internal_policy.tasks.rollouts import Rollout, read_rollouts, write_rollouts
from internal_policy.train import card, checkpoints, freezing, lora, methods, padding, precision, rewards, scoring
from internal_policy.train import exam as exams
from internal_policy.train.bupo import BuPOTrainer
from internal_policy.train.callbacks import Interrupt, RunLogger, ScanSchedule
from internal_policy.train.configuration import BuPOConfig, check_vllm
from internal_policy.train.dataset import dataset_of
from internal_policy.train.exam import NO_EXAM, Exam, Examiner, Marks
from internal_policy.train.resume import CONFIG, MODEL, known
from internal_policy.train.samples import SampleLogger

STAGES, ROLLOUTS = "stages.json", "rollouts.parquet"
"""Names in the folder of a run: the suggested layer, and the responses that are scanned during training."""
SUGGESTED_BY, WATCHED = 32, 8
"""Number of problems whose responses are scanned: to suggest a layer, and during training."""

ACCELERATE = "ACCELERATE_MIXED_PRECISION"
"""Variable that `accelerate launch` sets."""

Bar = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar with a title and a total, and returns a function to add rollouts and tokens."""


@dataclass(frozen=True)
class Setup:
    """What to train, and where."""

    folder: Path
    """Folder of the run."""
    model: nn.Module
    """The model, which training changes."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    problems: Sequence[Problem]
    """Problems with answers."""
    chat: Chat
    """Arguments for the chat template; None for no template."""
    rewards: Sequence[scoring.Function]
    """Reward functions for TRL, as many as the configuration names."""
    about: Mapping[str, str]
    """For the model's card: the run's "name", the "model" it starts from, and its "problems"."""
    dtype: torch.dtype | None = None
    """Type of the weights on disk, in which the trained model is saved; None for the type in training."""
    merge: bool = False
    """Whether an adapter is saved merged into the weights."""
    exam: Exam = NO_EXAM
    """Held-out problems to solve during training."""
    samples_every: int = 0
    """Steps between two samples of responses; 0 keeps none."""


def check(
    model: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    chat: Chat,
    config: BuPOConfig,
    layer: HookPoint | None = None,
    exam: Exam = NO_EXAM,
) -> None:
    """Raise InputError for a family, hook point, problem, length or missing package that training would fail at.

    `layer` is a hook point besides those of `config` that is compared with others.
    """
    check_vllm(config)
    check_padding(model)
    padding.check(model)
    text = model.get_text_config()
    for point in [*(phase.point for phase in config.phases), *([layer] if layer else [])]:
        hooks.check(model, point, text.num_hidden_layers)
    rewards.check_weights(config.rewards, config.reward_weights)
    rewards.check_answers(config.rewards, problems)
    dataset_of(problems, chat)
    prompts = {n: encode_problem(tokenizer, problem, chat) for n, problem in enumerate(problems)}
    longest = min(positions(text), config.vllm_max_model_length or sys.maxsize)
    check_prompts(prompts, config.max_completion_length or 0, longest, text.vocab_size)
    exams.check(exam, tokenizer, chat, text, config.max_completion_length or 0)
    group = config.num_generations or 1
    needed = (config.generation_batch_size or group) // group
    if len(problems) < needed:
        raise InputError(
            f"A step takes {counted(needed, 'problem')}, more than the {len(problems):,} given. "
            "Lower --prompts, or add problems."
        )


def asks_for_boxes(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], chat: Chat) -> bool:
    r"""Whether a problem, or the chat template around the first one, mentions the \boxed{} that marks answers."""
    first = str(tokenizer.decode(list(encode_problem(tokenizer, problems[0], chat))))
    return "boxed" in first or any("boxed" in message["content"] for one in problems for message in one.messages)


def stages(setup: Setup, config: BuPOConfig, bar: Bar) -> dict[str, Any]:
    """The suggested target layer, with the number of `problems` scanned for it; decided once and kept in a file.

    Raises InputError if the file is damaged.
    """
    path = setup.folder / STAGES
    if not path.exists():
        rollouts = responses(setup, SUGGESTED_BY, config.max_completion_length or 0, bar)
        suggestion = suggested(setup.model, setup.tokenizer, rollouts, config.readout)
        files.write_json(path, {**suggestion, "problems": len(rollouts)}, once=True)
    return known(path, target=(int, type(None)), problems=int)


def suggested(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rollouts: Sequence[Rollout], readout: str = "raw"
) -> dict[str, Any]:
    """BuPO's target layer and runner-up from a scan of `rollouts`; see `targets.suggestion`.

    Raises InputError for a model whose layers have no FFN.
    """
    readouts: Any = (readout,)
    known, sites = layer_sites(inside(model).config), CHANGES["mlp"]
    layers = [layer for layer in known if {*sites} <= {*known[layer]}]
    if not layers:
        raise InputError("No layer of this model has an FFN, so there is no default target. Choose one with --layer.")
    scanned = scan(
        model, tokenizer, rollouts, layers=layers, sites=sites, readouts=readouts, measures=("entropy",), top_k=0
    )
    return targets.suggestion(statistics.changes(scanned.layers))


def responses(
    setup: Setup, number: int, max_new_tokens: int, bar: Bar, samples: int = 1, **options: Any
) -> list[Rollout]:
    """`samples` responses of the model to each of the first `number` problems, with the `options` of `generate`."""
    problems = setup.problems[:number]
    rollouts: list[Rollout] = []
    options |= {"samples": samples, "max_new_tokens": max_new_tokens, "chat": setup.chat}
    with bar("Sampling", len(problems) * samples) as advance:
        for batch in generate(setup.model, setup.tokenizer, problems, **options):
            rollouts += batch
            advance(len(batch), sum(len(rollout.response_ids) for rollout in batch))
    return rollouts


def watched(setup: Setup, max_new_tokens: int, bar: Bar) -> list[Rollout]:
    """Responses of the untrained model to scan during training; a resumed run uses the same ones."""
    path = setup.folder / ROLLOUTS
    if not path.exists():
        write_rollouts(path, responses(setup, WATCHED, max_new_tokens, bar))
    return read_rollouts(path, setup.tokenizer, None)


def train(
    setup: Setup,
    config: BuPOConfig,
    scans: ScanSchedule,
    start: Path | None,
    report: Callable[[Mapping[str, Any]], None],
    note: Callable[[str], None],
    file: str | None = None,
) -> pd.DataFrame | None:
    """Train, from the checkpoint `start` if there is one, and save the model; the metrics, on the main process.

    `report` is called with the metrics of each step, `note` with what happens on Ctrl-C, which raises KeyboardInterrupt
    once a checkpoint is written. Raises InputError if the fields of `file` make training fail before its first step.
    """
    with files.held(setup.folder) as mark, files.naming_full(setup.folder):

        def step(row: Mapping[str, Any]) -> None:
            os.utime(mark)  # fails if the folder was removed
            report(row)

        return _trained(setup, config, scans, start, step, note, file)


def _trained(
    setup: Setup,
    config: BuPOConfig,
    scans: ScanSchedule,
    start: Path | None,
    report: Callable[[Mapping[str, Any]], None],
    note: Callable[[str], None],
    file: str | None,
) -> pd.DataFrame | None:
    def keep(table: pd.DataFrame) -> None:
        _save(trainer, setup, card.card(logger.metrics, setup.about, config, table, is_best=True), exams.BEST)
        if trainer.is_world_process_zero():
            note(exams.kept(setup.folder / exams.BEST, table))

    interrupt = Interrupt()
    examiner = Examiner(setup.folder, setup.exam, config.updates_per_step, _solving(setup, config), keep)
    reported = lambda row: report({**row, **examiner.latest})  # noqa: E731
    named = methods.called(config)
    logger = RunLogger(setup.folder, config.updates_per_step, config.phases, scans, reported, named)
    blamed = file or ("vLLM" if config.use_vllm else None)
    with interrupt.listening(note), warnings.catch_warnings(), _explained(blamed, logger):
        warnings.simplefilter("ignore", FutureWarning)  # TRL uses names that transformers has renamed
        trainer = BuPOTrainer(
            setup.model,
            [*setup.rewards],
            config,
            train_dataset=dataset_of(setup.problems, setup.chat),
            processing_class=setup.tokenizer,
            callbacks=[logger, examiner, interrupt],
        )
        trainer.remove_callback(PrinterCallback)
        if setup.samples_every:
            trainer.add_callback(SampleLogger(setup.folder, config.updates_per_step, setup.samples_every, trainer))
        _check_sharding(trainer, setup, scans)
        for sentence in _in_words(trainer, config):
            note(sentence)
        if trainer.is_world_process_zero():
            files.write_text(setup.folder / CONFIG, card.as_yaml(config))
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    if interrupt.pressed:
        raise KeyboardInterrupt
    if examiner.stopped:
        kept = max(checkpoints.found(setup.folder).items())[1]
        raise InputError(f"{examiner.stopped} The checkpoint is {kept}. To go on, add --resume and lower --stop-below.")
    _save(trainer, setup, card.card(logger.metrics, setup.about, config, examiner.table), MODEL)
    trainer.accelerator.end_training()  # without this, processes may abort
    if trainer.is_world_process_zero():
        digests.record(setup.folder, digests.below(setup.folder, MODEL, exams.BEST))
    return logger.metrics if trainer.is_world_process_zero() else None


def _check_sharding(trainer: BuPOTrainer, setup: Setup, scans: ScanSchedule) -> None:
    """Raise InputError for what needs the whole model in one process while it is divided among several."""
    if scans.every and trainer.is_fsdp_enabled:
        raise InputError("Layers can't be scanned while FSDP shards them. Use --scan-every 0.")
    if setup.merge and trainer.is_fsdp_enabled:
        raise InputError("An adapter can't be merged while FSDP shards the weights. Leave out --merge.")
    if setup.exam.sets and (trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
        raise InputError("Exams can't be held while FSDP or ZeRO-3 shards the model. Remove --eval-problems.")


def _in_words(trainer: BuPOTrainer, config: BuPOConfig) -> list[str]:
    """What is trained, in how many processes, and what is lost by rounding."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    said = (
        lora.in_words(model) if config.lora else None,
        precision.rounding(trainer.model, config.learning_rate),
        freezing.in_words(model),
        _processes(trainer.accelerator.num_processes, on_cpu=config.use_cpu),
    )
    return [sentence for sentence in said if sentence is not None]


def _solving(setup: Setup, config: BuPOConfig) -> Callable[[nn.Module], Marks]:
    """A function that marks a model's responses to the exam, sampled as in training, with the same seed each time."""
    return partial(
        exams.solve,
        tokenizer=setup.tokenizer,
        problems=setup.exam.problems,
        samples=setup.exam.samples,
        batch_size=config.per_device_train_batch_size,
        chat=setup.chat,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_completion_length,
        seed=config.seed,
    )


def _processes(number: int, *, on_cpu: bool) -> str:
    """The number of processes in words, and how to start more where `accelerate launch` doesn't."""
    text = f"Training in {number} process{'' if number == 1 else 'es'}."
    if number == 1 and on_cpu and ACCELERATE in os.environ:
        text += " Without GPUs, `accelerate launch` starts only one; use torchrun for more."
    return text


@contextmanager
def _explained(file: str | None, logger: RunLogger) -> Iterator[None]:
    """Turn an exception that `file` or vLLM causes before the first step is done into one sentence."""
    try:
        yield
    except OSError:  # a full disk
        raise
    except Exception as error:
        if file is None or len(logger.metrics) or isinstance(error, InputError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise InputError(f"{file} made training fail before its first step: {reason}") from error


def _save(trainer: BuPOTrainer, setup: Setup, text: str, name: str) -> None:
    """Write the model and its card into a folder of the run, whole or not at all."""
    folder, partial = setup.folder, setup.folder / checkpoints.PARTIAL
    if trainer.is_world_process_zero():
        checkpoints.clear(folder)
        partial.mkdir()  # fails if the folder of the run was removed; saving would make half of it again
    trainer.accelerator.wait_for_everyone()
    if not setup.merge or name != MODEL:  # merging ends training
        trainer.save_model(str(partial / name))
    elif trainer.is_world_process_zero():
        lora.merged(trainer.accelerator.unwrap_model(trainer.model)).save_pretrained(partial / name)
        setup.tokenizer.save_pretrained(partial / name)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        if setup.dtype is not None:
            precision.save_as(partial / name, setup.dtype)
        (partial / name / checkpoints.PICKLE).unlink(missing_ok=True)
        (partial / name / card.CARD).write_text(text, encoding="utf-8")
        checkpoints.put(partial / name, folder / name)
        partial.rmdir()
