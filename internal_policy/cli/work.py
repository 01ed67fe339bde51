"""Describe and check what a scan is about to measure."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from internal_policy.cli.prepared import Prepared
from internal_policy.errors import InputError

if TYPE_CHECKING:
    from internal_policy.lenses.tuned import Translators
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
    translators: "Translators | None"
    """The translators of --lens."""
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
