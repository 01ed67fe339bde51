"""Fit a lens of either kind with the options of fit-lens, and show progress."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from internal_policy.cli import progress
from internal_policy.cli.common import Number
from internal_policy.errors import counted
from internal_policy.scans.shard import WHOLE, Shard, Worker

if TYPE_CHECKING:
    from torch import nn

    from internal_policy.cli.prepared import Prepared
    from internal_policy.lenses.jacobian import Fitted, Settings
    from internal_policy.lenses.lens import FittedLens
    from internal_policy.models.hooks import HookPoint
    from internal_policy.tasks.prompts import Ids
    from internal_policy.tasks.rollouts import Rollout

OPTIONS_OF: Mapping[str, tuple[str, ...]] = {
    "tuned": ("steps", "batch_tokens", "learning_rate"),
    "jacobian": ("probes", "max_length", "skip"),
}
"""Kind of a lens -> the options that only apply to it."""
WORTH_SAYING = 10**9
"""Bytes of memory from which on a fit says how much it takes."""


@dataclass(frozen=True, kw_only=True)
class FittingOptions:
    """How a lens is fitted."""

    group: ClassVar = "Fitting"
    kind: Literal["tuned", "jacobian"] = "tuned"
    """Kind of lens: tuned (trained translators) or jacobian (average derivatives; nothing is trained)."""
    sites: str = "resid_pre,resid_post"
    """Sites that get a map in each layer, separated by commas: resid_pre, attn_in, attn_out, resid_mid, mlp_in,
    mlp_out, resid_post, or all. The last layer's resid_post gets none, because it needs none: after the norm it is the
    model's own policy."""
    held_out: float = 0.2
    """Share of the problems that is held out from fitting, and on which the KL is measured."""
    steps: int = 800
    """Updates of the translators of a tuned lens."""
    batch_tokens: int = 256
    """Response tokens per update of a tuned lens."""
    learning_rate: float = 1.0
    """Learning rate of Adam for a tuned lens, relative to the size of a hidden state (d_model); it falls to 0 over the
    steps."""
    skip_halves: bool = False
    """Don't fit two more tuned lenses, each on half of the problems. They show how far to trust the lens, but make
    fitting take two to three times as long. A Jacobian lens gives its halves for free."""
    probes: Number = None
    """Number of output dimensions to differentiate for each sequence of a Jacobian lens; by default all. With fewer, a
    sequence takes less time, and the estimate is unbiased but noisier: use more sequences."""
    max_length: int = 128
    """Length of the sequences that a Jacobian lens is averaged over, in tokens; longer texts are cut."""
    skip: int = 16
    """Positions at the start of each sequence that a Jacobian lens leaves out, because they act as attention sinks."""


def check(options: FittingOptions, seed: int) -> None:
    """Raise InputError for options that are out of range."""
    from internal_policy.lenses import fit, jacobian

    fit.check_options(options.steps, options.learning_rate, options.batch_tokens, options.held_out)
    jacobian.pieces((), options.max_length, settings(options, seed).skip)


def check_memory(options: FittingOptions, points: "Sequence[HookPoint]", config: Any) -> None:
    """Raise InputError if a fit doesn't fit into memory, and say how much it takes if that is a lot."""
    from internal_policy.lenses import fit, jacobian, sums

    d_model = config.get_text_config().hidden_size
    if options.kind == "tuned":
        fit.check_memory(len(points), 0, d_model, 4, 1 if options.skip_halves else 3)
        return
    sources = len({jacobian.source_of(config, point) for point in points})
    sums.check_memory(sources, len(points), d_model)
    if (need := sums.needed(sources, len(points), d_model)) >= WORTH_SAYING:
        progress.note(f"The Jacobians of {counted(len(points), 'hook point')} take {need / 1e9:.1f} GB of memory.")


def settings(options: FittingOptions, seed: int) -> "Settings":
    """How Jacobians are estimated. Raises InputError for values out of range."""
    from internal_policy.lenses.jacobian import Settings

    return Settings(options.probes, options.skip, seed)


def given(options: FittingOptions, inputs: "Prepared") -> "list[Rollout]":
    """The given responses and texts, checked; none if responses are sampled.

    For a Jacobian lens, texts are cut into sequences, so a single long text is enough.
    """
    from internal_policy.models.passes import positions
    from internal_policy.tasks.rollouts import check_ids, read_rollouts

    if options.kind == "tuned" or not inputs.rollouts:
        return inputs.given()
    found = read_rollouts(
        inputs.rollouts,
        inputs.tokenizer,
        inputs.sampling.chat,
        limit=inputs.limit,
        note=inputs.note,
        warn=progress.note,
    )
    rollouts = [part for number, one in enumerate(found) for part in _cut(options, inputs, one, number, len(found))]
    check_ids(rollouts, positions(inputs.config), inputs.config.get_text_config().vocab_size)
    return rollouts


def _cut(options: FittingOptions, inputs: "Prepared", rollout: "Rollout", number: int, of: int) -> "list[Rollout]":
    """A text in sequences, which count as one problem if there are other texts; any other rollout as it is."""
    from internal_policy.lenses.jacobian import pieces
    from internal_policy.tasks.rollouts import of_ids

    if rollout.problem or len(rollout.prompt_ids) != 1:
        return [rollout]
    parts = pieces(
        rollout.ids, options.max_length, options.skip, cast("int | None", inputs.tokenizer.bos_token_id)
    ) or [rollout.ids]
    problem = f"text {number}" if of > 1 else ""
    return [dataclasses.replace(part, problem=problem) for part in of_ids(inputs.tokenizer, parts)]


def sequences(options: FittingOptions, rollouts: "Sequence[Rollout]") -> "list[Ids]":
    """The sequences of rollouts, prompts and responses, that Jacobians are averaged over."""
    from internal_policy.lenses.jacobian import pieces

    return [piece for rollout in rollouts for piece in pieces(rollout.ids, options.max_length, options.skip)]


def fit_tuned(
    options: FittingOptions,
    seed: int,
    model: "nn.Module",
    rollouts: "Sequence[Rollout]",
    points: "Sequence[HookPoint]",
) -> "tuple[FittedLens, list[FittedLens]]":
    """A tuned lens, and those of two halves of the problems, if there are two and they are wanted."""
    from internal_policy.lenses import fit

    asked: Any = {name: getattr(options, name) for name in OPTIONS_OF["tuned"]}
    parts = [range(len(rollouts)), *([] if options.skip_halves else fit.halves(rollouts, seed))]
    with progress.bar("Fitting", options.steps, "steps") as advance:
        lens, *halves = fit.fit_parts(model, rollouts, points, parts, **asked, seed=seed, advance=advance)
    return lens, halves


def fit_jacobian(
    options: FittingOptions,
    seed: int,
    model: "nn.Module",
    texts: "Sequence[Ids]",
    points: "Sequence[HookPoint]",
    folder: Path,
    shard: Shard = WHOLE,
) -> "Fitted | int":
    """A Jacobian lens and those of two halves of the sequences, or the number of shards that haven't finished."""
    from internal_policy.lenses import jacobian
    from internal_policy.models.adapters import inside

    asked, d_model = settings(options, seed), inside(model).config.get_text_config().hidden_size
    smaller = progress.saying_once("Out of memory: reading {} sequences at a time.")
    total = jacobian.number_of_gradients(len(texts), d_model, asked)
    with progress.bar("Fitting", -(-total // shard.count), "gradients") as advance:
        return jacobian.fit(model, texts, points, asked, folder=folder, shard=shard, advance=advance, smaller=smaller)


def shard_of(worker: Worker) -> Shard:
    """The share of a process, counting those that one launcher started as shards too."""
    return Shard(worker.shard.index * worker.size + worker.rank, worker.shard.count * worker.size)


def about(options: FittingOptions) -> dict[str, Any]:
    """What a file tells about how its lens was fitted."""
    return {"kind": options.kind, **{name: getattr(options, name) for name in OPTIONS_OF[options.kind]}}


def size(texts: "Sequence[Ids]") -> dict[str, int]:
    """How many sequences and tokens Jacobians are averaged over; nothing for another kind of lens."""
    return {"sequences": len(texts), "tokens": sum(map(len, texts))} if texts else {}
