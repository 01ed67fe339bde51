"""A schedule of hook points: whose policy is trained at which step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from internal_policy.errors import InputError
from internal_policy.models.hooks import FINAL, HookPoint


@dataclass(frozen=True)
class Phase:
    """A number of steps that train the policy at one hook point."""

    point: HookPoint
    """The hook point whose policy is trained."""
    steps: int
    """Generation batches, whatever the number of optimizer updates."""

    @classmethod
    def parse(cls, text: str) -> "Phase":
        """Read `5.resid_post:30`. Raises InputError."""
        point, _, steps = text.partition(":")
        if not steps.strip().isdecimal() or not int(steps):
            raise InputError(f"'{text}' isn't a phase. Write HOOK POINT:STEPS, such as 5.resid_post:30.")
        return cls(HookPoint.parse(point.strip()), int(steps))


def point_at(phases: Sequence[Phase], step: int) -> HookPoint:
    """The hook point whose policy is trained at `step`, counted from 0; FINAL after the last phase."""
    ends = accumulate(phase.steps for phase in phases)
    return next((phase.point for phase, end in zip(phases, ends, strict=True) if step < end), FINAL)
