"""A schedule of hook points: whose policy is trained at which step, and read out how."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from internal_policy.errors import InputError
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import READOUTS

WRITTEN = "Write HOOK POINT[@READOUT]:STEPS, such as 5.resid_post:30 or 5.resid_post@norm:30"


@dataclass(frozen=True)
class Phase:
    """A number of steps that train the policy at one hook point."""

    point: HookPoint
    """The hook point whose policy is trained."""
    steps: int
    """Generation batches, whatever the number of optimizer updates."""
    readout: str | None = None
    """How its hidden states are unembedded, raw or norm; None for the readout of the run."""

    @property
    def name(self) -> str:
        """What the phase trains, such as 5.resid_post or 5.resid_post@norm."""
        return str(self.point) if self.readout is None else f"{self.point}@{self.readout}"

    @classmethod
    def parse(cls, text: str) -> "Phase":
        """Read `5.resid_post:30` or `5.resid_post@norm:30`. Raises InputError."""
        what, _, steps = text.partition(":")
        if not steps.strip().isdecimal() or not int(steps):
            raise InputError(f"'{text}' isn't a phase. {WRITTEN}.")
        place, at, readout = map(str.strip, what.partition("@"))
        point = HookPoint.parse(place)
        if at and (point == FINAL or readout not in READOUTS):
            raise InputError(
                f"'{text}' isn't a phase: final has no readout, because its norm has been applied. Remove @{readout}."
                if point == FINAL
                else f"'{text}' isn't a phase: there is no readout '{readout}'. Use {' or '.join(READOUTS)}."
            )
        return cls(point, int(steps), readout if at else None)


REST = Phase(FINAL, 0)
"""The steps after the last phase, which train the whole policy."""


def parse(texts: Sequence[str]) -> tuple[Phase, ...]:
    """The phases of a schedule. The last may be `final` without a number of steps, which says what holds anyway.

    Raises InputError.
    """
    texts = list(map(str.strip, texts))
    if texts[-1:] == ["final"]:
        texts.pop()
    if "final" in texts:
        raise InputError(
            "final without a number of steps must be the last phase. Say how long it is, such as final:10."
        )
    return tuple(map(Phase.parse, texts))


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of a step, counted from 0; REST after the last one."""
    ends = accumulate(phase.steps for phase in phases)
    return next((phase for phase, end in zip(phases, ends, strict=True) if step < end), REST)


def first_internal(phases: Sequence[Phase]) -> Phase | None:
    """The first phase that trains an internal policy; None if there is none."""
    return next((phase for phase in phases if phase.point != FINAL), None)
