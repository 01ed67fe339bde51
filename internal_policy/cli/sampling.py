"""Sample responses to problems part by part, so that an interrupted run goes on where it stopped."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy import bundle, files
from internal_policy.cli import progress
from internal_policy.errors import InputError
from internal_policy.models import loading, templates
from internal_policy.scans import records
from internal_policy.tasks import rows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from internal_policy.cli.evaluate import Evaluate
    from internal_policy.cli.fit_lens import FitLens
    from internal_policy.cli.generate import Generate
    from internal_policy.cli.scan import Scan
    from internal_policy.lenses.tuned import Translators
    from internal_policy.models.hooks import HookPoint
    from internal_policy.models.policy import Readout
    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout

    Internal = Generate | Evaluate  # sample from any internal policy
    Lensed = Scan | Internal  # take a lens
    Asked = Lensed | FitLens  # sample

DEMO_PROBLEMS = 64
"""How many of the bundled problems are asked where nobody says which problems."""

LATER: dict[str, Any] = {"lens": None, "reader": "hooks", "remote": False}
"""Options that came later -> their defaults, with which a question is the one that was asked before they came."""


def source(problems: str | None, limit: int | None) -> tuple[str, int | None]:
    """Which problems are asked, and how many at most; without a name the first of the bundled ones."""
    if problems is None:
        return str(bundle.DATA / "problems" / "heldout.jsonl"), DEMO_PROBLEMS if limit is None else limit
    return problems, limit


def question(asked: "Asked", paths: Iterable[str | None], unused: Set[str]) -> dict[str, Any]:
    """The options that decide the numbers, with what their paths hold: the key of the cache.

    Whatever else decides the numbers belongs here: what a source of data holds is `held`, the model is `identity`.
    """
    given = dataclasses.asdict(asked).items()
    decisive = {name: value for name, value in given if name not in unused and (name, value) not in LATER.items()}
    identity, arguments = loading.identity(asked.checkpoint), loading.chat_of(None, asked.chat_template_kwargs)
    if loading.inserts_date(asked.checkpoint, asked.chat_template) and not _all_ids(asked):
        arguments = {templates.DATE: templates.today(), **(arguments or {})}
    decisive["chat_template_kwargs"] = json.dumps(arguments, sort_keys=True)
    content = {path: held(path) for path in paths if path}
    return {**decisive, "identity": identity, "content": content}


def _all_ids(asked: "Asked") -> bool:
    """Whether every given rollout is token ids, for which no chat template is rendered."""
    given = getattr(asked, "rollouts", None)
    found = rows.read_rows(Path(given), asked.limit) if given is not None else []
    return given is not None and all(row.values.keys() >= {"prompt_ids", "response_ids"} for row in found)


def held(source: str) -> dict[str, Any] | None:
    """What identifies the content of a source of data; None if it isn't a file.

    That is the bytes of a file, or the commit of a data set of the hub. Raises InputError if the hub has none.
    """
    if rows.from_hub(source):
        return {"revision": rows.hub_revision(source)}
    return files.fingerprint(Path(source))


def read(
    asked: "Asked", problems: str | None, tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig"
) -> "tuple[list[Problem], list[int]]":
    """The problems of one source, and how many tokens each prompt has. All checked."""
    from internal_policy.models.passes import positions
    from internal_policy.tasks.generate import check_prompts
    from internal_policy.tasks.problems import read_problems
    from internal_policy.tasks.prompts import encode_problem

    chat = loading.chat_of(asked.chat_template, asked.chat_template_kwargs)
    path, limit = source(problems, asked.limit)
    found = read_problems(path, problem_column=asked.problem_column, answer_column=asked.answer_column, limit=limit)
    prompts = [encode_problem(tokenizer, problem, chat) for problem in found]
    text = config.get_text_config()
    check_prompts(dict(enumerate(prompts)), asked.max_new_tokens, positions(text), text.vocab_size)
    return found, [len(prompt) for prompt in prompts]


def check_point(config: "PreTrainedConfig", point: "HookPoint") -> None:
    """Refuse, before its weights are loaded, a hook point that the model does not have. Raises InputError."""
    from internal_policy.models.hooks import check

    check(config, point, config.get_text_config().num_hidden_layers)


def translators_of(
    asked: "Lensed", points: "Iterable[HookPoint]", identity: str, config: "PreTrainedConfig"
) -> "Translators | None":
    """The translators of --lens, checked against the model and against what is to be read; None without that option.

    Says so where the file says that they were fitted to another model than that of this `identity`. Raises InputError.
    """
    if asked.lens is None:
        return None
    from internal_policy.lenses import tuned

    text = config.get_text_config()
    translators = tuned.read(Path(asked.lens), text.num_hidden_layers, text.hidden_size)
    translators.check(points)
    if translators.about.get("identity") not in (None, identity):
        progress.note(
            f"The lens {asked.lens} was fitted to other weights than these, those of {translators.about.get('model')}."
        )
    return translators


def check_lens(asked: "Internal") -> None:
    """Refuse a lens where none is used. Raises InputError."""
    if asked.lens is not None and asked.at == "final":
        raise InputError(
            "--lens reads a hook point, and --at is final, the model's own policy; give --at 5.resid_post."
        )
    if asked.lens is not None and asked.readout != "raw":
        raise InputError(f"Both --lens and --readout {asked.readout} are given; give one of them.")


def readout_of(asked: "Internal", translators: "Translators | None", model: "nn.Module") -> "Readout":
    """How the hidden states that are sampled from are brought to the unembedding."""
    from internal_policy.lenses import tuned

    return tuned.of(translators, model) if translators else asked.readout


def sampled(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "Sequence[Problem]",
    asked: "Asked",
    first: int,
    smaller: Callable[[int], None],
) -> "list[Rollout]":
    """The responses to the batch from prompt number `first` on; half as many at a time where memory runs out."""
    from internal_policy.models.memory import in_halves
    from internal_policy.tasks.generate import generate

    def batch(part: slice) -> "list[Rollout]":
        batches = generate(
            model,
            tokenizer,
            problems,
            samples=asked.samples,
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_new_tokens=asked.max_new_tokens,
            seed=asked.seed,
            batch_size=part.stop - part.start,
            first=first + part.start,
            stop=first + part.stop,
            chat=loading.chat_of(asked.chat_template, asked.chat_template_kwargs),
        )
        return [rollout for batch in batches for rollout in batch]

    number = min(asked.batch_size, len(problems) * asked.samples - first)
    return [rollout for part in in_halves(batch, number, smaller) for rollout in part]


def all_of(
    asked: "Internal | FitLens",
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "Sequence[Problem]",
    point: "HookPoint",
    readout: "Readout",
    folder: Path,
    what: str = "Sampling",
) -> "list[Rollout]":
    """All responses, part by part through `folder`, where an interrupted run finds what was whole."""
    from internal_policy.models.policy import as_policy
    from internal_policy.scans import store
    from internal_policy.tasks.rollouts import from_table, to_table

    total = len(problems) * asked.samples
    smaller = progress.saying_once("Out of memory: sampling {} responses at a time.")
    rollouts: list[Rollout] = []
    with as_policy(model, point, readout), progress.bar(what, total) as advance:
        for part, first in enumerate(range(0, total, asked.batch_size)):
            path = store.part_path(folder, "rollouts", part)
            known = records.of_part(folder, part)
            if known is None or files.fingerprint_once(path) != known["files"].get(path.name, ""):
                store.write_table(path, to_table(sampled(model, tokenizer, problems, asked, first, smaller)))
                about = {"files": {path.name: files.fingerprint_once(path)}, "by": []}
                records.write(records.about_part(folder, part), about)
            written = from_table(store.read_part(path))
            rollouts += written
            advance(len(written), sum(len(rollout.response_ids) for rollout in written))
    return rollouts
