"""Scan the layers of a model every few steps while any Trainer of transformers or TRL trains it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from internal_policy.errors import InputError, counted
from internal_policy.measure.metrics import MEASURES
from internal_policy.models.adapters import inside
from internal_policy.models.families import sites_of
from internal_policy.models.modules import decoder_layers
from internal_policy.models.passes import device_of
from internal_policy.models.policy import READOUTS
from internal_policy.scans import study
from internal_policy.scans.positions import recorded
from internal_policy.scans.scan import Scanner, check_rollouts, facts
from internal_policy.scans.selection import Selection
from internal_policy.scans.store import read_part
from internal_policy.tasks import generate, given
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat
from internal_policy.tasks.rollouts import Rollout, from_table, write_rollouts

STUDY = "study"
"""Folder in the output of a Trainer that holds the study."""
Given = Sequence[Any] | str | Path
"""Texts, rollouts, rows or problems, or the name of a file."""


class ScanCallback(TrainerCallback):
    """Scans the layers of a model over the same rollouts while it is trained, into a study.

        trainer = SFTTrainer(..., callbacks=[ip.ScanCallback("responses.jsonl", every=100)])
        trainer.train()
        ip.open_study("output/study").plot.steps()

    Training isn't changed: weights, modes and random numbers are the same as without it. With several processes the
    first one scans. A training that continues from a checkpoint continues its study.

    Raises InputError for texts or options that can't be scanned; see `__init__`.
    """

    def __init__(
        self,
        texts: Given | None = None,
        *,
        problems: Given | None = None,
        every: int = 100,
        folder: str | Path | None = None,
        overwrite: bool = False,
        limit: int | None = None,
        layers: Sequence[int] | None = None,
        sites: Sequence[str] | None = None,
        readouts: Sequence[str] = READOUTS,
        measures: Sequence[str] = MEASURES,
        batch_size: int = 8,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat: Chat = MappingProxyType({}),
        **sampling: Any,
    ) -> None:
        """Choose what is scanned, every so many optimizer steps; the first scan is before training, the last after it.

        `texts` are what `internal_policy.scan` takes: texts, rollouts, rows, or the name of a file. With `problems`
        instead, as for `internal_policy.generate`, the model answers them once before training; `sampling` are options
        of `generate`, such as samples, temperature, max_new_tokens and seed. `limit`, `layers`, `sites`, `readouts`
        (raw, norm), `measures`, `batch_size` and `chat` are as for `scan`. The study is written to `folder`, by default
        `study` in the Trainer's output folder, and replaces another one there with `overwrite`. `tokenizer` is by
        default the Trainer's. Raises InputError unless either texts or problems are given.
        """
        if (texts is None) == (problems is None):
            raise InputError("Give ScanCallback either texts (or rollouts) or problems=.")
        if sampling and problems is None:
            raise InputError(f"{next(iter(sampling))} has no effect without problems=. Leave it out.")
        if not isinstance(every, int) or every < 1:
            raise InputError(f"every is {every!r:.60}; it must be a whole number of steps, 1 or more.")
        self.texts, self.problems, self.limit, self.sampling = texts, problems, limit, sampling
        self.every, self.folder, self.overwrite = every, None if folder is None else Path(folder), overwrite
        self.layers, self.sites = layers, sites
        self.readouts, self.measures, self.batch_size = tuple(readouts), tuple(measures), batch_size
        self.tokenizer, self.chat = tokenizer, chat
        self.rollouts: Sequence[Rollout] = ()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Read or sample the rollouts, and scan the model before training. Raises InputError."""
        if args.fsdp or is_deepspeed_zero3_enabled():
            raise InputError(
                "ScanCallback can't scan a model whose weights are divided among processes (FSDP, ZeRO-3). Save "
                "checkpoints, and scan them with `internal-policy scan --checkpoints`."
            )
        if not state.is_world_process_zero:
            return
        model = more["model"]
        tokenizer = self.tokenizer or more.get("processing_class")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise InputError("ScanCallback needs a tokenizer, which this Trainer doesn't have. Pass tokenizer=.")
        self.folder = self.folder or Path(str(args.output_dir)) / STUDY
        question = self._question(model)
        if state.global_step and (self.folder / study.RECORD).exists():
            self._continue(question, state.global_step)
        else:
            self._start(question, model, tokenizer, args)
        self._scan(model, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Scan the model if it is time."""
        if state.is_world_process_zero and state.global_step % self.every == 0:
            self._scan(more["model"], state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Scan the trained model, unless the last step did."""
        if state.is_world_process_zero:
            self._scan(more["model"], state.global_step)

    def _question(self, model: nn.Module) -> dict[str, Any]:
        """What decides the numbers, besides the weights and the rollouts, which the study keeps."""
        return {**self.sampling, "limit": self.limit, "selection": recorded(self._selection(model))}

    def _selection(self, model: nn.Module) -> Selection:
        layers = range(len(decoder_layers(model))) if self.layers is None else self.layers
        sites = sites_of(inside(model).config) if self.sites is None else self.sites
        return Selection(tuple(layers), tuple(sites), self.readouts, self.measures, 0)

    def _start(
        self, question: Mapping[str, Any], model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
    ) -> None:
        """Begin a study with the rollouts. Raises InputError if the folder has one."""
        folder = self._folder()
        path = folder / study.ROLLOUTS
        if (folder / study.RECORD).exists():
            if not self.overwrite:
                raise InputError(
                    f"{folder} already holds a study. Continue its training with resume_from_checkpoint, give another "
                    "folder, or pass overwrite=True to replace it."
                )
            study.remove(folder)
        said = "given"
        if self.problems is not None:
            said = "sampled before training"
            asked: list[Problem] = given.problems(self.problems, self.limit)
            with undisturbed(model):
                batches = generate.generate(
                    model, tokenizer, asked, batch_size=self.batch_size, chat=self.chat, **self.sampling
                )
                self.rollouts = [rollout for batch in batches for rollout in batch]
        else:
            self.rollouts = given.rollouts(tokenizer, self.texts, self.limit, self.chat)
        check_rollouts(model, self.rollouts)
        folder.mkdir(parents=True, exist_ok=True)
        write_rollouts(path, self.rollouts)
        study.begin(folder, question, str(Path(str(args.output_dir)).absolute()), said)

    def _continue(self, question: Mapping[str, Any], step: int) -> None:
        """Continue a study from the step of a checkpoint, over its own rollouts. Raises InputError if it is another."""
        folder = self._folder()
        study.check_question(folder, question)
        study.forget(folder, step)
        self.rollouts = from_table(read_part(folder / study.ROLLOUTS))

    def _scan(self, model: nn.Module, step: int) -> None:
        """Measure the layers and add them to the study, unless it has this step."""
        folder = self._folder()
        if step in study.steps(folder):
            return
        scanner = Scanner.of(model, self._selection(model))
        with undisturbed(model):
            batches = [self.rollouts[n : n + self.batch_size] for n in range(0, len(self.rollouts), self.batch_size)]
            tables = [scanner.measure(batch, n * self.batch_size)[1] for n, batch in enumerate(batches)]
        tokens = scanner.tokens(len(rollout.response_ids) for rollout in self.rollouts)
        counts = {"rollouts": len(self.rollouts), "tokens": tokens}
        study.add(folder, step, f"step {step}", {**facts(scanner), **counts}, pa.concat_tables(tables), None)

    def _folder(self) -> Path:
        if self.folder is None:
            raise InputError("ScanCallback only scans while a Trainer trains. Pass it to one as callbacks=[...].")
        return self.folder

    def __repr__(self) -> str:
        """Where it writes, and how often."""
        return f"<ScanCallback every {counted(self.every, 'step')} into {self.folder or STUDY}>"


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, PyTorch's random numbers may be drawn; afterwards they go on as if none had been."""
    device = device_of(model)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
