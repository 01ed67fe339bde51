"""Describe and check what a scan is about to measure."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from internal_policy.cli import progress
from internal_policy.cli.prepared import Prepared
from internal_policy.errors import InputError, counted
from internal_policy.models import templates

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from internal_policy.cli.scan import Scan
    from internal_policy.lenses.lens import FittedLens
    from internal_policy.scans.selection import Plan, Selection
    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout


@dataclass(frozen=True)
class Work:
    """What a scan measures, checked."""

    inputs: Prepared
    """The model, and where responses come from."""
    selection: "Selection"
    """What is measured in the model."""
    plan: "Plan"
    """The hidden states that this needs."""
    lenses: "Mapping[str, FittedLens]"
    """Name of its readout -> each lens."""
    rollouts: "list[Rollout]"
    """The given responses; none if they are sampled."""
    problems: "list[Problem]"
    """Problems to sample responses to."""
    prompts: list[int]
    """How many tokens the prompt of each problem has."""

    @property
    def total(self) -> int:
        """How many responses are measured."""
        return len(self.rollouts) or len(self.problems) * self.inputs.sampling.samples

    @property
    def tokens(self) -> int:
        """How many response tokens are given; 0 if responses are sampled."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)

    @property
    def longest(self) -> int:
        """How many tokens the longest response has, or may have if they are sampled."""
        given = [len(rollout.response_ids) for rollout in self.rollouts]
        return max(given, default=self.inputs.sampling.max_new_tokens)

    @property
    def measured(self) -> int:
        """How many response tokens are measured, at most if they are sampled."""
        lengths = [len(rollout.response_ids) for rollout in self.rollouts] or [self.longest] * self.total
        return sum(len(self.selection.positions.of(length)) for length in lengths)


def selection(options: "Scan", config: "PreTrainedConfig", lenses: Sequence[str] = ()) -> "Selection":
    """What the options measure of a model, with `lenses` as further readouts. Raises InputError."""
    from internal_policy.measure.metrics import CONTROLS, KNOWN, MEASURES
    from internal_policy.measure.sites import SITES
    from internal_policy.models.families import check_sites, sites_of
    from internal_policy.scans import positions
    from internal_policy.scans.selection import Selection, parse_layers

    text = config.get_text_config()
    if options.top_k > text.vocab_size:
        raise InputError(f"--top-k is {options.top_k}, but the model has only {text.vocab_size} tokens.")
    measures = MEASURES if options.measures == "all" else tuple(options.measures.split(","))
    more = [name for name in CONTROLS if options.controls and name not in measures]
    chosen = Selection(
        parse_layers(options.layers, text.num_hidden_layers),
        sites_of(config) if options.sites == "all" else tuple(options.sites.split(",")),
        (*(("raw", "norm") if options.readout == "both" else (options.readout,)), *lenses),
        (*measures, *more),
        options.top_k,
        positions.Positions(*positions.parse(options.positions), options.every),
    )
    if options.sites != "all":
        check_sites(config, chosen.layers, chosen.sites)
    return dataclasses.replace(  # however they were typed, so that one question has one order of columns
        chosen,
        sites=tuple(site for site in SITES if site in chosen.sites),
        measures=tuple(name for name in KNOWN if name in chosen.measures),
    )


def planned(options: "Scan", inputs: Prepared, kept: "Sequence[Rollout] | None" = None) -> Work:
    """What a scan with these options measures, checked: the responses `kept`, or those that are given or sampled.

    Raises InputError.
    """
    if not options.text and inputs.chat_template != "none":
        templates.start()  # while this process imports transformers
    from internal_policy.models.families import layer_sites
    from internal_policy.scans.selection import plan

    progress.quiet()
    chosen = selection(options, inputs.config, [lens.name for lens in inputs.lenses])
    needed = plan(chosen, layer_sites(inputs.config))
    lenses = inputs.fitted_lenses(needed.points[1 : needed.unembedded])  # the first is final
    if kept is not None:
        return Work(inputs, chosen, needed, lenses, list(kept), [], [])
    problems, prompts = ([], []) if inputs.is_given else inputs.problems(inputs.question["problems"])
    found = Work(inputs, chosen, needed, lenses, inputs.given(), problems, prompts)
    chosen.positions.check(found.longest)
    return found


def note_short(work: Work) -> None:
    """Say how many of the given responses end before the positions to measure, and are left out."""
    lengths = [len(rollout.response_ids) for rollout in work.rollouts]
    if short := sum(not work.selection.positions.of(length) for length in lengths):
        said = f"{short} of {counted(len(lengths), 'response')}"
        progress.note(f"Nothing is measured of {said}, because there is no token at {work.selection.positions}.")


def check_disk(folder: Path, selection: "Selection", tokens: int) -> None:
    """Raise InputError if a scan of so many response tokens may not fit on the disk."""

    need, disk = selection.disk_bytes(tokens), folder.absolute()
    place = next(parent for parent in [disk, *disk.parents] if parent.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise InputError(
            f"{place} has {free / 1e9:.1f} GB free, but up to {need / 1e9:.1f} GB may be needed. Choose an --output on "
            "another disk, or measure less (--layers, --sites, --top-k 0)."
        )
