"""Measure the parts of a scan, in this process or in replicas of the model on Ray."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy import files
from internal_policy.cli import capacity, lens_files, opening, outputs, progress, shards, work
from internal_policy.cli.work import Work
from internal_policy.engines.pool import Pool
from internal_policy.models import naming

if TYPE_CHECKING:
    from internal_policy.scans import job
    from internal_policy.tasks.generate import OnToken
    from internal_policy.tasks.rollouts import Rollout


@dataclass(frozen=True)
class Watch:
    """Callbacks while a scan runs. Either may stop it by raising an exception."""

    on_token: "OnToken | None" = None
    """Called after each sampled token, as in `generate`."""
    on_piece: "job.OnPiece | None" = None
    """Called with each measured piece, as in `job.run`."""


UNWATCHED = Watch()


def measure(
    planned: Work, opener: opening.Opener, folder: Path, other: bool, watch: Watch = UNWATCHED, pool: Pool | None = None
) -> None:
    """Measure into a folder, in place of the `other` scan that it may hold.

    The model runs in this process, or in the replicas of a pool.
    """
    from internal_policy.scans import job

    inputs, size = planned.inputs, planned.inputs.sampling.batch_size
    worker, parts = inputs.worker, range(-(-planned.total // size))
    left = job.missing(folder, parts)
    if left and not {*left} & {*worker.shard.parts(parts)}:
        shards.note_left(worker, len(left), len(parts), folder)
        return
    batch_tokens = size * len(planned.selection.positions.of(planned.longest))
    work.check_disk(folder, planned.selection, planned.measured if planned.rollouts else batch_tokens)
    work.note_short(planned)

    def begin() -> None:
        if other:
            outputs.clear(folder, "scan")
        progress.note(f"Writing the scan to {folder}.")

    if pool is not None:
        _in_replicas(planned, opener, folder, parts if other else left or parts[-1:], begin, pool)
        return
    if not opener.remote and (why := capacity.warning(planned)):
        progress.note(why)
    run = loaded(planned, opener, folder, watch)
    begin()
    with progress.bar("Scanning", worker.shard.size(planned.total, size)) as advance:
        record = run(worker=worker, advance=advance)
    if record is None:
        shards.note_left(worker, len(job.missing(folder, parts)), len(parts), folder)


def loaded(
    planned: Work, opener: opening.Opener, folder: Path, watch: Watch, command: Sequence[str] | None = None
) -> Callable[..., dict[str, Any] | None]:
    """Load the model; return `job.run` with all its arguments but `worker` and `advance`.

    `command` is recorded; None means that of this process.
    """
    from internal_policy.lenses import lens
    from internal_policy.scans import job, sampling
    from internal_policy.scans.scan import Scanner

    inputs, size = planned.inputs, planned.inputs.sampling.batch_size
    reader = opener.open(inputs)
    lenses = {name: lens.of(fitted, reader.model, name) for name, fitted in planned.lenses.items()}
    scanner = Scanner.of(reader, planned.selection, lenses)
    smaller = progress.saying_once("Out of memory: measuring {} rollouts at a time.")

    def batch(part: int) -> "Sequence[Rollout]":
        first = part * size
        given = planned.rollouts[first : first + size]
        return given or sampling.batch(
            reader.model, inputs.tokenizer, planned.problems, inputs.sampling, first, smaller, watch.on_token
        )

    template: Any = inputs.tokenizer.chat_template if inputs.chat_template != "none" else None
    facts = {**job.facts(naming.title(inputs.checkpoint.name), reader, template, opener.packages), **opener.facts}
    facts |= {"lenses": {each.name: lens_files.recorded(each) for each in inputs.lenses}} if inputs.lenses else {}
    return partial(
        job.run,
        folder,
        scanner,
        inputs.tokenizer,
        job.Source(planned.total, size, batch),
        inputs.question,
        {**facts, "command": command or sys.argv},
        smaller=smaller,
        on_piece=watch.on_piece,
    )


def _in_replicas(
    planned: Work, opener: opening.Opener, folder: Path, todo: Sequence[int], begin: Callable[[], None], pool: Pool
) -> None:
    """Measure the parts `todo` on Ray. `begin` is called when the first replica has loaded the model."""
    from internal_policy.engines import ray

    size, total = planned.inputs.sampling.batch_size, planned.total
    bare = dataclasses.replace(planned, inputs=dataclasses.replace(planned.inputs))  # without its cached properties
    load = partial(loaded, bare, opener, folder.absolute(), UNWATCHED, sys.argv)
    with ray.started(load, pool, len(todo)) as team:
        begin()
        with files.held(folder.absolute()) as mark, progress.bar("Scanning", total) as advance:
            parts = range(-(-total // size))
            for part in {*parts} - {*todo}:
                advance(min(size, total - part * size), 0)
            team.measure(todo, len(parts), mark, advance)
