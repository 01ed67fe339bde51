"""Resolve the options of scan, generate, evaluate and fit-lens once, before any work."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from internal_policy import bundle
from internal_policy.cli import configuration, lens_files, progress, question
from internal_policy.cli.common import ModelOptions, ResponseOptions, SamplingOptions
from internal_policy.cli.lens_files import LensFile
from internal_policy.errors import InputError
from internal_policy.models import loading, tokenizers
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.scans.shard import ALONE, Worker
from internal_policy.tasks import rows
from internal_policy.tasks.formats import table

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from internal_policy.lenses.lens import FittedLens
    from internal_policy.models.hooks import HookPoint
    from internal_policy.models.policy import Readout
    from internal_policy.scans.sampling import Sampling
    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout

DEMO_PROBLEMS = 64
"""How many of the bundled problems are used if none are named."""


@dataclass(frozen=True)
class Prepared:
    """A model, and what it reads and writes. The model and its tokenizer are loaded when first used."""

    checkpoint: Checkpoint
    """The files of the model."""
    arguments: Mapping[str, Any]
    """Arguments of `loading.load_model`, which tell how weights are loaded."""
    chat_template: str | None
    """File to use instead of the tokenizer's own chat template, or "none"."""
    reading: Mapping[str, Any]
    """Arguments of `read_problems`."""
    limit: int | None
    """How many problems or rollouts are read from a source; None for all."""
    texts: tuple[str, ...]
    """Texts to measure as they are; none if responses are read from a file or sampled."""
    rollouts: tuple[str, ...]
    """Files of given responses; none to sample them, or with texts."""
    lenses: tuple[LensFile, ...]
    """The lenses to read hidden states through."""
    sampled: Mapping[str, Any]
    """Arguments of `Sampling`."""
    question: Mapping[str, Any]
    """Everything that can change the numbers. It is the key of the cache."""
    worker: Worker = ALONE
    """This process among those that share the work."""

    def asking(self, **entries: Any) -> "Prepared":
        """A copy with other entries in its question, which shares what is loaded already."""
        changed = dataclasses.replace(self, question={**self.question, **entries})
        vars(changed).update({**vars(self), **vars(changed)})
        return changed

    def holding(self, config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> "Prepared":
        """A copy with a configuration and tokenizer that are loaded already."""
        copy = dataclasses.replace(self)
        vars(copy).update(config=config, tokenizer=tokenizer)
        return copy

    @property
    def identity(self) -> str:
        """A value that differs for different weights."""
        return self.question["identity"]

    @cached_property
    def config(self) -> "PreTrainedConfig":
        """The model's configuration."""
        return configuration.load(self.checkpoint)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer."""
        return tokenizers.load_tokenizer(self.checkpoint, self.chat_template)

    @cached_property
    def sampling(self) -> "Sampling":
        """How responses are sampled."""
        from internal_policy.scans.sampling import Sampling

        return Sampling(**self.sampled)

    @cached_property
    def note(self) -> Callable[[str], None]:
        """Prints how the first prompt was read, once, and how to read it as plain text instead."""
        from internal_policy.tasks.preview import PLAIN

        say = progress.saying_once("{}")
        return lambda how: say(how if how.startswith(PLAIN) else f"{how}\nFor plain text, add --chat-template none.")

    def model(self) -> "nn.Module":
        """The model itself."""
        arguments = {**self.arguments}
        if self.worker.local is not None and arguments["device"] == "auto" and arguments["device_map"] is None:
            arguments["device"] = loading.device_numbered(self.worker.local)
        return loading.load_model(self.checkpoint, self.config, **arguments)

    def problems(self, source: str) -> "tuple[list[Problem], list[int]]":
        """The problems of a source, checked, and how many tokens each prompt has.

        Notes once on stderr how the first is read.
        """
        from internal_policy.models.passes import positions
        from internal_policy.tasks.generate import check_prompts
        from internal_policy.tasks.preview import preview
        from internal_policy.tasks.problems import read_problems
        from internal_policy.tasks.prompts import encode_problem

        problems = read_problems(source, **{**self.reading, "limit": self.limit})
        prompts = [encode_problem(self.tokenizer, problem, self.sampling.chat) for problem in problems]
        text = self.config.get_text_config()
        check_prompts(dict(enumerate(prompts)), self.sampling.max_new_tokens, positions(text), text.vocab_size)
        self.note(preview(self.tokenizer, prompts[0], self.sampling.chat))
        return problems, [len(prompt) for prompt in prompts]

    @property
    def is_given(self) -> bool:
        """Whether responses are given; otherwise they are sampled."""
        return bool(self.texts or self.rollouts)

    def given(self) -> "list[Rollout]":
        """The given responses, checked; none if they are sampled."""
        from internal_policy.models.passes import positions
        from internal_policy.tasks.rollouts import check_ids, of_rows, read_rollouts

        names = ["--text"] if len(self.texts) == 1 else [f"--text {n + 1}" for n in range(len(self.texts))]
        given = [rows.Row(name, {"text": text}) for name, text in zip(names, self.texts, strict=True)]
        rollouts = of_rows(self.tokenizer, given, self.sampling.chat)
        if self.rollouts:
            rollouts = read_rollouts(
                self.rollouts,
                self.tokenizer,
                self.sampling.chat,
                limit=self.limit,
                note=self.note,
                warn=progress.note,
            )
        check_ids(rollouts, positions(self.config), self.config.get_text_config().vocab_size)
        return rollouts

    def fitted_lenses(self, points: "Sequence[HookPoint]") -> "dict[str, FittedLens]":
        """Name of its readout -> each lens, checked against the model's size and the hook points to read.

        Notes on stderr if a lens doesn't tell which model it was fitted to. Raises InputError.
        """
        from internal_policy.lenses import file, header

        text, fitted = self.config.get_text_config(), {}
        for lens in self.lenses:
            fitted[lens.name] = file.read(lens.path, text.num_hidden_layers, text.hidden_size, lens.given)
            fitted[lens.name].check(points, called := f"The lens {lens.given}")
            if note := header.unknown(called, lens.header.about):
                progress.note(note)
        return fitted

    def policy(self, at: str, readout: str) -> "Policy":
        """The policy to sample from, checked against the model. Raises InputError."""
        from internal_policy.models.hooks import HookPoint, check

        if self.lenses and at == "final":
            raise InputError(
                "--lens reads a hook point, but --at is final, the model's own policy. Add --at, such as 5.resid_post."
            )
        if at == "final" and readout != "raw":
            raise InputError(f"--readout {readout} only applies to a hook point. Add --at, such as 5.resid_post.")
        if self.lenses and readout != "raw":
            raise InputError(f"Both --lens and --readout {readout} are given. Use one of them.")
        point = HookPoint.parse(at)
        check(self.config, point, self.config.get_text_config().num_hidden_layers)
        return Policy(point, readout, next(iter(self.fitted_lenses([point]).values()), None))

    def left(self, problems: "Sequence[Problem]", folder: Path) -> tuple[int, int]:
        """How many parts of the responses to `problems` aren't in `folder` yet, and of how many."""
        from internal_policy.scans import sampling

        parts = sampling.parts_of(problems, self.sampling)
        return len(sampling.missing(folder, parts)), len(parts)

    def sample(
        self, model: "nn.Module", policy: "Policy", problems: "Sequence[Problem]", folder: Path, title: str = "Sampling"
    ) -> "list[Rollout] | None":
        """Responses to problems, kept in `folder`, so that an interrupted run continues and processes share the work.

        None if other processes still have some of them, or one of them has the result.
        """
        from internal_policy.scans import sampling

        smaller = progress.saying_once("Out of memory: sampling {} responses at a time.")
        total = self.worker.shard.size(len(problems) * self.sampling.samples, self.sampling.batch_size)
        with progress.bar(title, total) as advance:
            return sampling.sample(
                model,
                self.tokenizer,
                problems,
                self.sampling,
                folder,
                worker=self.worker,
                point=policy.point,
                readout=policy.readout_of(model),
                advance=advance,
                smaller=smaller,
            )


@dataclass(frozen=True)
class Policy:
    """A policy of a model: its hook point and its readout."""

    point: "HookPoint"
    """The hook point whose hidden states are unembedded; FINAL for the model's own policy."""
    readout: str = "raw"
    """raw or norm."""
    lens: "FittedLens | None" = None
    """Lens to unembed through instead."""

    def readout_of(self, model: "nn.Module") -> "Readout":
        """How hidden states are brought to the unembedding of a model."""
        from internal_policy.lenses import lens

        return lens.of(self.lens, model) if self.lens else cast("Readout", self.readout)


def own_policy() -> Policy:
    """The model's own policy."""
    from internal_policy.models.hooks import FINAL

    return Policy(FINAL)


def prepare(
    options: ResponseOptions,
    unused: Set[str],
    sources: Sequence[str],
    *,
    texts: tuple[str, ...] = (),
    rollouts: Sequence[str] = (),
    lenses: Sequence[str] = (),
    of_another_model: bool = False,
) -> Prepared:
    """Resolve the options of a command that samples from a model or reads what it wrote.

    `unused` are options that don't change the numbers, `sources` the problems, `lenses` the words of --lens, which
    may be `of_another_model`. Raises InputError, also for a model that can't be found; nothing heavy is imported or
    loaded.
    """
    fitted = lens_files.resolve(lenses)
    files = tuple(table.listed(rollouts))
    paths = [*sources, *files, options.chat_template]
    asked = question.of(options, unused, paths, files, texts=texts, lenses=fitted)
    if of_another_model and not lenses:
        raise InputError("--lens-of-another-model has no effect without --lens. Leave it out.")
    if not of_another_model:
        lens_files.check_model(fitted, asked["identity"], options.model)
    return answering(options, asked, fitted, texts, files, options.worker)


def answering(
    options: ResponseOptions,
    asked: Mapping[str, Any],
    lenses: tuple[LensFile, ...],
    texts: tuple[str, ...],
    rollouts: tuple[str, ...],
    worker: Worker = ALONE,
) -> Prepared:
    """What answers the question `asked`, which the options were resolved to, now or in an earlier run."""
    return Prepared(
        options.checkpoint,
        options.arguments,
        options.chat_template,
        options.reading,
        options.limit,
        texts,
        rollouts,
        lenses,
        {
            **{field.name: getattr(options, field.name) for field in dataclasses.fields(SamplingOptions)},
            "chat": options.chat,
        },
        asked,
        worker,
    )


def check_effect(options: ModelOptions, names: Collection[str], beside: str) -> None:
    """Raise InputError if an option in `names` was given, because it has no effect together with `beside`."""
    for field in dataclasses.fields(options):
        if field.name in names and getattr(options, field.name) != field.default:
            raise InputError(f"--{field.name.replace('_', '-')} has no effect with {beside}. Leave it out.")


def source(problems: str | None, limit: int | None) -> tuple[str, int | None]:
    """The source of problems and the number to read. By default these are the first bundled ones."""
    if problems is None:
        return str(bundle.DATA / "problems" / "heldout.jsonl"), DEMO_PROBLEMS if limit is None else limit
    return problems, limit
