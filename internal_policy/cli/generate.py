"""`internal-policy generate`: sample responses and mark them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from internal_policy.cli import engine, outputs, prepared, progress, sampler, shards
from internal_policy.cli.common import (
    JsonOptions,
    OutputFile,
    OutputOptions,
    PolicyOptions,
    PromptOptions,
    ResponseOptions,
    SamplerOptions,
)
from internal_policy.cli.console import document, out
from internal_policy.errors import counted

if TYPE_CHECKING:
    from internal_policy.tasks.rollouts import Rollout

ENDINGS = (".parquet", ".jsonl")
"""How the names of the files end that can be written."""
PRESENTATION = {"output", "json"}
"""Options that don't change what is sampled."""


@dataclass(frozen=True, kw_only=True)
class Generate(JsonOptions, OutputOptions, PolicyOptions, PromptOptions, SamplerOptions, ResponseOptions):
    """Sample responses from a model or an internal policy.

    Each response is marked if its problem has an answer. An interrupted run continues where it stopped.

    For example:
    $ internal-policy generate --samples 4 -o rollouts.jsonl
    $ internal-policy generate --at 5.resid_post --limit 8 -o layer5.parquet
    """

    output: OutputFile = Path("rollouts.parquet")
    """File to write, .parquet or .jsonl."""


def run(options: Generate) -> None:
    """Sample responses and write them to a file, and print a summary."""
    rollouts = written(options)
    if rollouts is not None:
        generated(options.output, options.at, rollouts, as_json=options.json)


def written(options: Generate) -> "list[Rollout] | None":
    """Sample responses and write them to a file. An interrupted run continues where it stopped.

    None if other processes still have some of them, or one of them has written the file.
    """
    from internal_policy.scans import store
    from internal_policy.tasks.rollouts import write_rollouts

    engine.check_policy(options)
    worker, sources = options.worker, outputs.inputs_of(options)
    progress.hush(not worker.leads)
    if worker.is_alone:
        outputs.check_file(options.output, options.force, *ENDINGS, inputs=sources)
    outputs.check_cache()
    progress.quiet()
    problems, limit = prepared.source(options.problems, options.limit)
    options = dataclasses.replace(options, problems=problems, limit=limit)
    inputs = prepared.prepare(
        options,
        PRESENTATION,
        [problems],
        lenses=[options.lens] if options.lens else [],
        of_another_model=options.lens_of_another_model,
    )
    policy = inputs.policy(options.at, options.readout)
    questions, lengths = inputs.problems(problems)
    question = {**inputs.question, "output": options.output.absolute()}  # two files at a time don't share their parts
    folder = store.root() / "rollouts" / store.digest(question)
    shared = shards.SharedFile(worker, options.output, question, folder)
    if shared.is_written(options.force, ENDINGS, sources):
        return None
    with sampler.sampler(options, inputs, policy, lengths) as sample:
        if shared.is_over():
            return None
        rollouts = sample(questions, folder)
    if rollouts is None:
        shared.leave(*inputs.left(questions, folder))
        return None
    with shared.writing():
        write_rollouts(options.output, rollouts)
    shards.remove(folder)
    return rollouts


def generated(path: Path, at: str, rollouts: "Sequence[Rollout]", *, as_json: bool = False) -> None:
    """Print the first response, and a summary of all of them."""
    import pandas as pd

    from internal_policy.tasks import pass_at_k

    marks = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    rewards = pd.Series([rollout.reward for rollout in rollouts], dtype=float)
    responses = pd.Series([rollout.response for rollout in rollouts])
    marked = pass_at_k.outcome_in_words(rewards, responses)
    found = {
        "output": str(path),
        "at": at,
        "rollouts": len(rollouts),
        "tokens": sum(len(rollout.response_ids) for rollout in rollouts),
        "reward": None if marked == pass_at_k.NOT_MARKED else sum(marks) / len(marks),
        "finished": sum(rollout.finished for rollout in rollouts) / len(rollouts),
    }
    if as_json:
        document(found)
        return
    first = rollouts[0]
    out.print(f"{escape(first.problem)}\n→ {escape(first.response)}\n", emoji=False)
    out.print(
        f"{counted(len(rollouts), 'response')} from the policy at {at}, {marked}, "
        f"{found['finished']:.1%} ended before the length limit, "
        f"{counted(found['tokens'], 'token')}."
    )
    if why := pass_at_k.no_box(rewards, responses):
        out.print(why)
    out.print(f"Wrote {escape(str(path))}.")
