"""A schedule of hook points: whose policy is trained at which step, and read out how."""

from collections.abc import Sequence
from dataclasses import dataclass

from internal_policy.errors import InputError, is_count
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import READOUTS

WRITTEN = "Write HOOK POINT[@READOUT][*WEIGHT]:STEPS, such as 5.resid_post:30 or 5.resid_post@norm*0.5:30"


@dataclass(frozen=True)
class Phase:
    """A number of steps that train the policy at one hook point."""

    point: HookPoint
    """The hook point whose policy is trained."""
    steps: int
    """Generation batches, whatever the number of optimizer updates."""
    readout: str | None = None
    """How its hidden states are unembedded, raw or norm; None for the readout of the run."""
    weights: tuple[float, float] = (1.0, 1.0)
    """Weight of the internal policy's loss in the first step and in the last; the whole policy's has the rest."""

    @property
    def name(self) -> str:
        """What the phase trains, such as 5.resid_post, 5.resid_post@norm or 5.resid_post*1-0.5."""
        readout = "" if self.readout is None else f"@{self.readout}"
        weights = "-".join(f"{weight:g}" for weight in dict.fromkeys(self.weights))
        return f"{self.point}{readout}" + ("" if self.weights == (1, 1) else f"*{weights}")

    def weight(self, step: int) -> float:
        """Weight of the internal policy's loss in a step of the phase, counted from 0: a line from first to last."""
        first, last = self.weights
        return first + (last - first) * step / max(1, self.steps - 1)

    @classmethod
    def parse(cls, text: str) -> "Phase":
        """Read `5.resid_post:30`, `5.resid_post@norm:30` or `5.resid_post*1-0.5:30`. Raises InputError."""
        what, _, steps = text.partition(":")
        if not is_count(steps.strip()) or not int(steps):
            raise InputError(f"'{text:.60}' isn't a phase. {WRITTEN}.")
        what, times, weights = what.partition("*")
        place, at, readout = map(str.strip, what.partition("@"))
        point = HookPoint.parse(place)
        if at and (point == FINAL or readout not in READOUTS):
            raise InputError(
                f"'{text}' isn't a phase: final has no readout, because its norm has been applied. Remove @{readout}."
                if point == FINAL
                else f"'{text}' isn't a phase: there is no readout '{readout}'. Use {' or '.join(READOUTS)}."
            )
        if times and point == FINAL:
            raise InputError(f"'{text}' isn't a phase: weights mix an internal policy with final. Remove *{weights}.")
        return cls(point, int(steps), readout if at else None, _weights(text, weights) if times else (1.0, 1.0))


def _weights(phase: str, text: str) -> tuple[float, float]:
    """Read `0.5` or `1-0.5`. Raises InputError."""
    first, _, last = text.strip().partition("-")
    try:
        found = float(first), float(last or first)
    except ValueError:
        found = (-1.0, -1.0)
    if not all(0 <= weight <= 1 for weight in found) or text.strip().endswith("-"):
        raise InputError(
            f"'{phase}' isn't a phase: '{text}' isn't a weight. Use a number from 0 to 1, or two for a ramp, such as "
            "1-0.5."
        )
    return found


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


def phase_at(phases: Sequence[Phase], step: int, ended: Sequence[int] = ()) -> tuple[Phase, int]:
    """The phase of a step, counted from 0, and the number of the step in it; REST after the last phase.

    `ended` are steps, in order, before which a phase ended early.
    """
    start = 0
    for phase in phases:
        end = next((each for each in ended if start < each < start + phase.steps), start + phase.steps)
        if step < end:
            return phase, step - start
        start = end
    return REST, step - start


def first_internal(phases: Sequence[Phase]) -> Phase | None:
    """The first phase that trains an internal policy; None if there is none."""
    return next((phase for phase in phases if phase.point != FINAL), None)
