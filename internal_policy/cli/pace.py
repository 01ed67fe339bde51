"""How far some work has got, how fast it is, and how long the rest takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass
class Pace:
    """What has been done of some work, and when. What an earlier run had done already doesn't count as speed."""

    total: int | None
    """How many items there are; None if that isn't known."""
    clock: Callable[[], float] = time.monotonic
    """The time in seconds."""
    done: int = 0
    """Items that are done, in this run or an earlier one."""
    fresh: int = field(default=0, init=False)
    """Items that were done in this run."""
    tokens: int = field(default=0, init=False)
    """Tokens of these."""

    def __post_init__(self) -> None:
        """Start the clock."""
        self.start = self.last = self.clock()

    def advance(self, number: int, tokens: int, *, is_fresh: bool = True) -> None:
        """Count items and their tokens; those that aren't fresh were done by an earlier run."""
        self.done += number
        if is_fresh:
            self.fresh += number
            self.tokens += tokens
            self.last = self.clock()
        elif not self.fresh:  # looking for what is done already isn't work
            self.start = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    @property
    def per_item(self) -> float | None:
        """Seconds for each item; None before the first."""
        return (self.last - self.start) / self.fresh if self.fresh else None

    @property
    def per_second(self) -> float | None:
        """Tokens for each second; None before the first."""
        return self.tokens / (self.last - self.start) if self.tokens and self.last > self.start else None

    @property
    def left(self) -> float | None:
        """Seconds until all is done, if it goes on at this speed; None if there is nothing to tell it by."""
        if self.per_item is None or self.total is None:
            return None
        return max((self.total - self.done) * self.per_item - (self.clock() - self.last), 0.0)

    def line(self, what: str, unit: str, more: str = "") -> str:
        """Such as `Scanning: 24 of 64 rollouts, 1,234 tokens/s, about 3 min left.`"""
        parts = [f"{what}: {self.done:,}{'' if self.total is None else f' of {self.total:,}'} {unit}"]
        if self.per_second is not None:
            parts.append(f"{self.per_second:,.0f} tokens/s")
        elif self.per_item is not None:
            parts.append(f"{self.per_item:.3g} s each")
        parts.append(f"{lasting(self.elapsed)} so far" if self.left is None else f"about {lasting(self.left)} left")
        return ", ".join(parts) + (f"; {more}" if more else ".")


def lasting(seconds: float) -> str:
    """A length of time in words, to two digits or so: 45 s, 3 min, 1 h 20 min, 2 days 3 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 59.5 * MINUTE:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 23.95 * HOUR:
        hours, minutes = divmod(round(seconds / MINUTE, -1), 60)
        return f"{hours:.0f} h {minutes:.0f} min" if minutes else f"{hours:.0f} h"
    days, hours = divmod(round(seconds / HOUR), 24)
    return f"{days} day{'s' if days > 1 else ''}" + (f" {hours} h" if hours else "")
